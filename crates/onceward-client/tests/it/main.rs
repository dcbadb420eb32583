//! The client, against the real gateway.

mod crash;
mod journal;
mod retries;
mod sends;
mod support;
mod vectors;
