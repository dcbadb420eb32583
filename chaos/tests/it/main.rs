//! What only a real gateway can show.

#[cfg(feature = "planted")]
mod planted;
mod restarts;
mod seeds;
