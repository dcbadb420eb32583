//! The orders service over real sockets, on real files; and its page in a real browser.

mod api;
mod layer;
mod page;
mod process;
mod stories;
mod support;
