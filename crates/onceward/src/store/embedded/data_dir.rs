//! Data directory: its lock, its schema, and the last acknowledged batch.
//!
//! ```text
//! PATH/lock        held while a process has the directory open
//! PATH/onceward    schema, and the number of the last acknowledged batch
//! PATH/room        an empty file that reserves disk space for responses
//! PATH/data/       data of fjall
//! ```
//!
//! `onceward` is overwritten in place after each sync, without a sync of its own, which costs a
//! microsecond.
//! After a kill it tells exactly how far the journal must reach.
//! Otherwise an engine that drops the rest of a journal at a flipped bit would lose acknowledged
//! writes unnoticed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk_space;
use super::row::{number, short};
use crate::store::Error;

const LOCK: &str = "lock";
const HEAD: &str = "onceward";
const NEW_HEAD: &str = "onceward.new";
const DATA: &str = "data";
const NEW_DATA: &str = "data.new";

const MAGIC: &[u8; 8] = b"onceward";
const SCHEMA: u32 = 1;

/// Layout: `magic · schema · last batch acknowledged · checksum`.
const HEAD_LEN: usize = 8 + 4 + 8 + 8;

/// Open data directory, locked against other processes.
#[derive(Debug)]
pub(super) struct DataDir {
    pub(super) path: PathBuf,
    head: File,
    /// Number of the last acknowledged batch.
    pub(super) acknowledged: u64,
    /// Released when the last holder closes it, or by the kernel if the process dies.
    pub(super) lock: Arc<File>,
}

impl DataDir {
    /// Opens the directory, or creates it.
    ///
    /// `create` makes the data in a directory that is renamed to [`data`](Self::data) once
    /// complete, so that a crash leaves nothing that passes for a store.
    pub(super) fn open(path: &Path, create: impl FnOnce(&Path) -> Result<(), Error>) -> Result<Self, Error> {
        let failed = |what: &str, error: io::Error| {
            Error::refused(format!("the data directory {} {what}", path.display())).with_source(error)
        };
        if path.exists() && !path.is_dir() {
            return Err(Error::refused(format!("the data directory {} is not a directory", path.display())));
        }
        create_all(path).map_err(|error| failed("cannot be created", error))?;
        is_store_dir(path)?;
        let lock = lock(path)?;
        // Checked again under the lock: another process may have created it meanwhile.
        let is_new = !is_store_dir(path)?;
        if is_new {
            write_new_head(path).map_err(|error| failed("cannot be written", error))?;
        }
        let mut head = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path.join(HEAD))
            .map_err(|error| failed("cannot be written", error))?;
        let acknowledged = read_head(path, &mut head)?;
        let data_dir = Self { path: path.to_owned(), head, acknowledged, lock: Arc::new(lock) };
        if !data_dir.data().is_dir() {
            if acknowledged > 0 {
                return Err(data_dir.damaged("its data are missing"));
            }
            let unfinished = path.join(NEW_DATA);
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished).map_err(|error| failed("cannot be written", error))?;
            }
            create(&unfinished)?;
            // The engine syncs its files, but not all of their directory entries.
            sync_tree(&unfinished).map_err(|error| failed("cannot be written", error))?;
            fs::rename(&unfinished, data_dir.data())
                .and_then(|()| sync_dir(path))
                .map_err(|error| failed("cannot be written", error))?;
        }
        Ok(data_dir)
    }

    /// Returns the path of the data.
    pub(super) fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    /// Records that `batch` is about to be acknowledged.
    pub(super) fn acknowledge(&mut self, batch: u64) -> io::Result<()> {
        self.head.seek(SeekFrom::Start(0))?;
        self.head.write_all(&head(batch))?;
        self.acknowledged = batch;
        Ok(())
    }

    /// Builds the error of a damaged directory.
    pub(super) fn damaged(&self, what: &str) -> Error {
        damaged(&self.path, what)
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::unreadable(format!(
        "the data directory {} is damaged: {what}; restore it from a backup, or move it away and accept that its keys are forgotten",
        path.display()
    ))
}

