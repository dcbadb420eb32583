//! Records as bytes: what was written once is read for ever, and what is damaged is never taken for something else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use onceward::codec::{VERSION, decode, encode};
use onceward::fingerprint::{self, Details, FIRST_VERSION, Fingerprint, Hosts, Kind, Members, Rules};
use onceward::record::{AttemptId, Executed, FingerprintWithRules, Phase, Record, Retained};
use onceward::reply::{Head, StoredResponse};
use onceward::secret::{KeyHash, RecordId};
use proptest::prelude::*;

use crate::hex::{hex, unhex};

const ID: RecordId = RecordId([0x11; 32]);
const DAY: Duration = Duration::from_secs(86_400);

fn record(phase: Phase) -> Record {
    Record { key_hash: KeyHash([0x22; 32]), attempt: AttemptId([0x33; 16]), phase }
}

fn print() -> FingerprintWithRules {
    FingerprintWithRules::new(Fingerprint([0x44; 32]), first(Kind::Exact))
}

/// Rules of the first construction.
fn first(kind: Kind) -> Arc<Rules> {
    let headers = vec![HeaderName::from_static("x-tenant")];
    Arc::new(Rules { version: FIRST_VERSION, kind, headers, ..Rules::default() })
}

/// A fingerprint as it is made today, beside which stands what an older process compares.
fn current() -> FingerprintWithRules {
    let pointers = vec!["/sent_at".parse().expect("a pointer"), "/meta/a~1b".parse().expect("a pointer")];
    let mut rules = Rules { kind: Kind::Json, ..(*first(Kind::Json)).clone() };
    rules.version = fingerprint::VERSION;
    rules.hosts = Hosts::Same;
    rules.members = Members::Except(pointers);
    let details = Details {
        first: Some((Fingerprint([0x44; 32]), Kind::Exact)),
        parts: (0..14).collect(),
        members: vec![0xa0, 0xa1, 0xb0, 0xb1],
    };
    FingerprintWithRules {
        details: Some(Arc::new(details)),
        ..FingerprintWithRules::new(Fingerprint([0x55; 32]), Arc::new(rules))
    }
}

fn completed(kept: Retained) -> Record {
    record(Phase::Completed { print: print(), kept, retention: DAY, tombstone: DAY * 30 })
}

fn whole() -> Record {
    let header = |name: &'static str, value: &[u8]| {
        (HeaderName::from_static(name), HeaderValue::from_bytes(value).expect("a value"))
    };
    let reply = StoredResponse {
        status: StatusCode::CREATED,
        headers: vec![header("content-type", b"text/plain"), header("x-dup", b"a"), header("x-dup", b"\xe9\xff")],
        body: Bytes::from_static(b"made\n"),
        redirect: None,
    };
    completed(Retained::Response(Arc::new(reply)))
}

fn head(status: StatusCode, location: Option<&str>) -> Record {
    completed(Retained::HeadOnly(Head { status, location: location.map(str::to_owned) }))
}

fn tombstone(executed: Executed) -> Record {
    record(Phase::Tombstone { print: print(), executed, keep: DAY * 30 })
}

