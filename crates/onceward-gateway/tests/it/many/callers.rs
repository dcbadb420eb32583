//! Two gateways on one store: the rule that names callers is one, and so are its callers.

use super::{Pair, Server, empty};
use crate::client::{assert_answer, assert_problem, assert_replay, order};
use crate::support::{Gateway, command};
use crate::upstream::Upstream;

over_each_server!(
    caller_in_other_bytes_is_the_same_at_the_other_gateway,
    scope_separates_keys_at_both_gateways,
    gateway_with_another_rule_does_not_start_beside_the_first,
);

const KEY: &str = "callers-pair-0123456789";

fn caller_in_other_bytes_is_the_same_at_the_other_gateway<S: Server>() {
    let pair = Pair::over::<S>("[policy]\nprincipal = [\"authorization\", \"cookie:session\"]\n");
    let [one, other] = pair.each();
    let first = order(KEY).line("Authorization: Bearer x").line("Cookie: session=1").send(one);
    assert_answer(&first, 201, "stored");
    let again =
        order(KEY).line("authorization: bearer  x").line("Authorization: Bearer x").line("Cookie: _ga=2; session=1");
    assert_replay(&again.send(other), &first);
    assert_problem(&order(KEY).line("X-API-Key: 1").send(other), "principal_unknown", KEY);
    assert_eq!(pair.upstream.count(KEY), 1);
}

fn scope_separates_keys_at_both_gateways<S: Server>() {
    let pair = Pair::over::<S>(
        "[policy]\nscope = [\"route\"]\n[[route]]\npath = \"/hooks/a\"\n[[route]]\npath = \"/hooks/b\"\n",
    );
    let [one, other] = pair.each();
    let first = order(KEY).to("POST /hooks/a").send(one);
    let second = order(KEY).to("POST /hooks/b").send(other);
    assert_answer(&first, 201, "stored");
    assert_answer(&second, 201, "stored");
    assert_replay(&order(KEY).to("POST /hooks/a").send(other), &first);
    assert_replay(&order(KEY).to("POST /hooks/b").send(one), &second);
    assert_eq!(pair.upstream.count(KEY), 2);
}

fn gateway_with_another_rule_does_not_start_beside_the_first<S: Server>() {
    let upstream = Upstream::start();
    let url = empty::<S>();
    let settings = |policy: &str| upstream.settings(&url, &format!("[policy]\n{policy}\n"));
    let first = Gateway::with(&settings("principal = [\"authorization\", \"header:X-User\"]"), &[]);
    let second = Gateway::with(&settings("principal = [\"header:x-user\", \"authorization\"]"), &[]);
    let stored = order(KEY).line("X-User: ann").send(&first);
    assert_replay(&order(KEY).line("X-User: ann").send(&second), &stored);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("onceward.toml"), settings("principal = [\"authorization\"]")).unwrap();
    let output = command(&folder).args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("principal_generation = 2"), "{said}");
    let accepted = format!("principal_generation = 2\n{}", settings("principal = [\"authorization\"]"));
    let third = Gateway::with(&accepted, &[]);
    third.logged("since principal_generation = 2");
    assert_replay(&order(KEY).line("X-User: ann").send(&first), &stored);
}
