//! The folder: whose it is, who has it open, and what was last acknowledged from it.
//!
//! ```text
//! PATH/lock        held while a process has the folder open
//! PATH/onceward    schema, and the number of the last batch that callers were told of
//! PATH/room        an empty file that holds a part of the disk, for answers
//! PATH/data/       what fjall keeps
//! ```
//!
//! `onceward` is written over in place after each sync, without a sync of its own. It costs a microsecond, and after a kill
//! it tells exactly how far the journal must reach: an engine that drops the rest of a journal where it meets a flipped bit
//! would otherwise forget what callers were told, and nobody could see it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::room;
use super::row::{number, short};
use crate::store::Error;

const LOCK: &str = "lock";
const HEAD: &str = "onceward";
const NEW_HEAD: &str = "onceward.new";
const DATA: &str = "data";
const NEW_DATA: &str = "data.new";

const MAGIC: &[u8; 8] = b"onceward";
const SCHEMA: u32 = 1;

/// `magic · schema · last batch acknowledged · checksum`.
const HEAD_LEN: usize = 8 + 4 + 8 + 8;

/// An open folder, which no other process can open.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    head: File,
    /// The number of the last batch that callers were told of.
    pub(super) acknowledged: u64,
    /// Let go when the last holder closes it, by the kernel if the process dies.
    pub(super) lock: Arc<File>,
}

impl Folder {
    /// Opens the folder, or creates it. `create` makes the data in a folder that becomes [`data`](Self::data) once it is
    /// whole, so that dying in the middle of it leaves nothing that passes for a store.
    pub(super) fn open(path: &Path, create: impl FnOnce(&Path) -> Result<(), Error>) -> Result<Self, Error> {
        let failed = |what: &str, error: io::Error| {
            Error::refused(format!("the store's folder {} {what}", path.display())).because(error)
        };
        if path.exists() && !path.is_dir() {
            return Err(Error::refused(format!("the store's folder {} is not a folder", path.display())));
        }
        create_all(path).map_err(|error| failed("cannot be created", error))?;
        ours(path)?;
        let lock = lock(path)?;
        // Looked at once more: until the lock was held, another process may have been creating it.
        let is_new = !ours(path)?;
        if is_new {
            write_new_head(path).map_err(|error| failed("cannot be written", error))?;
        }
        let mut head = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path.join(HEAD))
            .map_err(|error| failed("cannot be written", error))?;
        let acknowledged = read_head(path, &mut head)?;
        let folder = Self { path: path.to_owned(), head, acknowledged, lock: Arc::new(lock) };
        if !folder.data().is_dir() {
            if acknowledged > 0 {
                return Err(folder.damaged("its data are gone"));
            }
            let unfinished = path.join(NEW_DATA);
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished).map_err(|error| failed("cannot be written", error))?;
            }
            create(&unfinished)?;
            // The engine makes files durable, and not all of the names by which they are found.
            sync_tree(&unfinished).map_err(|error| failed("cannot be written", error))?;
            fs::rename(&unfinished, folder.data())
                .and_then(|()| sync_folder(path))
                .map_err(|error| failed("cannot be written", error))?;
        }
        Ok(folder)
    }

    /// Where the data are.
    pub(super) fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    /// Notes that callers are about to be told of `batch`.
    pub(super) fn acknowledge(&mut self, batch: u64) -> io::Result<()> {
        self.head.seek(SeekFrom::Start(0))?;
        self.head.write_all(&head(batch))?;
        self.acknowledged = batch;
        Ok(())
    }

    /// What keeps the folder from being opened at all.
    pub(super) fn damaged(&self, what: &str) -> Error {
        damaged(&self.path, what)
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::unreadable(format!(
        "the store's folder {} is damaged: {what}; restore it from a backup, or move it away and accept that its keys are forgotten",
        path.display()
    ))
}

/// Whether there is a store in the folder, or, if not, whether one may be made there.
fn ours(path: &Path) -> Result<bool, Error> {
    let failed = |error: io::Error| {
        Error::refused(format!("the store's folder {} cannot be read", path.display())).because(error)
    };
    if path.join(HEAD).try_exists().map_err(failed)? {
        return Ok(true);
    }
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name == DATA {
            // To make a new store over old data would be to forget every key.
            return Err(damaged(path, &format!("its file {HEAD:?} is gone")));
        }
        if ![LOCK, NEW_HEAD, room::FILE].iter().any(|known| name == *known) {
            return Err(Error::refused(format!(
                "the folder {} is not a store: it holds {}; name an empty folder, or one that does not exist",
                path.display(),
                name.display()
            )));
        }
    }
    Ok(false)
}

fn lock(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path.join(LOCK)).map_err(
        |error| Error::refused(format!("the store's folder {} cannot be written", path.display())).because(error),
    )?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::refused(format!("the store's folder {} is in use by another process", path.display())))
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(Error::refused(format!("the store's folder {} cannot be locked", path.display())).because(error))
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
    sync_folder(path)?;
    // Whoever created the folder may have died before its name was durable.
    sync_folder(above(path))
}

fn read_head(path: &Path, file: &mut File) -> Result<u64, Error> {
    let mut bytes = Vec::with_capacity(HEAD_LEN);
    file.read_to_end(&mut bytes).map_err(|error| {
        Error::refused(format!("the store's folder {} cannot be read", path.display())).because(error)
    })?;
    if bytes.get(..8) != Some(MAGIC) || bytes.len() < 12 {
        return Err(damaged(path, &format!("its file {HEAD:?} cannot be read")));
    }
    // The schema first: what follows it may mean something else in a newer one.
    let schema = bytes[8..12].iter().fold(0, |schema, byte| schema << 8 | u32::from(*byte));
    if schema > SCHEMA {
        return Err(Error::refused(format!(
            "the store's folder {} was written by a newer version (schema {schema}; this one knows {SCHEMA})",
            path.display()
        )));
    }
    match <&[u8; HEAD_LEN]>::try_from(bytes.as_slice()) {
        Ok(bytes) if schema == SCHEMA && head_sum(bytes) == bytes[20..] => Ok(number(&bytes[12..])),
        _ => Err(damaged(path, &format!("the checksum of its file {HEAD:?} fails"))),
    }
}

/// Creates a folder and those above it, each made durable in the one that holds it.
fn create_all(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_all(above(path))?;
    let mut builder = fs::DirBuilder::new();
    // It holds answers, and the secret that keys are hashed with.
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        result => result?,
    }
    sync_folder(above(path))
}

fn above(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if above != Path::new("") => above,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Makes all that is in a folder durable, and its names.
fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            OpenOptions::new().write(true).open(path)?.sync_all()?;
        }
    }
    sync_folder(path)
}

/// Makes names in a folder durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}
