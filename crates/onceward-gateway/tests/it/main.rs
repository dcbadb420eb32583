//! The gateway, from outside.

mod client;
mod config;
mod forward;
mod rows;
mod serve;
mod support;
mod upstream;
