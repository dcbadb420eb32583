//! Masters of a cluster: their state, and commands sent to each of them.
//!
//! They have connections of their own. The client library sends to all nodes or to none.
//! If it cannot reach one node, it reconnects to all of them.
//! With separate connections, a node that is down or hangs delays no other.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::{join_all, select_ok};
use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, RedisError, Value};
use tokio::time::timeout;

use super::connection::{ConnectionManager, config_command, info_command};
use super::server::{Server, Servers};
use crate::store::Error;

pub(super) type Address = (String, u16);

/// Upper bound on connecting to a node, and on its reply to a health check.
pub(super) const NODE_MAX: Duration = Duration::from_millis(700);

#[derive(Default)]
pub(super) struct Nodes {
    masters: Mutex<Vec<Address>>,
    connections: Mutex<HashMap<Address, MultiplexedConnection>>,
    /// Last state reported by each node.
    last_state: Mutex<HashMap<Address, Server>>,
}

/// Cluster as it was found by a health check.
pub(super) struct View {
    pub(super) layout: Layout,
    /// True if every master replied.
    pub(super) is_whole: bool,
}

/// Slot ranges and the master of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout(Vec<(i64, i64, Address)>);

impl Layout {
    /// Parses the reply to `CLUSTER SLOTS` from the node at this address.
    fn read(value: Value, by: &Address) -> Result<Self, RedisError> {
        let ranges: Vec<Vec<Value>> = redis::from_redis_value(value)?;
        let mut slots = Vec::with_capacity(ranges.len());
        for range in ranges {
            let mut range = range.into_iter();
            let (Some(from), Some(to), Some(master)) = (range.next(), range.next(), range.next()) else { continue };
            let master: Vec<Value> = redis::from_redis_value(master)?;
            let mut master = master.into_iter();
            let (Some(host), Some(port)) = (master.next(), master.next()) else { continue };
            // A node that does not know its own name leaves it out.
            let host: Option<String> = redis::from_redis_value(host)?;
            let host = host.filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| by.0.clone());
            let address = (host, redis::from_redis_value(port)?);
            slots.push((redis::from_redis_value(from)?, redis::from_redis_value(to)?, address));
        }
        slots.sort();
        Ok(Self(slots))
    }

    fn masters(&self) -> Vec<Address> {
        let mut masters: Vec<_> = self.0.iter().map(|(_, _, master)| master.clone()).collect();
        masters.sort();
        masters.dedup();
        masters
    }
}

impl ConnectionManager {
    /// Asks every master for its state and stores it. For one that does not reply, the last known
    /// state applies.
    ///
    /// # Errors
    ///
    /// Fails if no master replies.
    pub(super) async fn check_nodes(&self) -> Result<View, Error> {
        let failed =
            |error: RedisError| Error::refused("no node of the Redis cluster replied to INFO").with_source(error);
        let layout = self.layout().await.map_err(failed)?;
        let masters = layout.masters();
        let reply = join_all(masters.iter().map(async |master| {
            let info = self.execute_on_node(master, &info_command(), NODE_MAX).await?;
            // `CONFIG` may be forbidden; the persistence is unknown then.
            let config = self.execute_on_node(master, &config_command(), NODE_MAX).await.ok();
            Server::from_replies(info, config)
        }));
        let (mut servers, mut silent, mut last) = (Vec::new(), 0, None);
        for (master, reply) in masters.iter().zip(reply.await) {
            let mut last_state = self.nodes.last_state.lock();
            match reply {
                Ok(server) => {
                    last_state.insert(master.clone(), server.clone());
                    servers.push(server);
                }
                Err(error) => {
                    silent += 1;
                    last = Some(error);
                    servers.extend(last_state.get(master).map(Server::stale));
                }
            }
        }
        if let Some(error) = last.filter(|_| silent == masters.len()) {
            return Err(failed(error));
        }
        self.nodes.last_state.lock().retain(|master, _| masters.contains(master));
        self.nodes.connections.lock().retain(|master, _| masters.contains(master));
        *self.nodes.masters.lock() = masters;
        servers.sort_by(|a, b| a.identity.cmp(&b.identity));
        self.update_servers(Servers(servers));
        Ok(View { layout, is_whole: silent == 0 })
    }

    /// Sends a command to each master. Fails if one does not reply.
    pub(super) async fn execute_on_masters(&self, command: &Cmd, max: Duration) -> Result<Vec<Value>, RedisError> {
        let masters = self.nodes.masters.lock().clone();
        futures_util::future::try_join_all(masters.iter().map(|master| self.execute_on_node(master, command, max)))
            .await
    }

    /// Returns the layout from the first node that replies: a known master, or else a host of the
    /// URL.
    async fn layout(&self) -> Result<Layout, RedisError> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        let first = async |nodes: &[Address]| {
            let replies = nodes.iter().map(|node| {
                let reply = self.execute_on_node(node, &slots, NODE_MAX);
                Box::pin(async move { Layout::read(reply.await?, node) })
            });
            select_ok(replies).await.map(|(layout, _)| layout)
        };
        let masters = self.nodes.masters.lock().clone();
        if !masters.is_empty()
            && let Ok(layout) = first(&masters).await
        {
            return Ok(layout);
        }
        first(&self.options.hosts).await
    }

    async fn execute_on_node(&self, node: &Address, command: &Cmd, max: Duration) -> Result<Value, RedisError> {
        let replies = async {
            let existing = self.nodes.connections.lock().get(node).cloned();
            // The connection may be stale: the node may have restarted.
            if let Some(mut existing) = existing
                && let Ok(value) = existing.req_packed_command(command).await
            {
                return value.extract_error();
            }
            let mut connection = self.connect_node(node).await?;
            self.nodes.connections.lock().insert(node.clone(), connection.clone());
            connection.req_packed_command(command).await?.extract_error()
        };
        match timeout(max, replies).await {
            Ok(reply) => reply,
            Err(_) => {
                self.nodes.connections.lock().remove(node);
                Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)))
            }
        }
    }
}
