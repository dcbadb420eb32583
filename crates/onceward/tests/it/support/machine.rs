//! Machine that can lose power: a small file system on which a server keeps its data.
//!
//! The kernel is instructed to shut the file system down without writing what was not synced
//! (`xfs_io -c
//! shutdown`, which `ext4` supports too). It is then mounted again with the content of the disk.
//! Writes handed to the disk count as kept, synced or not: the disk has no volatile cache.

#![allow(dead_code, reason = "shared by tests that need different parts of it")]

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Machine with one disk.
#[derive(Debug)]
pub(crate) struct Machine {
    disk: PathBuf,
    watcher: Child,
    whole: tempfile::TempDir,
}

impl Machine {
    /// Creates a machine with a disk of this size.
    pub(crate) fn start(megabytes: u32) -> Self {
        let whole = tempfile::tempdir().unwrap();
        // A server that does not run as root must reach its own directory below.
        fs::set_permissions(whole.path(), Permissions::from_mode(0o711)).unwrap();
        let (image, disk) = (whole.path().join("image"), whole.path().join("disk"));
        File::create(&image).unwrap().set_len(u64::from(megabytes) << 20).unwrap();
        fs::create_dir(&disk).unwrap();
        run(Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        // It ends with the test, also if all processes of the test are killed.
        let mut watcher = Command::new("sh");
        watcher.args(["-c", "cat >/dev/null; umount -l \"$0\"; rm -f \"$1\""]).args([&disk, &image]).process_group(0);
        watcher.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let machine = Self { disk, watcher: watcher.spawn().unwrap(), whole };
        machine.mount();
        machine
    }

    /// Returns the path of the disk.
    pub(crate) fn disk(&self) -> &Path {
        &self.disk
    }

    /// Syncs the disk: keeps what no server guarantees, such as the directory created for it.
    pub(crate) fn sync(&self) {
        run(Command::new("sync").arg("-f").arg(&self.disk));
    }

    /// Loses power and restores it: only synced data remain. The server must have been killed
    /// before.
    pub(crate) fn lose_power(&self) {
        let (kept, lost) = (self.disk.join("kept"), self.disk.join("lost"));
        fs::write(&kept, "synced").unwrap();
        File::open(&kept).unwrap().sync_all().unwrap();
        fs::write(&lost, "not synced").unwrap();
        run(Command::new("/usr/sbin/xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.disk));
        run(Command::new("umount").arg(&self.disk));
        self.mount();
        assert_eq!(fs::read(&kept).unwrap(), b"synced");
        assert!(!fs::read(&lost).is_ok_and(|it| it == b"not synced"), "nothing was lost, so nothing is shown");
        let _ = fs::remove_file(&lost);
    }

    /// Fills the disk.
    pub(crate) fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.disk.join("filler")).unwrap();
        for len in [1 << 20, 4096, 4096] {
            while filler.write_all(&vec![7; len]).is_ok() {}
            // Unused preallocated blocks become free again.
            filler.sync_all().unwrap();
        }
    }

    /// Frees the disk.
    pub(crate) fn make_room(&self) {
        fs::remove_file(self.disk.join("filler")).unwrap();
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.whole.path().join("image")).arg(&self.disk));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

fn run(command: &mut Command) {
    let said = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{command:?} (a disk of its own takes root): {text}");
}