/// Bytes of version 1 as they were computed by hand, by another program than the one under test, and the checksum of the same
/// fields in version 2. They never change.
fn golden() -> Vec<(&'static str, Record, &'static str, &'static str)> {
    let claim = Phase::InFlight {
        print: print(),
        lease: Duration::from_secs(15),
        began: Duration::from_millis(1_700_000_000_123),
    };
    vec![
        (
            "in flight",
            record(claim),
            "01d584223a81480fda08011210333333333333333333333333333333331a202222222222222222222222222222222222222222222222222222222222222222222e0a20444444444444444444444444444444444444444444444444444444444444444410012208782d74656e616e7428987560fbd095ffbc31",
            "ddc070c434468184",
        ),
        (
            "completed, whole",
            whole(),
            "016ed96d1f6ae2dc9d08021210333333333333333333333333333333331a202222222222222222222222222222222222222222222222222222222222222222222e0a20444444444444444444444444444444444444444444444444444444444444444410012208782d74656e616e743080b89929388090fbd309523f08c901121a0a0c636f6e74656e742d74797065120a746578742f706c61696e120a0a05782d647570120161120b0a05782d6475701202e9ff1a056d6164650a",
            "531528e311eb22a8",
        ),
        (
            "completed, its head",
            head(StatusCode::CREATED, Some("/orders/7")),
            "01f756fd2605d76da408021210333333333333333333333333333333331a202222222222222222222222222222222222222222222222222222222222222222222e0a20444444444444444444444444444444444444444444444444444444444444444410012208782d74656e616e743080b89929388090fbd3095a0e08c90112092f6f72646572732f37",
            "94ac5415b50dd4ca",
        ),
        (
            "completed, its head without a location",
            head(StatusCode::OK, None),
            "0182fc6a009bcd737208021210333333333333333333333333333333331a202222222222222222222222222222222222222222222222222222222222222222222e0a20444444444444444444444444444444444444444444444444444444444444444410012208782d74656e616e743080b89929388090fbd3095a0308c801",
            "b0a7c4a50e20e4eb",
        ),
        (
            "released",
            record(Phase::Released { keep: Duration::from_secs(4200) }),
            "016635a3645c86122d08031210333333333333333333333333333333331a20222222222222222222222222222222222222222222222222222222222222222240c0ac8002",
            "bc80012ce96fefc2",
        ),
        (
            "unknown",
            record(Phase::Unknown { print: print() }),
            "013fdacfdc38326b7a08041210333333333333333333333333333333331a202222222222222222222222222222222222222222222222222222222222222222222e0a20444444444444444444444444444444444444444444444444444444444444444410012208782d74656e616e74",
            "28324bda986682d6",
        ),
        (
            "unknown, a form",
            record(Phase::Unknown { print: FingerprintWithRules { rules: first(Kind::Form), ..print() } }),
            "017265ed8bbd47341908041210333333333333333333333333333333331a20222222222222222222222222222222222222222222222222222222222222222222300a204444444444444444444444444444444444444444444444444444444444444444100118022208782d74656e616e74",
            "7a84b52717a2f73c",
        ),
        (
            "a tombstone, executed",
            tombstone(Executed::Yes),
            "01420dc0255774822808051210333333333333333333333333333333331a202222222222222222222222222222222222222222222222222222222222222222222e0a20444444444444444444444444444444444444444444444444444444444444444410012208782d74656e616e74408090fbd3094801",
            "a3c18814b44f6314",
        ),
        (
            "a tombstone, not executed",
            tombstone(Executed::No),
            "01f63284824f1d9f8808051210333333333333333333333333333333331a202222222222222222222222222222222222222222222222222222222222222222222e0a20444444444444444444444444444444444444444444444444444444444444444410012208782d74656e616e74408090fbd3094802",
            "0eb2695e642f09c2",
        ),
        (
            "a tombstone, nobody knows",
            tombstone(Executed::Unknown),
            "011a03c01ea21a010608051210333333333333333333333333333333331a202222222222222222222222222222222222222222222222222222222222222222222e0a20444444444444444444444444444444444444444444444444444444444444444410012208782d74656e616e74408090fbd3094803",
            "cce84a5c253edf02",
        ),
    ]
}

#[test]
fn version_2_is_written_and_each_version_read_for_ever() {
    for (name, record, version_1, sum) in golden() {
        let version_2 = ["02", sum, &version_1[18..]].concat();
        assert_eq!(hex(&encode(&ID, &record)), version_2, "{name} is written");
        for bytes in [version_1, &version_2] {
            assert_eq!(decode(&ID, &Bytes::from(unhex(bytes))).expect(name), record, "{name} is read");
        }
    }
}

/// The bytes of today's construction, as they were written when it was new. They never change.
#[test]
fn record_of_the_second_construction_keeps_its_bytes() {
    let record = record(Phase::Unknown { print: current() });
    let bytes = encode(&ID, &record);
    let newer = [
        piece(1, &[0x55; 32]),
        number(2, 2),
        number(3, 3),
        piece(4, b"x-tenant"),
        number(6, 1),
        piece(7, b"/sent_at"),
        piece(7, b"/meta/a~1b"),
        piece(9, &(0..14).collect::<Vec<u8>>()),
        piece(10, &[0xa0, 0xa1, 0xb0, 0xb1]),
    ]
    .concat();
    let print = [piece(1, &[0x44; 32]), number(2, 1), piece(4, b"x-tenant"), piece(5, &newer)].concat();
    assert_eq!(hex(&bytes[9..]), hex(&[fields(4), piece(4, &print)].concat()));
    assert_eq!(decode(&ID, &bytes).expect("readable"), record);
}

