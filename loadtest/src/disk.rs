//! A small disk of one's own: an ext4 image on a loop device, that can lose its power and can be full.
//!
//! Needs root, loop devices and `mkfs.ext4`; [`Disk::make`] says which is missing. It is mounted in a mount namespace of the
//! calling thread, and of what that thread starts afterwards, so the kernel cleans up even after a test that was killed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::say;

/// EXT4_GOING_FLAGS_NOLOGFLUSH: the journal is not written out, as when the power fails.
const NO_LOG_FLUSH: u32 = 2;
/// What one write to fill the disk takes.
const FILL_STEP: usize = 1 << 20;

// EXT4_IOC_SHUTDOWN of fs/ext4/ext4.h: 0x8004587d.
nix::ioctl_read!(ext4_shutdown, b'X', 125, u32);

/// A mounted disk; dropping it unmounts and removes it. Whatever uses it must be dropped first.
pub struct Disk {
    directory: TempDir,
    mounted: bool,
}

impl Disk {
    /// Makes and mounts a disk of this size. The error says why this machine cannot.
    pub fn make(megabytes: u64) -> Result<Disk, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("a disk of one's own needs root".to_owned());
        }
        if !Path::new("/dev/loop-control").exists() {
            return Err("this machine has no loop devices (/dev/loop-control)".to_owned());
        }
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(|errno| format!("no mount namespace: {errno}"))?;
        run("mount", &["--make-rprivate", "/"])?;
        let told = |error: io::Error| error.to_string();
        let directory = tempfile::Builder::new().prefix("fanfare-disk-").tempdir().map_err(told)?;
        let mut disk = Disk { directory, mounted: false };
        File::create(disk.image()).and_then(|file| file.set_len(megabytes << 20)).map_err(told)?;
        fs::create_dir(disk.path()).map_err(told)?;
        // Initialised at once: otherwise the kernel does so in the background, and the space that is free would change.
        run("mkfs.ext4", &["-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", &text(&disk.image())])?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// Cuts the power: what was not synced is lost, everything fails with EIO until [`Disk::remount`].
    pub fn power_off(&self) -> io::Result<()> {
        let root = File::open(self.path())?;
        let mut flags = NO_LOG_FLUSH;
        // SAFETY: the descriptor is open, and the kernel reads one u32.
        unsafe { ext4_shutdown(root.as_raw_fd(), &raw mut flags) }?;
        Ok(())
    }

    /// Unmounts it and mounts it again, which replays the journal. Nothing on it may be in use.
    pub fn remount(&mut self) -> Result<(), String> {
        self.unmount()?;
        self.mount()
    }

    /// Bytes that are free.
    pub fn free(&self) -> io::Result<u64> {
        let stat = nix::sys::statvfs::statvfs(&self.path())?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    /// Lets the file `filler` grow until only so many bytes are free; 0 takes all there is.
    pub fn fill(&self, leave: u64) -> io::Result<()> {
        let mut filler = OpenOptions::new().create(true).append(true).open(self.path().join("filler"))?;
        let mut step = FILL_STEP;
        loop {
            let free = self.free()?;
            if leave > 0 && free <= leave {
                return filler.sync_all();
            }
            if leave > 0 {
                step = step.min((free - leave).max(4_096) as usize);
            }
            match filler.write(&vec![0; step]).and_then(|written| filler.sync_data().map(|()| written)) {
                Ok(_) => {}
                Err(full) if full.kind() == io::ErrorKind::StorageFull && step > 1 => step /= 2,
                Err(full) if full.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(other) => return Err(other),
            }
        }
    }

    /// Gives back what [`Disk::fill`] took.
    pub fn empty(&self) -> io::Result<()> {
        match fs::remove_file(self.path().join("filler")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn mount(&mut self) -> Result<(), String> {
        // The loop device is made with the mount and goes with it.
        run("mount", &["-t", "ext4", "-o", "loop", &text(&self.image()), &text(&self.path())])?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        let mut tries = 0;
        // A killed process lets go of its files a moment after its end was told.
        while let Err(problem) = run("umount", &[&text(&self.path())]) {
            tries += 1;
            if tries == 50 {
                return Err(problem);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted
            && let Err(problem) = self.unmount()
        {
            say::note(problem);
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    // Not every user's PATH has what only root needs.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output =
        Command::new(program).args(arguments).env("PATH", path).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_synced_is_lost_and_a_full_disk_is_full() {
        let mut disk = match Disk::make(16) {
            Ok(disk) => disk,
            Err(reason) => return println!("SKIPPED: {reason}"),
        };
        let kept = disk.path().join("kept");
        File::create(&kept).and_then(|mut file| file.write_all(b"kept").and_then(|()| file.sync_all())).unwrap();
        File::open(disk.path()).unwrap().sync_all().unwrap();
        fs::write(disk.path().join("lost"), b"lost").unwrap();
        disk.power_off().unwrap();
        assert!(fs::write(disk.path().join("late"), b"late").is_err());
        disk.remount().unwrap();
        assert_eq!(fs::read(&kept).unwrap(), b"kept");
        assert!(!disk.path().join("lost").exists());
        disk.fill(4 << 20).unwrap();
        assert!(disk.free().unwrap() <= 4 << 20);
        disk.fill(0).unwrap();
        let problem = fs::write(disk.path().join("more"), vec![1; 65_536]).unwrap_err();
        assert_eq!(problem.kind(), io::ErrorKind::StorageFull);
        disk.empty().unwrap();
        assert!(disk.free().unwrap() > 8 << 20);
    }
}
