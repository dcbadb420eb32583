//! The store in the process.

/// Keeps records in the process.
#[derive(Debug)]
pub struct MemoryStore;