/// Returns true if the directory holds a store, false if one may be created there.
fn is_store_dir(path: &Path) -> Result<bool, Error> {
    let failed = |error: io::Error| {
        Error::refused(format!("the data directory {} cannot be read", path.display())).with_source(error)
    };
    if path.join(HEAD).try_exists().map_err(failed)? {
        return Ok(true);
    }
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name == DATA {
            // A new store over old data would lose every key.
            return Err(damaged(path, &format!("its file {HEAD:?} is missing")));
        }
        if ![LOCK, NEW_HEAD, disk_space::FILE].iter().any(|known| name == *known) {
            return Err(Error::refused(format!(
                "the directory {} is not a store: it holds {}; name an empty directory, or one that does not exist",
                path.display(),
                name.display()
            )));
        }
    }
    Ok(false)
}

fn lock(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path.join(LOCK)).map_err(
        |error| Error::refused(format!("the data directory {} cannot be written", path.display())).with_source(error),
    )?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::refused(format!("the data directory {} is in use by another process", path.display())))
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(Error::refused(format!("the data directory {} cannot be locked", path.display())).with_source(error))
        }
    }
}

pub(super) fn head(acknowledged: u64) -> [u8; HEAD_LEN] {
    let mut bytes = [0; HEAD_LEN];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&SCHEMA.to_be_bytes());
    bytes[12..20].copy_from_slice(&acknowledged.to_be_bytes());
    let sum = head_sum(&bytes);
    bytes[20..].copy_from_slice(&sum);
    bytes
}

fn head_sum(bytes: &[u8; HEAD_LEN]) -> [u8; 8] {
    short(blake3::Hasher::new().update(&bytes[..20]))
}

fn write_new_head(path: &Path) -> io::Result<()> {
    let unfinished = path.join(NEW_HEAD);
    let mut file = File::create(&unfinished)?;
    file.write_all(&head(0))?;
    file.sync_all()?;
    fs::rename(&unfinished, path.join(HEAD))?;
    sync_dir(path)?;
    // A process that created the directory may have crashed before its entry was durable.
    sync_dir(above(path))
}

fn read_head(path: &Path, file: &mut File) -> Result<u64, Error> {
    let mut bytes = Vec::with_capacity(HEAD_LEN);
    file.read_to_end(&mut bytes).map_err(|error| {
        Error::refused(format!("the data directory {} cannot be read", path.display())).with_source(error)
    })?;
    if bytes.get(..8) != Some(MAGIC) || bytes.len() < 12 {
        return Err(damaged(path, &format!("its file {HEAD:?} cannot be read")));
    }
    // The schema first: a newer one may change the meaning of what follows.
    let schema = bytes[8..12].iter().fold(0, |schema, byte| schema << 8 | u32::from(*byte));
    if schema > SCHEMA {
        return Err(Error::refused(format!(
            "the data directory {} was written by a newer version (schema {schema}; this one knows {SCHEMA})",
            path.display()
        )));
    }
    match <&[u8; HEAD_LEN]>::try_from(bytes.as_slice()) {
        Ok(bytes) if schema == SCHEMA && head_sum(bytes) == bytes[20..] => Ok(number(&bytes[12..])),
        _ => Err(damaged(path, &format!("the checksum of its file {HEAD:?} is wrong"))),
    }
}

/// Creates a directory and its parents, and syncs each in its parent.
fn create_all(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_all(above(path))?;
    let mut builder = fs::DirBuilder::new();
    // It holds responses and the secret that keys are hashed with.
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        result => result?,
    }
    sync_dir(above(path))
}

fn above(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if above != Path::new("") => above,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Syncs all files and directory entries below a directory.
fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            OpenOptions::new().write(true).open(path)?.sync_all()?;
        }
    }
    sync_dir(path)
}

/// Syncs the entries of a directory.
fn sync_dir(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}
