//! The gateway, from outside.

mod config;
mod forward;
mod support;