/// A process of before skips the field of the newer construction, as any that it does not know.
/// What is left is a record of the first, which it compares by that one.
#[test]
fn record_of_the_second_construction_is_one_of_the_first_to_an_older_process() {
    let older = [piece(1, &[0x44; 32]), number(2, 1), piece(4, b"x-tenant")].concat();
    let read = decode(&ID, &Bytes::from(sealed(1, &[fields(4), piece(4, &older)].concat()))).expect("readable");
    assert_eq!(read, record(Phase::Unknown { print: print() }));
    // And what that process writes over it is read here.
    assert_eq!(decode(&ID, &encode(&ID, &read)).expect("readable"), read);
}

/// The same for this process and a construction to come.
#[test]
fn record_of_a_construction_to_come_is_one_of_the_first_beside_it() {
    let newer = [piece(1, &[0x66; 32]), number(2, 3), number(3, 99), piece(4, b"x-other")].concat();
    let print_fields = [piece(1, &[0x44; 32]), number(2, 1), piece(4, b"x-tenant"), piece(5, &newer)].concat();
    let bytes = sealed(1, &[fields(4), piece(4, &print_fields)].concat());
    assert_eq!(decode(&ID, &Bytes::from(bytes)).expect("readable"), record(Phase::Unknown { print: print() }));
}

/// Beyond 240 bytes the checksum is made in another way; by another program, too.
#[test]
fn the_checksum_of_a_large_record_stays_as_well() {
    let reply = StoredResponse {
        status: StatusCode::OK,
        headers: Vec::new(),
        body: Bytes::from(vec![b'x'; 2000]),
        redirect: None,
    };
    let bytes = encode(&ID, &completed(Retained::Response(Arc::new(reply))));
    assert_eq!(hex(&bytes[1..9]), "1c8e5c387f0d9f33");
}

