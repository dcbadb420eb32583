//! A HAProxy before gateways.

use std::net::SocketAddr;

use crate::client::poll;

/// A HAProxy before gateways, by their own word on whether they are ready.
pub(super) struct Balancer {
    process: std::process::Child,
    _folder: tempfile::TempDir,
    pub(super) address: SocketAddr,
    stats: SocketAddr,
}

impl Balancer {
    pub(super) fn before(gateways: &[[SocketAddr; 2]]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (address, stats) = (crate::redis::free_port(), crate::redis::free_port());
        let mut text = format!(
            "defaults\n mode http\n timeout connect 1s\n timeout client 30s\n timeout server 30s\n timeout check 1s\n\
             frontend clients\n bind {address}\n default_backend gateways\n\
             frontend stats\n bind {stats}\n stats enable\n stats uri /\n\
             backend gateways\n balance roundrobin\n option httpchk GET /readyz\n"
        );
        for (n, [listen, admin]) in gateways.iter().enumerate() {
            text += &format!(
                " server g{n} {listen} check addr 127.0.0.1 port {} inter 100ms fall 1 rise 1\n",
                admin.port()
            );
        }
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, text).unwrap();
        let script = format!("haproxy -q -db -f {} & P=$!; cat >/dev/null; kill -KILL $P; wait $P", file.display());
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).env("PATH", "/usr/sbin:/usr/bin:/bin").stdin(std::process::Stdio::piped());
        let process = shell.stderr(std::process::Stdio::null()).spawn().unwrap();
        let balancer = Self { process, _folder: folder, address, stats };
        for n in 0..gateways.len() {
            balancer.await_server(n, "UP");
        }
        balancer
    }

    /// Waits until it knows how a gateway is.
    pub(super) fn await_server(&self, n: usize, state: &str) {
        poll("a state of a server behind HAProxy", || {
            let page = crate::client::try_send(self.stats, b"GET /;csv HTTP/1.1\r\nHost: a\r\n\r\n")?;
            let page = String::from_utf8(page.body).ok()?;
            page.lines().find(|line| line.starts_with(&format!("gateways,g{n},")))?.contains(state).then_some(())
        });
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
