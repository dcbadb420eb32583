//! The client, against the real gateway.

mod crash;
mod intents;
mod journal;
mod redirects;
mod retries;
mod sends;
mod support;
mod vectors;
