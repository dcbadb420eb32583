//! The gateway, from outside.

mod client;
mod config;
#[cfg(feature = "demo")]
mod demo;
mod drain;
mod faults;
mod forward;
mod kills;
#[cfg(feature = "demo")]
mod page;
mod rows;
mod serve;
mod support;
mod upstream;
