//! Many gateways on one store that is a server: what one promises, the others keep.
//!
//! Each scenario is played over each server: `many::pair::postgres::NAME` and `many::pair::redis::NAME` are one function. What
//! is one server's alone stands in a file of its own.

/// Makes a test of each scenario over each server.
macro_rules! over_each_server {
    ($($scenario:ident),+ $(,)?) => {
        mod postgres {
            $(#[test]
            fn $scenario() {
                super::$scenario::<crate::postgres::Postgres>();
            })+
        }
        mod redis {
            $(#[test]
            fn $scenario() {
                super::$scenario::<crate::redis::Redis>();
            })+
        }
    };
}

mod balancer;
mod broken;
mod callers;
mod full;
mod pair;
mod postgres;
mod redis;
mod rolling;
mod server;
mod waiters;

use crate::support::Gateway;
use crate::upstream::Upstream;
pub(crate) use server::Server;

/// The URL of an empty store in the server that all tests of this process share.
pub(crate) fn empty<S: Server>() -> String {
    S::common().empty()
}

/// Two gateways before one service, on one store.
struct Pair {
    upstream: Upstream,
    one: Gateway,
    other: Gateway,
}

impl Pair {
    fn over<S: Server>(settings: &str) -> Self {
        let url = empty::<S>();
        Self::by([&url, &url], settings)
    }

    /// Each of them reaches the store by a URL of its own.
    fn by(urls: [&str; 2], settings: &str) -> Self {
        let upstream = Upstream::start();
        let [one, other] = urls.map(|url| Gateway::with(&upstream.settings(url, settings), &[]));
        Self { upstream, one, other }
    }

    fn each(&self) -> [&Gateway; 2] {
        [&self.one, &self.other]
    }
}
