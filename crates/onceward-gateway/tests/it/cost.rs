//! What a replay costs the gateway, beside what forwarding costs it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::support::Gateway;

const ROUNDS: usize = 5;
const CALLS: usize = 400;

/// A service that does nothing, so that neither its disk nor its work is measured. It counts what it is asked.
fn idle_service() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(mut stream: TcpStream) {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while !read.ends_with(b"{\"item\":\"tea\",\"qty\":2}") {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(length) => read.extend_from_slice(&buffer[..length]),
            }
        }
        read.clear();
        let answer = b"HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n{\"id\":7}";
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

/// The process's own and the kernel's work for it, in clock ticks.
fn ticks(gateway: &Gateway) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", gateway.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_replay_costs_the_gateway_less_than_forwarding() {
    let gateway = Gateway::start(&format!("http://{}", idle_service()), "");
    let mut client = gateway.client();
    let request = |key: &str| {
        format!(
            "POST /orders HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\n{key}content-length: 22\r\n\r\n\
             {{\"item\":\"tea\",\"qty\":2}}"
        )
    };
    let (plain, keyed) = (request(""), request("idempotency-key: measured\r\n"));
    assert_eq!(client.ask(&keyed).one("idempotency-outcome"), "stored");
    let (mut forwarding, mut replaying) = (0, 0);
    for _ in 0..ROUNDS {
        for (request, outcome, spent) in [(&plain, 0, &mut forwarding), (&keyed, 1, &mut replaying)] {
            let before = ticks(&gateway);
            for _ in 0..CALLS {
                let answer = client.ask(request);
                assert_eq!((answer.status, answer.all("idempotency-replayed").len()), (201, outcome));
            }
            *spent += ticks(&gateway) - before;
        }
    }
    let calls = ROUNDS * CALLS;
    println!(
        "the gateway's CPU time for {calls} calls, in ticks of 10 ms: forwarding {forwarding}, replaying {replaying}"
    );
    assert!(forwarding > 0, "too few calls to measure");
    assert!(replaying < forwarding, "a replay costs {replaying} ticks, and forwarding {forwarding}");
}
