//! Disk space, with a reserve for completions.
//!
//! A claim that finds the disk full is rejected, and nothing was executed.
//! A completion that finds it full loses the response of an executed request.
//! So space is reserved in advance, as a file without content, and claims are rejected once free
//! space falls below a limit.
//! Completions still find space. If that runs out too, the file is deleted and its space goes to
//! responses.
//! If even that is used up, a completion is rejected before the engine writes a byte, since the
//! engine stops after a failed write.
//!
//! If the system cannot report free space, claims are accepted and errors are left to the engine.

use std::path::{Path, PathBuf};

use super::writer::BATCH_BYTES_MAX;

/// Name of the file that holds the reserve.
pub(super) const FILE: &str = "room";

/// Size of the reserve.
pub(super) const RESERVE_BYTES: u64 = 64 << 20;

/// Free space below which claims are rejected.
///
/// The engine needs as much to write its memtables to tables, and stops if it cannot.
pub(super) const CLAIM_BYTES_MIN: u64 = 64 << 20;

/// Free space below which the reserve is released.
const RESERVED_BELOW_BYTES: u64 = 40 << 20;

/// Free space that must remain after a batch, for what the engine writes besides its journal.
const COMPLETION_BYTES_MIN: u64 = BATCH_BYTES_MAX as u64;

/// Kinds of writes for which there is space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Headroom {
    /// Nothing.
    None,
    /// Completions and renewals, but no claims.
    CompletionsOnly,
    /// All writes.
    All,
}

/// Monitors the disk of a directory.
#[derive(Debug)]
pub(super) struct DiskMonitor {
    path: PathBuf,
    is_reserved: bool,
    /// True if the file system cannot reserve space; as much more must be free then.
    cannot_reserve: bool,
    last: Headroom,
}

impl DiskMonitor {
    /// Checks the disk, and takes or releases the reserve, before the engine writes its first byte.
    pub(super) fn open(path: &Path) -> Self {
        let is_reserved = path.join(FILE).exists();
        let mut disk = Self { path: path.to_owned(), is_reserved, cannot_reserve: false, last: Headroom::All };
        disk.headroom_for(0);
        disk
    }

    /// Returns for which writes there is space, if `bytes` are to be written.
    pub(super) fn headroom_for(&mut self, bytes: u64) -> Headroom {
        let Some(mut left) = bytes_left(&self.path) else { return Headroom::All };
        if self.is_reserved && left < RESERVED_BELOW_BYTES.saturating_add(bytes) {
            self.release();
            left = bytes_left(&self.path).unwrap_or(left);
        } else if !self.is_reserved
            && !self.cannot_reserve
            && left >= (RESERVE_BYTES + CLAIM_BYTES_MIN).saturating_add(bytes)
        {
            self.reserve();
            left = bytes_left(&self.path).unwrap_or(left);
        }
        let for_claims = if self.is_reserved { CLAIM_BYTES_MIN } else { RESERVE_BYTES + CLAIM_BYTES_MIN };
        let headroom = if left >= for_claims.saturating_add(bytes) {
            Headroom::All
        } else if left >= COMPLETION_BYTES_MIN.saturating_add(bytes) {
            Headroom::CompletionsOnly
        } else {
            Headroom::None
        };
        self.log_change(headroom, left);
        headroom
    }

    /// Returns true if all live data, `bytes`, could be rewritten.
    pub(super) fn has_room_to_rewrite(path: &Path, bytes: u64) -> bool {
        bytes_left(path).is_none_or(|left| left >= CLAIM_BYTES_MIN.saturating_add(bytes))
    }

    fn reserve(&mut self) {
        match reserve(&self.path.join(FILE)) {
            Ok(()) => self.is_reserved = true,
            Err(error) => {
                self.cannot_reserve = true;
                tracing::info!(directory = %self.path.display(), %error, "file system cannot reserve space for responses");
                self.release();
            }
        }
    }

    fn release(&mut self) {
        self.is_reserved = false;
        // If the file is missing, there is nothing to release.
        let _ = std::fs::remove_file(self.path.join(FILE));
    }

    fn log_change(&mut self, headroom: Headroom, left: u64) {
        if headroom == self.last {
            return;
        }
        let directory = self.path.display();
        match headroom {
            Headroom::All => tracing::info!(%directory, left, "disk has free space again"),
            Headroom::CompletionsOnly => {
                tracing::warn!(%directory, left, "disk nearly full: claims are rejected, responses are stored")
            }
            Headroom::None => tracing::error!(%directory, left, "disk full: neither claims nor responses are stored"),
        }
        self.last = headroom;
    }
}

/// Returns the bytes that may be written to the file system of a directory.
#[cfg(unix)]
fn bytes_left(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(not(unix))]
fn bytes_left(_: &Path) -> Option<u64> {
    None
}

/// Reserves space beyond the end of the file, so that copying the directory does not copy it.
#[cfg(target_os = "linux")]
fn reserve(file: &Path) -> std::io::Result<()> {
    let file = std::fs::File::create(file)?;
    Ok(rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, RESERVE_BYTES)?)
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
