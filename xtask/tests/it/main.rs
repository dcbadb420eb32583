//! Promises about the code that a compiler does not keep.
//!
//! Each test names the file and the line that breaks a promise; a file that is gone is a failure
//! too,
//! for a promise about nothing is kept by nobody.

mod arrows;
mod documents;
mod habits;
mod language;
mod rust;
mod tree;
