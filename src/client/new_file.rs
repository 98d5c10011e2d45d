//! Files that a command writes and finds beside those that it was told of.
//!
//! Promise: a command writes through no name that somebody else may have prepared. A file is made anew, under a name that nothing had
//! before, and gets its own by rename, which replaces a link and never follows it. What an earlier run left is read only if it is a
//! plain file of this user's, or of root's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

/// Names that are tried: those of runs that were killed, under the same process number, are in the way.
const TRIES: u32 = 16;

/// A file of mode 0600 that is removed unless it gets its name.
pub struct NewFile {
    pub file: File,
    path: PathBuf,
    /// The name it has until then. None: it has its own, or it is a device.
    new: Option<PathBuf>,
}

impl NewFile {
    /// Makes a file that will be `path`. A device of that name, such as /dev/null, is written to instead. Anything else that is no
    /// file stands in the way: [`io::ErrorKind::InvalidInput`].
    pub fn make(path: &Path) -> io::Result<NewFile> {
        let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why);
        match fs::symlink_metadata(path).map(|found| found.file_type()) {
            Ok(found) if found.is_char_device() => {
                let device = options().write(true).open(path)?;
                if !device.metadata()?.file_type().is_char_device() {
                    return Err(refused("it was a device a moment ago"));
                }
                return Ok(NewFile { file: device, path: path.to_owned(), new: None });
            }
            // To put a file in place of /dev/stdout would harm others.
            Ok(found) if found.is_symlink() && path.metadata().is_ok_and(|end| !end.is_file()) => {
                return Err(refused("it is a link to something else than a file (`-` is standard output)"));
            }
            Ok(found) if !found.is_file() && !found.is_symlink() => return Err(refused("it is no file")),
            _ => {}
        }
        let mut tried = 0;
        loop {
            let new = beside(path, &format!(".new-{}-{tried}", std::process::id()));
            match options().write(true).create_new(true).mode(0o600).open(&new) {
                Ok(file) => return Ok(NewFile { file, path: path.to_owned(), new: Some(new) }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tried < TRIES => tried += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Its name in the end.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name; what had it is replaced.
    pub fn rename(&mut self) -> io::Result<()> {
        if let Some(new) = &self.new {
            fs::rename(new, &self.path)?;
            self.new = None;
        }
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(new) = &self.new {
            let _removed = fs::remove_file(new);
        }
    }
}

/// Opens what an earlier run of this user's, or of root's, has left at `path`. None: there is nothing, or it is a link, no plain file,
/// or somebody else's.
pub fn open_own(path: &Path) -> io::Result<Option<File>> {
    let file = match options().read(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ELOOP) => return Ok(None),
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    let ours = found.is_file() && (found.uid() == 0 || found.uid() == geteuid().as_raw());
    Ok(ours.then_some(file))
}

const ELOOP: i32 = nix::errno::Errno::ELOOP as i32;

/// Follows no link, and waits for no other end of a pipe.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
    options
}

/// `path` with something behind its name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_is_replaced_and_never_followed() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let (victim, path) = (directory.path().join("victim"), directory.path().join("x"));
        fs::write(&victim, "precious").expect("writable");
        symlink(&victim, &path).expect("writable");
        // The name that it has until then was guessed, too.
        let guessed = beside(&path, &format!(".new-{}-0", std::process::id()));
        symlink(&victim, &guessed).expect("writable");
        let mut new = NewFile::make(&path).expect("another name is found");
        new.file.write_all(b"ours").expect("writable");
        assert_eq!(open_own(&path).expect("readable").map(drop), None, "a link is not read either");
        new.rename().expect("writable");
        assert_eq!(fs::read_to_string(&victim).expect("it is there"), "precious");
        let mut text = String::new();
        open_own(&path).expect("readable").expect("it is ours").read_to_string(&mut text).expect("readable");
        assert_eq!(text, "ours");
        assert_eq!(path.symlink_metadata().expect("there").mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_device_stays_and_what_is_no_file_is_refused() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let mut null = NewFile::make(Path::new("/dev/null")).expect("everybody may write to it");
        null.file.write_all(b"gone").expect("it takes everything");
        null.rename().expect("nothing to do");
        drop(null);
        assert!(fs::symlink_metadata("/dev/null").expect("it is there").file_type().is_char_device());
        let link = directory.path().join("link");
        symlink("/dev/null", &link).expect("writable");
        for path in [&link, directory.path()] {
            assert_eq!(NewFile::make(path).err().expect("no file").kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1);
    }

    #[test]
    fn a_stranger_s_file_is_not_read() {
        if !geteuid().is_root() {
            println!("SKIPPED: only root can give a file away");
            return;
        }
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let path = directory.path().join("x.import-state");
        fs::write(&path, "{}").expect("writable");
        assert!(open_own(&path).expect("readable").is_some());
        std::os::unix::fs::chown(&path, Some(65_534), None).expect("root may");
        assert!(open_own(&path).expect("readable").is_none());
        fs::remove_file(&path).expect("writable");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("writable");
        assert!(open_own(&path).expect("it waits for nobody").is_none());
    }
}
