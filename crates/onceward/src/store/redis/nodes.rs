//! The masters of a cluster, one by one: what they say of themselves, and what is asked of each.
//!
//! By connections of their own, for the cluster's client asks all or none, and where it cannot reach one it makes all of its
//! connections anew. So one that is down, or hangs, holds up nobody else.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::{join_all, select_ok};
use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, RedisError, Value};
use tokio::time::timeout;

use super::link::{Link, config_command, info_command};
use super::server::{Server, Servers};
use crate::store::Error;

pub(super) type Address = (String, u16);

/// How long one may take to be connected to, and to say who it is.
pub(super) const NODE_MAX: Duration = Duration::from_millis(700);

#[derive(Default)]
pub(super) struct Nodes {
    masters: Mutex<Vec<Address>>,
    connections: Mutex<HashMap<Address, MultiplexedConnection>>,
    /// What each said last.
    said: Mutex<HashMap<Address, Server>>,
}

/// A cluster as it was found.
pub(super) struct View {
    pub(super) layout: Layout,
    /// Every master answered.
    pub(super) is_whole: bool,
}

/// Which master has which slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout(Vec<(i64, i64, Address)>);

impl Layout {
    /// Reads `CLUSTER SLOTS`, as the node at this address told it.
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

impl Link {
    /// Asks the masters who they are, and takes note. Of one that does not answer, what it said last counts on. Fails if none does.
    pub(super) async fn probe_nodes(&self) -> Result<View, Error> {
        let failed = |error: RedisError| Error::refused("no node of the cluster says who it is").because(error);
        let layout = self.layout().await.map_err(failed)?;
        let masters = layout.masters();
        let told = join_all(masters.iter().map(async |master| {
            let info = self.ask_node(master, &info_command(), NODE_MAX).await?;
            // Where it is not allowed, what it would say is not told.
            let config = self.ask_node(master, &config_command(), NODE_MAX).await.ok();
            Server::told(info, config)
        }));
        let (mut servers, mut silent, mut last) = (Vec::new(), 0, None);
        for (master, told) in masters.iter().zip(told.await) {
            let mut said = self.nodes.said.lock();
            match told {
                Ok(server) => {
                    said.insert(master.clone(), server.clone());
                    servers.push(server);
                }
                Err(error) => {
                    silent += 1;
                    last = Some(error);
                    servers.extend(said.get(master).map(Server::of_old));
                }
            }
        }
        if let Some(error) = last.filter(|_| silent == masters.len()) {
            return Err(failed(error));
        }
        self.nodes.said.lock().retain(|master, _| masters.contains(master));
        self.nodes.connections.lock().retain(|master, _| masters.contains(master));
        *self.nodes.masters.lock() = masters;
        servers.sort_by(|a, b| a.identity.cmp(&b.identity));
        self.learn(Servers(servers));
        Ok(View { layout, is_whole: silent == 0 })
    }

    /// Asks each master, and fails if one does not answer.
    pub(super) async fn ask_masters(&self, command: &Cmd, max: Duration) -> Result<Vec<Value>, RedisError> {
        let masters = self.nodes.masters.lock().clone();
        futures_util::future::try_join_all(masters.iter().map(|master| self.ask_node(master, command, max))).await
    }

    /// As whoever answers first says; a master, or where none does, who the URL names.
    async fn layout(&self) -> Result<Layout, RedisError> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        let first = async |nodes: &[Address]| {
            let asked = nodes.iter().map(|node| {
                let told = self.ask_node(node, &slots, NODE_MAX);
                Box::pin(async move { Layout::read(told.await?, node) })
            });
            select_ok(asked).await.map(|(layout, _)| layout)
        };
        let masters = self.nodes.masters.lock().clone();
        if !masters.is_empty()
            && let Ok(layout) = first(&masters).await
        {
            return Ok(layout);
        }
        first(&self.options.hosts).await
    }

    async fn ask_node(&self, node: &Address, command: &Cmd, max: Duration) -> Result<Value, RedisError> {
        let asked = async {
            let open = self.nodes.connections.lock().get(node).cloned();
            // It may have been restarted since.
            if let Some(mut open) = open
                && let Ok(value) = open.req_packed_command(command).await
            {
                return value.extract_error();
            }
            let mut made = self.one(node).await?;
            self.nodes.connections.lock().insert(node.clone(), made.clone());
            made.req_packed_command(command).await?.extract_error()
        };
        match timeout(max, asked).await {
            Ok(told) => told,
            Err(_) => {
                self.nodes.connections.lock().remove(node);
                Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)))
            }
        }
    }
}
