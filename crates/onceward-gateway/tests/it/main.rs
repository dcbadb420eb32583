//! The gateway, from outside.

mod config;
mod forward;
mod serve;
mod support;
