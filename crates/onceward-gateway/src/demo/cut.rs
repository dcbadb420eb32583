//! Closes a connection without a response.

/// Error for hyper, which then closes the connection.
#[derive(Debug)]
pub(super) struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is cut, as a bad network does")
    }
}

impl std::error::Error for Cut {}
