//! Simulated disk that keeps synced data, and any part of the rest.
//!
//! It is as adverse as POSIX allows, and more than common file systems are: a sync of a file keeps
//! its bytes, a sync of its directory keeps its name, and neither keeps the other.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::RngExt;
use rand::rngs::StdRng;

use super::trace::Call;

/// Size of a sector, which is written completely or not at all.
const SECTOR: u64 = 512;

/// Part of the unsynced data that survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    /// Nothing.
    Synced,
    /// Everything, as after a kill.
    All,
    /// Some writes, in any order, and some names.
    Some,
    /// All writes of a file up to one, and a part of that one.
    Torn,
}

#[derive(Clone)]
enum Change {
    Write { at: u64, bytes: Vec<u8> },
    Resize(u64),
}

enum Node {
    File { changes: Vec<Change>, synced: usize, len: u64 },
    DataDir { now: BTreeMap<String, usize>, synced: BTreeMap<String, usize> },
}

struct Open {
    node: usize,
    at: u64,
    appends: bool,
}

pub(super) struct DiskMonitor {
    root: PathBuf,
    nodes: Vec<Node>,
    open: HashMap<u64, Open>,
    duplicates: HashMap<u64, u64>,
}

impl DiskMonitor {
    pub(super) fn new(root: &Path) -> Self {
        let nodes = vec![Node::DataDir { now: BTreeMap::new(), synced: BTreeMap::new() }];
        Self { root: root.to_owned(), nodes, open: HashMap::new(), duplicates: HashMap::new() }
    }

    /// Applies a call. Returns true if it concerns this disk.
    pub(super) fn take(&mut self, call: &Call) -> bool {
        self.try_take(call).is_some()
    }

    fn try_take(&mut self, call: &Call) -> Option<()> {
        match call {
            Call::Told(_) => return None,
            Call::Open { fd, path, creates, truncates, appends } => {
                self.duplicates.remove(fd);
                self.open.remove(fd);
                let (folder, name) = self.entry(path)?;
                let node = match self.child(folder, &name) {
                    Some(node) => node,
                    None if *creates => self.add(folder, name, Node::File { changes: vec![], synced: 0, len: 0 }),
                    None => return None,
                };
                self.open.insert(*fd, Open { node, at: 0, appends: *appends });
                if *truncates {
                    self.change(node, Change::Resize(0));
                }
            }
            Call::Duplicate { fd, to } => {
                let fd = self.original(*fd);
                self.open.get(&fd)?;
                self.open.remove(to);
                self.duplicates.insert(*to, fd);
            }
            Call::Write { fd, bytes } => {
                let (fd, len) = (self.original(*fd), bytes.len() as u64);
                let Open { node, at, appends } = *self.open.get(&fd)?;
                let at = if appends { self.len(node) } else { at };
                self.open.get_mut(&fd)?.at = at + len;
                self.change(node, Change::Write { at, bytes: bytes.clone() });
            }
            Call::WriteAt { fd, at, bytes } => {
                let node = self.open.get(&self.original(*fd))?.node;
                self.change(node, Change::Write { at: *at, bytes: bytes.clone() });
            }
            Call::Seek { fd, to } => {
                let fd = self.original(*fd);
                self.open.get_mut(&fd)?.at = *to;
                return None;
            }
            Call::Resize { fd, len } => {
                let node = self.open.get(&self.original(*fd))?.node;
                self.change(node, Change::Resize(*len));
            }
            Call::Rename { from, to } => {
                let (from, from_name) = self.entry(from)?;
                let (to, to_name) = self.entry(to)?;
                let node = self.children(from)?.remove(&from_name)?;
                self.children(to)?.insert(to_name, node);
            }
            Call::Unlink { path } => {
                let (folder, name) = self.entry(path)?;
                self.children(folder)?.remove(&name)?;
            }
            Call::MakeFolder { path } => {
                let (folder, name) = self.entry(path)?;
                self.add(folder, name, Node::DataDir { now: BTreeMap::new(), synced: BTreeMap::new() });
            }
            Call::Sync { fd } => {
                let node = self.open.get(&self.original(*fd))?.node;
                match &mut self.nodes[node] {
                    Node::File { changes, synced, .. } => *synced = changes.len(),
                    Node::DataDir { now, synced } => synced.clone_from(now),
                }
            }
        }
        Some(())
    }

