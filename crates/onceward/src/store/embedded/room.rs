//! Room on the disk, kept for how attempts end.
//!
//! A claim that finds the disk full is refused, and nothing was executed. An answer that finds it full is an execution of
//! which nobody will be told again. So a part of the disk is taken beforehand, as a file that holds nothing, and claims are
//! refused as soon as there is not as much besides. What ends then still finds room; if that runs out too, the file is
//! deleted, and what it held goes to answers. Where even that is used up, an answer is refused before the engine writes a
//! byte of it, since the engine takes no writes at all after one that failed.
//!
//! Where the system cannot say how much is left, claims are taken and all is left to the engine.

use std::path::{Path, PathBuf};

use super::writer::BATCH_BYTES_MAX;

/// The file that holds the reserve.
pub(super) const FILE: &str = "room";

/// How much is taken beforehand.
pub(super) const RESERVE_BYTES: u64 = 64 << 20;

/// New claims are refused when less is left. The engine needs as much to write its memory into tables, and fails for good
/// if it cannot.
pub(super) const CLAIM_BYTES_MIN: u64 = 64 << 20;

/// The reserve is given up when less is left.
const RESERVED_BELOW_BYTES: u64 = 40 << 20;

/// What must be left after a batch, for what the engine writes beside its journal.
const END_BYTES_MIN: u64 = BATCH_BYTES_MAX as u64;

/// What there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Room {
    /// Nothing.
    Nothing,
    /// How attempts end, and no new ones.
    Ends,
    /// All.
    Claims,
}

/// The disk beneath a folder.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    is_reserved: bool,
    /// The file system keeps no room; then as much more must be left.
    is_unable: bool,
    last: Room,
}

impl Disk {
    /// Looks at the disk, and takes or gives up the reserve: before the engine writes its first byte.
    pub(super) fn open(folder: &Path) -> Self {
        let is_reserved = folder.join(FILE).exists();
        let mut disk = Self { folder: folder.to_owned(), is_reserved, is_unable: false, last: Room::Claims };
        disk.room_for(0);
        disk
    }

    /// What there is room for, if `bytes` are to be written.
    pub(super) fn room_for(&mut self, bytes: u64) -> Room {
        let Some(mut left) = bytes_left(&self.folder) else { return Room::Claims };
        if self.is_reserved && left < RESERVED_BELOW_BYTES.saturating_add(bytes) {
            self.give_up();
            left = bytes_left(&self.folder).unwrap_or(left);
        } else if !self.is_reserved
            && !self.is_unable
            && left >= (RESERVE_BYTES + CLAIM_BYTES_MIN).saturating_add(bytes)
        {
            self.reserve();
            left = bytes_left(&self.folder).unwrap_or(left);
        }
        let for_claims = if self.is_reserved { CLAIM_BYTES_MIN } else { RESERVE_BYTES + CLAIM_BYTES_MIN };
        let room = if left >= for_claims.saturating_add(bytes) {
            Room::Claims
        } else if left >= END_BYTES_MIN.saturating_add(bytes) {
            Room::Ends
        } else {
            Room::Nothing
        };
        self.tell(room, left);
        room
    }

    /// Whether all that lives, `bytes`, could be written once more.
    pub(super) fn has_room_to_rewrite(folder: &Path, bytes: u64) -> bool {
        bytes_left(folder).is_none_or(|left| left >= CLAIM_BYTES_MIN.saturating_add(bytes))
    }

    fn reserve(&mut self) {
        match reserve(&self.folder.join(FILE)) {
            Ok(()) => self.is_reserved = true,
            Err(error) => {
                self.is_unable = true;
                tracing::info!(folder = %self.folder.display(), %error, "the file system keeps no room for answers beforehand");
                self.give_up();
            }
        }
    }

    fn give_up(&mut self) {
        self.is_reserved = false;
        // If it is not there, there was nothing to give up.
        let _ = std::fs::remove_file(self.folder.join(FILE));
    }

    fn tell(&mut self, room: Room, left: u64) {
        if room == self.last {
            return;
        }
        let folder = self.folder.display();
        match room {
            Room::Claims => tracing::info!(%folder, left, "the disk has room again"),
            Room::Ends => tracing::warn!(%folder, left, "the disk is nearly full: no new claims, answers are kept"),
            Room::Nothing => tracing::error!(%folder, left, "the disk is full: neither claims nor answers are kept"),
        }
        self.last = room;
    }
}

/// How many bytes may be written to the file system of a folder.
#[cfg(unix)]
fn bytes_left(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(not(unix))]
fn bytes_left(_: &Path) -> Option<u64> {
    None
}

/// Beyond the end of the file, so that nobody who copies the folder copies that.
#[cfg(target_os = "linux")]
fn reserve(file: &Path) -> std::io::Result<()> {
    let file = std::fs::File::create(file)?;
    Ok(rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, RESERVE_BYTES)?)
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
