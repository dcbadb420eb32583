//! The tests of the library that need more than one of its modules.

#[cfg(feature = "engine")]
mod codec;
#[cfg(feature = "conformance")]
mod conformance;
#[cfg(all(feature = "embedded", feature = "conformance"))]
mod embedded;
#[cfg(feature = "engine")]
mod hex;
#[cfg(feature = "engine")]
mod vectors;