    fn original(&self, fd: u64) -> u64 {
        *self.duplicates.get(&fd).unwrap_or(&fd)
    }

    /// Returns the directory of a path, and the name in it.
    fn entry(&self, path: &str) -> Option<(usize, String)> {
        let path = Path::new(path).strip_prefix(&self.root).ok()?;
        let mut parts: Vec<_> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        // The root itself.
        let name = parts.pop().unwrap_or_else(|| ".".to_owned());
        let folder = parts.iter().try_fold(0, |folder, part| self.child(folder, part))?;
        Some((folder, name))
    }

    fn child(&self, folder: usize, name: &str) -> Option<usize> {
        match &self.nodes[folder] {
            Node::DataDir { .. } if name == "." => Some(folder),
            Node::DataDir { now, .. } => now.get(name).copied(),
            Node::File { .. } => None,
        }
    }

    fn children(&mut self, folder: usize) -> Option<&mut BTreeMap<String, usize>> {
        match &mut self.nodes[folder] {
            Node::DataDir { now, .. } => Some(now),
            Node::File { .. } => None,
        }
    }

    fn add(&mut self, folder: usize, name: String, node: Node) -> usize {
        let number = self.nodes.len();
        self.nodes.push(node);
        self.children(folder).expect("a folder").insert(name, number);
        number
    }

    fn len(&self, node: usize) -> u64 {
        match &self.nodes[node] {
            Node::File { len, .. } => *len,
            Node::DataDir { .. } => 0,
        }
    }

    fn change(&mut self, node: usize, change: Change) {
        if let Node::File { changes, len, .. } = &mut self.nodes[node] {
            *len = match &change {
                Change::Write { at, bytes } => (*len).max(at + bytes.len() as u64),
                Change::Resize(len) => *len,
            };
            changes.push(change);
        }
    }

    /// Writes the surviving data into a directory.
    pub(super) fn lose_power(&self, keeps: Keeps, random: &mut StdRng, into: &Path) {
        self.leave(0, keeps, random, into);
    }

    fn leave(&self, node: usize, keeps: Keeps, random: &mut StdRng, into: &Path) {
        match &self.nodes[node] {
            Node::DataDir { now, synced } => {
                if node != 0 {
                    fs::create_dir(into).unwrap();
                }
                let names = match keeps {
                    Keeps::All => now.clone(),
                    Keeps::Synced | Keeps::Torn => synced.clone(),
                    // Each name as it was, or as it is.
                    Keeps::Some => {
                        let mut names = BTreeMap::new();
                        for name in now.keys().chain(synced.keys()) {
                            let from = if random.random_bool(0.5) { now } else { synced };
                            names.extend(from.get(name).map(|node| (name.clone(), *node)));
                        }
                        names
                    }
                };
                for (name, child) in names {
                    self.leave(child, keeps, random, &into.join(name));
                }
            }
            Node::File { changes, synced, .. } => {
                let file = File::create(into).unwrap();
                let (kept, open) = changes.split_at(*synced);
                kept.iter().for_each(|change| apply(&file, change));
                match keeps {
                    Keeps::Synced => {}
                    Keeps::All => open.iter().for_each(|change| apply(&file, change)),
                    Keeps::Some => {
                        open.iter().filter(|_| random.random_bool(0.5)).for_each(|change| apply(&file, change));
                    }
                    Keeps::Torn => {
                        let whole = random.random_range(0..=open.len());
                        open[..whole].iter().for_each(|change| apply(&file, change));
                        if let Some(Change::Write { at, bytes }) = open.get(whole)
                            && at / SECTOR != (at + bytes.len() as u64 - 1) / SECTOR
                        {
                            let len = random.random_range(0..=bytes.len());
                            apply(&file, &Change::Write { at: *at, bytes: bytes[..len].to_vec() });
                        }
                    }
                }
            }
        }
    }
}

fn apply(file: &File, change: &Change) {
    match change {
        Change::Write { at, bytes } => file.write_all_at(bytes, *at).unwrap(),
        Change::Resize(len) => file.set_len(*len).unwrap(),
    }
}