#[track_caller]
fn unreadable(bytes: Vec<u8>, id: &RecordId, why: &str) -> String {
    match decode(id, &Bytes::from(bytes)) {
        Err(error) if error.is_unreadable() => error.to_string(),
        other => panic!("{why}: {other:?}"),
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let version_1 = golden().into_iter().map(|(name, _, bytes, _)| (name, unhex(bytes)));
    let version_2 = golden().into_iter().map(|(name, record, ..)| (name, encode(&ID, &record).to_vec()));
    for (name, good) in version_1.chain(version_2) {
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            unreadable(bad, &ID, &format!("{name}, bit {bit}"));
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    for (name, record, ..) in golden() {
        let good = encode(&ID, &record).to_vec();
        for length in 0..good.len() {
            unreadable(good[..length].to_vec(), &ID, &format!("{name}, {length} bytes"));
        }
        unreadable([good.as_slice(), b"\0"].concat(), &ID, &format!("{name}, and one byte more"));
    }
}

#[test]
fn bytes_of_another_key_are_noticed() {
    for (name, record, ..) in golden() {
        for byte in [0, 31] {
            let mut other = ID;
            other.0[byte] ^= 1;
            unreadable(encode(&ID, &record).to_vec(), &other, name);
        }
    }
}

/// A version and fields with a checksum that holds, as another build could write them.
fn sealed(version: u8, fields: &[u8]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&ID.0).update(&[version]).update(fields);
    [&[version], &hasher.finalize().as_bytes()[..8], fields].concat()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 128 {
        bytes.push(number as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn number(tag: u8, number: u64) -> Vec<u8> {
    [vec![tag << 3], varint(number)].concat()
}

fn piece(tag: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![tag << 3 | 2], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// The fields that each record has.
fn fields(stage: u64) -> Vec<u8> {
    [number(1, stage), piece(2, &[0x33; 16]), piece(3, &[0x22; 32])].concat()
}

fn print_fields(version: u64, kind: u64) -> Vec<u8> {
    piece(4, &[piece(1, &[0x44; 32]), number(2, version), number(3, kind)].concat())
}

#[test]
fn what_a_newer_build_wrote_is_an_error_of_its_key() {
    let known = [fields(4), print_fields(1, 0)].concat();
    decode(&ID, &Bytes::from(sealed(1, &known))).expect("the pieces below are put together rightly");
    assert_eq!(VERSION, 2);
    for version in [0, 3, 4, 255] {
        let why = unreadable(sealed(version, &known), &ID, "another version");
        assert!(why.contains(&format!("version {version}")), "{why}");
    }
    for stage in [0, 6, 99] {
        let why = unreadable(sealed(1, &[fields(stage), print_fields(1, 0)].concat()), &ID, "another phase");
        assert!(why.contains(&format!("phase {stage}")), "{why}");
    }
    for (version, kind) in [(0, 0), (3, 0), (2, 1), (2, 5), (1, 1), (1, 3), (1, 4), (1, 7), (257, 0)] {
        // Of each phase that has a fingerprint, the tombstone's and the answer's included.
        for stage in [1, 2, 4, 5] {
            let rest = [number(9, 1), piece(11, &number(1, 200))].concat();
            let bytes = sealed(1, &[fields(stage), print_fields(version, kind), rest].concat());
            let why = unreadable(bytes, &ID, "other rules");
            assert!(why.contains("rules"), "{why}");
        }
    }
}

#[test]
fn what_is_sealed_and_makes_no_sense_is_an_error_of_its_key() {
    let print = || print_fields(1, 0);
    let reply = |status: u64, header: &[u8]| piece(10, &[number(1, status), piece(2, header)].concat());
    let header = |name: &[u8], value: &[u8]| [piece(1, name), piece(2, value)].concat();
    let good = reply(200, &header(b"x-a", b"1"));
    decode(&ID, &Bytes::from(sealed(1, &[fields(2), print(), good.clone()].concat()))).expect("put together rightly");
    for (name, fields) in [
        ("a claim without a fingerprint", fields(1)),
        ("an unknown without a fingerprint", fields(4)),
        ("a tombstone without a fingerprint", [fields(5), number(9, 1)].concat()),
        ("an answer without a fingerprint", [fields(2), good.clone()].concat()),
        ("a completed record without an answer", [fields(2), print()].concat()),
        ("a completed record with two answers", [fields(2), print(), good, piece(11, &number(1, 200))].concat()),
        ("a tombstone that does not say whether", [fields(5), print()].concat()),
        ("a tombstone that says something else", [fields(5), print(), number(9, 4)].concat()),
        ("a status that is none", [fields(2), print(), reply(99, &header(b"x-a", b"1"))].concat()),
        ("a status beyond 16 bits", [fields(2), print(), reply(65_736, &header(b"x-a", b"1"))].concat()),
        ("a head's status that is none", [fields(2), print(), piece(11, &number(1, 0))].concat()),
        ("a header's name that is none", [fields(2), print(), reply(200, &header(b"x a", b"1"))].concat()),
        ("a header's value that would split the answer", {
            [fields(2), print(), reply(200, &header(b"x-a", b"1\r\nx-b: 2"))].concat()
        }),
        ("an attempt of 15 bytes", [number(1, 3), piece(2, &[0x33; 15]), piece(3, &[0x22; 32])].concat()),
        ("no attempt", [number(1, 3), piece(3, &[0x22; 32])].concat()),
        ("no hash of the key", [number(1, 3), piece(2, &[0x33; 16])].concat()),
        ("a fingerprint of 31 bytes", {
            [fields(4), piece(4, &[piece(1, &[0x44; 31]), number(2, 1)].concat())].concat()
        }),
        ("a rule's header that is none", {
            [fields(4), piece(4, &[piece(1, &[0x44; 32]), number(2, 1), piece(4, b"x tenant")].concat())].concat()
        }),
        ("fields that end within", [fields(3), vec![0x42, 9]].concat()),
        ("no fields", Vec::new()),
    ] {
        unreadable(sealed(1, &fields), &ID, name);
    }
}

/// What version 1 may grow by: a field that this build does not know.
#[test]
fn a_field_that_is_not_known_is_skipped() {
    let fields = [fields(3), number(8, 5_000), number(15, 7)].concat();
    let read = decode(&ID, &Bytes::from(sealed(1, &fields))).expect("readable");
    assert_eq!(read.phase, Phase::Released { keep: Duration::from_secs(5) });
}

#[test]
fn a_duration_beyond_what_fits_is_as_good_as_for_ever() {
    let forever = record(Phase::Released { keep: Duration::MAX });
    let read = decode(&ID, &encode(&ID, &forever)).expect("readable");
    assert_eq!(read.phase, Phase::Released { keep: Duration::from_millis(u64::MAX) });
}

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(0), any::<u32>().prop_map(u64::from), any::<u64>()].prop_map(Duration::from_millis)
}

fn names() -> impl Strategy<Value = HeaderName> {
    "[a-z][a-z0-9-]{0,20}".prop_map(|name| name.parse().expect("a name"))
}

fn values() -> impl Strategy<Value = HeaderValue> {
    let byte = prop_oneof![Just(b'\t'), 0x20..=0x7e_u8, 0x80..=0xff_u8];
    prop::collection::vec(byte, 0..40).prop_map(|value| HeaderValue::from_bytes(&value).expect("a value"))
}

fn prints() -> impl Strategy<Value = FingerprintWithRules> {
    let kind = || prop::sample::select(Kind::ALL.to_vec());
    let pointers = || prop::collection::vec("(/[a-z0-9]{0,5}){1,3}", 1..3);
    let members = prop_oneof![
        Just(Members::All),
        pointers().prop_map(|texts| Members::Only(texts.iter().map(|text| text.parse().expect("a pointer")).collect())),
        pointers()
            .prop_map(|texts| Members::Except(texts.iter().map(|text| text.parse().expect("a pointer")).collect())),
    ];
    let hosts = prop::sample::select(vec![Hosts::Distinct, Hosts::Same]);
    let rules =
        (kind(), prop::collection::vec(names(), 0..4), hosts, members).prop_map(|(kind, headers, hosts, members)| {
            Rules { version: fingerprint::VERSION, kind, headers, hosts, members }
        });
    let first_kind = prop::sample::select(vec![Kind::Exact, Kind::Form]);
    let hints = || prop::collection::vec(any::<u8>(), 0..20);
    let details = (any::<[u8; 32]>(), first_kind.clone(), hints(), hints())
        .prop_map(|(first, kind, parts, members)| Details { first: Some((Fingerprint(first), kind)), parts, members });
    prop_oneof![
        (any::<[u8; 32]>(), prop::collection::vec(names(), 0..4), first_kind).prop_map(
            |(fingerprint, headers, kind)| {
                let rules = Rules { version: FIRST_VERSION, kind, headers, ..Rules::default() };
                FingerprintWithRules::new(Fingerprint(fingerprint), Arc::new(rules))
            }
        ),
        (any::<[u8; 32]>(), rules, prop::option::of(details)).prop_map(|(fingerprint, rules, details)| {
            FingerprintWithRules {
                details: details.map(Arc::new),
                ..FingerprintWithRules::new(Fingerprint(fingerprint), Arc::new(rules))
            }
        }),
    ]
}

fn kept() -> impl Strategy<Value = Retained> {
    let status = || (100..=999_u16).prop_map(|status| StatusCode::from_u16(status).expect("a status"));
    let headers = prop::collection::vec((names(), values()), 0..8);
    let body = prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    prop_oneof![
        (status(), headers, body).prop_map(|(status, headers, body)| Retained::Response(Arc::new(StoredResponse {
            status,
            headers,
            body,
            redirect: None,
        }))),
        (status(), prop::option::of(".{0,30}"))
            .prop_map(|(status, location)| Retained::HeadOnly(Head { status, location })),
    ]
}

fn phases() -> impl Strategy<Value = Phase> {
    let executed = prop_oneof![Just(Executed::Yes), Just(Executed::No), Just(Executed::Unknown)];
    prop_oneof![
        (prints(), durations(), durations()).prop_map(|(print, lease, began)| Phase::InFlight { print, lease, began }),
        (prints(), kept(), durations(), durations())
            .prop_map(|(print, kept, retention, tombstone)| { Phase::Completed { print, kept, retention, tombstone } }),
        durations().prop_map(|keep| Phase::Released { keep }),
        prints().prop_map(|print| Phase::Unknown { print }),
        (prints(), executed, durations()).prop_map(|(print, executed, keep)| Phase::Tombstone {
            print,
            executed,
            keep
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_record_comes_back(id in any::<[u8; 32]>(), key in any::<[u8; 32]>(), attempt in any::<[u8; 16]>(), phase in phases()) {
        let (id, record) = (RecordId(id), Record { key_hash: KeyHash(key), attempt: AttemptId(attempt), phase });
        prop_assert_eq!(decode(&id, &encode(&id, &record)).expect("readable"), record);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&ID, &Bytes::from(bytes.clone())).is_err());
        // Past the checksum too: nothing but this test's own seal stands before the fields there.
        let _ = decode(&ID, &Bytes::from(sealed(1, &bytes)));
    }
}
