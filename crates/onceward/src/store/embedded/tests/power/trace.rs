//! Parser for the output of `strace`.

use std::collections::HashMap;

/// Traced calls: all that change a file, its name or its durability.
pub(super) const CALLS: &str = "trace=openat,open,creat,write,pwrite64,writev,pwritev,lseek,ftruncate,truncate,rename,\
renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,fsync,fdatasync,sync_file_range,\
copy_file_range,sendfile,dup,dup2,dup3,fcntl,mmap,msync";

/// Successful call.
#[derive(Clone, Debug)]
pub(super) enum Call {
    /// Report of the store.
    Told(String),
    Open {
        fd: u64,
        path: String,
        creates: bool,
        truncates: bool,
        appends: bool,
    },
    Duplicate {
        fd: u64,
        to: u64,
    },
    Write {
        fd: u64,
        bytes: Vec<u8>,
    },
    WriteAt {
        fd: u64,
        at: u64,
        bytes: Vec<u8>,
    },
    Seek {
        fd: u64,
        to: u64,
    },
    Resize {
        fd: u64,
        len: u64,
    },
    Rename {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    MakeFolder {
        path: String,
    },
    Sync {
        fd: u64,
    },
}

/// Parses the calls, in the order in which they returned.
pub(super) fn read(log: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, String> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let (process, line) = line.trim_start().split_once(' ').expect("a process and a call");
        let line = line.trim_start();
        if let Some(beginning) = line.strip_suffix("<unfinished ...>") {
            begun.insert(process, beginning.trim_end().to_owned());
            continue;
        }
        let whole = match line.strip_prefix("<... ") {
            None => line.to_owned(),
            Some(rest) => {
                let (_, end) = rest.split_once(" resumed>").expect("it resumes");
                begun.remove(process).expect("it was begun") + end
            }
        };
        calls.extend(call(&whole));
    }
    calls
}

fn call(line: &str) -> Option<Call> {
    let (call, result) = line.rsplit_once(" = ")?;
    let result: u64 = result.split([' ', '<']).next()?.parse().ok()?;
    let (name, arguments) = call.trim_end().strip_suffix(')')?.split_once('(')?;
    let arguments: Vec<&str> = arguments.split(", ").collect();
    let fd = |at: usize| arguments.get(at)?.split('<').next()?.parse::<u64>().ok();
    let number = |at: usize| arguments.get(at)?.parse::<u64>().ok();
    let bytes = |at: usize| unhex(arguments.get(at)?);
    let text = |at: usize| String::from_utf8(bytes(at)?).ok();
    // Relative to an open directory, or absolute.
    let path = |folder: usize, at: usize| {
        let path = text(at)?;
        let folder = unhex(arguments.get(folder)?.split_once('<')?.1.trim_end_matches('>'))?;
        Some(if path.starts_with('/') { path } else { format!("{}/{path}", String::from_utf8(folder).ok()?) })
    };
    Some(match name {
        "openat" => {
            let flags = arguments.get(2)?;
            let has = |flag: &str| flags.split('|').any(|one| one == flag);
            let (creates, truncates, appends) = (has("O_CREAT"), has("O_TRUNC"), has("O_APPEND"));
            Call::Open { fd: result, path: path(0, 1)?, creates, truncates, appends }
        }
        "dup" => Call::Duplicate { fd: fd(0)?, to: result },
        "fcntl" if arguments.get(1)?.starts_with("F_DUPFD") => Call::Duplicate { fd: fd(0)?, to: result },
        "write" if fd(0)? == 1 => {
            let told = text(1)?;
            Call::Told(told.split_once("> ")?.1.trim_end().to_owned())
        }
        "write" => Call::Write { fd: fd(0)?, bytes: bytes(1)?.get(..result as usize)?.to_vec() },
        "pwrite64" => Call::WriteAt { fd: fd(0)?, at: number(3)?, bytes: bytes(1)?.get(..result as usize)?.to_vec() },
        "lseek" => Call::Seek { fd: fd(0)?, to: result },
        "ftruncate" => Call::Resize { fd: fd(0)?, len: number(1)? },
        "rename" => Call::Rename { from: text(0)?, to: text(1)? },
        "renameat" | "renameat2" => Call::Rename { from: path(0, 1)?, to: path(2, 3)? },
        "unlink" | "rmdir" => Call::Unlink { path: text(0)? },
        "unlinkat" => Call::Unlink { path: path(0, 1)? },
        "mkdir" => Call::MakeFolder { path: text(0)? },
        "mkdirat" => Call::MakeFolder { path: path(0, 1)? },
        "fsync" | "fdatasync" => Call::Sync { fd: fd(0)? },
        "fcntl" => return None,
        // Memory of the process, or files that are only read.
        "mmap" if !call.contains("MAP_SHARED") || !call.contains("PROT_WRITE") => return None,
        _ => panic!("nobody taught this test what {name} does to a disk: {line}"),
    })
}

fn unhex(quoted: &str) -> Option<Vec<u8>> {
    quoted.trim_matches('"').split("\\x").skip(1).map(|byte| u8::from_str_radix(byte, 16).ok()).collect()
}
