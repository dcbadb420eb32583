//! The store in a folder.

/// Keeps records in a folder.
#[derive(Debug)]
pub struct EmbeddedStore;
