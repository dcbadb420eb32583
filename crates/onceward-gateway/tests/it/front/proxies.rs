//! Uploads that are too large, through proxies as they are used.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use super::{KEY, free_address, upload};
use crate::client::assert_problem;
use crate::forward::{OK, Scripted};
use crate::support::{Client, Gateway};
use crate::waiting::poll;

/// A proxy in front of the gateway, killed when dropped.
struct Proxy {
    process: Child,
    _folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Proxy {
    fn start(program: &str, arguments: &[&str], file: &str, settings: impl Fn(SocketAddr) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        std::fs::write(folder.path().join(file), settings(address)).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder.path()).stdin(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        poll(program, || std::net::TcpStream::connect(address).ok());
        Self { process, _folder: folder, address }
    }

    fn nginx(gateway: SocketAddr, more: &str) -> Self {
        let settings = |address| {
            format!(
                "daemon off; master_process off; pid nginx.pid; error_log error.log;\nevents {{}}\nhttp {{\n access_log off;\n \
                 client_max_body_size 0; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n \
                 uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n server {{ listen {address}; location / {{ proxy_pass http://{gateway}; {more} }} }}\n}}\n"
            )
        };
        Self::start("/usr/sbin/nginx", &["-p", ".", "-c", "nginx.conf", "-e", "error.log"], "nginx.conf", settings)
    }

    fn haproxy(gateway: SocketAddr) -> Self {
        let settings = |address| {
            format!(
                "defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
                 listen shop\n bind {address}\n server gateway {gateway}\n"
            )
        };
        Self::start("/usr/sbin/haproxy", &["-q", "-db", "-f", "haproxy.cfg"], "haproxy.cfg", settings)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn keyed_upload_over_the_limit_through_a_proxy_gets_413() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    let proxies = [
        ("nginx", Proxy::nginx(gateway.listen, "")),
        ("nginx unbuffered", Proxy::nginx(gateway.listen, "proxy_http_version 1.1; proxy_request_buffering off;")),
        ("haproxy", Proxy::haproxy(gateway.listen)),
    ];
    for (name, proxy) in &proxies {
        for bytes in [2 << 20, 5 << 20, 24 << 20] {
            let response = upload(proxy.address, bytes, false);
            assert_eq!(response.status, 413, "{name}: {bytes} bytes: {response:?}");
            assert_problem(&response, "request_too_large", KEY);
        }
        let small = Client::connect(proxy.address).ask(super::post("/orders", ""));
        assert_eq!(small.status, 200, "{name}");
    }
    assert_eq!(upstream.seen().len(), proxies.len());
}
