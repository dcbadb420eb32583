//! The gateway, from outside.

mod client;
mod config;
mod cors;
#[cfg(target_os = "linux")]
mod cost;
#[cfg(feature = "demo")]
mod demo;
mod drain;
mod faults;
mod forward;
mod keys;
mod kills;
#[cfg(feature = "demo")]
mod page;
mod rows;
mod serve;
mod support;
mod upstream;
