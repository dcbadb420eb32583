//! Checks the tables before `fjall` opens them.
//!
//! `fjall` (3.1) verifies the checksum of each block that it reads.
//! It does not verify the list of tables, nor the contents of a table before it allocates memory
//! for them.
//! A flipped bit in the list makes tables vanish, or panics in a thread and ends the process. One
//! in the contents asks for forty gigabytes.
//! Both are small, so both are checked here.
//!
//! Lists and tables end in `"TOC!" count:u32 (start:u64 length:u64 name:u16 name)…`, then
//! `"SFA!" 1 0 checksum:u128 contents:u64 length:u64`. Numbers are little-endian.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::journal::CheckError;

const TRAILER: usize = 38;

/// Upper bound on the size of contents, which have one line per section of a table.
const CONTENTS_MAX: u64 = 1 << 20;

/// Checks the lists and the contents of all tables below `data`.
pub(super) fn check(data: &Path) -> Result<(), CheckError> {
    for entry in fs::read_dir(data.join("keyspaces"))? {
        let keyspace = entry?.path();
        if !keyspace.join("current").exists() {
            continue;
        }
        let Some(tables) = list_of_tables(&keyspace)? else {
            return Err(CheckError::Damaged(format!("the list of tables in {} cannot be read", keyspace.display())));
        };
        // Only listed tables are checked: a table left half-written by a kill is on no list and is
        // deleted.
        for table in tables {
            let table = keyspace.join("tables").join(table.to_string());
            if !File::open(&table).and_then(contents).is_ok_and(|contents| contents.is_some()) {
                return Err(CheckError::Damaged(format!("{} cannot be read", table.display())));
            }
        }
    }
    Ok(())
}

/// Returns the numbers of the tables of a keyspace.
///
/// `current` is `version:u64 checksum:u128 0`, with the checksum of the file `v<version>` next to
/// it. Its section `tables` is `levels:u8`, then `runs:u8` for each, then `tables:u32` for each,
/// then `number:u64 0 checksum:u128 seqno:u64` for each.
fn list_of_tables(keyspace: &Path) -> io::Result<Option<Vec<u64>>> {
    let current = fs::read(keyspace.join("current"))?;
    let parts = current.split_first_chunk().and_then(|(version, rest)| Some((version, rest.split_first_chunk()?)));
    let Some((version, (sum, [0]))) = parts else { return Ok(None) };
    let list = keyspace.join(format!("v{}", u64::from_le_bytes(*version)));
    if !list.exists() {
        return Ok(None);
    }
    let list = fs::read(list)?;
    if xxh3_128(&list) != u128::from_le_bytes(*sum) {
        return Ok(None);
    }
    let contents = contents(io::Cursor::new(&list))?;
    Ok(contents.and_then(|contents| {
        let (start, len) = section(&contents, b"tables")?;
        let end = start.checked_add(len)?;
        numbers(list.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)?)
    }))
}

fn numbers(mut list: &[u8]) -> Option<Vec<u64>> {
    let mut found = Vec::new();
    for _ in 0..take(&mut list).map(u8::from_le_bytes)? {
        for _ in 0..take(&mut list).map(u8::from_le_bytes)? {
            for _ in 0..take(&mut list).map(u32::from_le_bytes)? {
                found.push(take(&mut list).map(u64::from_le_bytes)?);
                take::<{ 1 + 16 + 8 }>(&mut list)?;
            }
        }
    }
    Some(found)
}

/// Returns the contents of a file if their checksum is right.
fn contents(mut file: impl Read + Seek) -> io::Result<Option<Vec<u8>>> {
    let Some(end) = file.seek(SeekFrom::End(0))?.checked_sub(TRAILER as u64) else { return Ok(None) };
    file.seek(SeekFrom::Start(end))?;
    let mut trailer = [0; TRAILER];
    file.read_exact(&mut trailer)?;
    let mut rest = &trailer[..];
    let mark = take(&mut rest);
    let (sum, start) = (take(&mut rest).map(u128::from_le_bytes), take(&mut rest).map(u64::from_le_bytes));
    let (Some(b"SFA!\x01\0"), Some(sum), Some(start)) = (mark.as_ref(), sum, start) else { return Ok(None) };
    if start > end || end - start > CONTENTS_MAX {
        return Ok(None);
    }
    let mut contents = vec![0; (end - start) as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut contents)?;
    Ok((xxh3_128(&contents) == sum).then_some(contents))
}

/// Returns the offset and length of a section.
fn section(mut contents: &[u8], name: &[u8]) -> Option<(u64, u64)> {
    take::<4>(&mut contents).filter(|mark| mark == b"TOC!")?;
    for _ in 0..take(&mut contents).map(u32::from_le_bytes)? {
        let start = take(&mut contents).map(u64::from_le_bytes)?;
        let len = take(&mut contents).map(u64::from_le_bytes)?;
        let name_len = take(&mut contents).map(u16::from_le_bytes)?;
        let (its_name, rest) = contents.split_at_checked(name_len.into())?;
        if its_name == name {
            return Some((start, len));
        }
        contents = rest;
    }
    None
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}
