//! Chaos: real gateways are killed, stopped, drained, starved of disk and lied to about the time, while clients call and hang
//! up and the upstream misbehaves. All of it is logged, and a checker that believes nothing looks at the log.

pub mod check;
pub mod history;
