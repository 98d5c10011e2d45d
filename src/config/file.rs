//! Who else could change a file that says how the daemon works, as sshd asks of its own (sshd_config(5), `StrictModes`).
//!
//! Of a configuration this is told and no more: it holds no secret, and a daemon that does not start harms more. A key file is
//! refused by [`crate::vapid::key`]; here only its directory is looked at.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Uid, User, geteuid};

use super::Config;
use crate::printable;

/// Who may remove or rename files of others in a directory: only their owners.
const STICKY: u32 = 0o1000;

impl Config {
    /// What is wrong with the rights on the files that it names, and on their directories, one sentence each. They may also belong to
    /// the user `daemon`, by number.
    pub fn doubts(&self, daemon: Option<u32>) -> BTreeSet<String> {
        let keys = self.apps.values().flat_map(|app| &app.vapid_keys);
        let roots = self.deliver.extra_roots.iter().flat_map(|file| doubts(file, daemon));
        keys.filter_map(|file| directory_doubt(file, daemon)).chain(roots).collect()
    }
}

/// What is wrong with the rights on `file` and on its directory, one sentence each. What cannot be looked at is told by whoever reads
/// it.
pub fn doubts(file: &Path, daemon: Option<u32>) -> Vec<String> {
    let found = file.metadata().ok().and_then(|found| doubt(file, &found, daemon));
    found.into_iter().chain(directory_doubt(file, daemon)).collect()
}

fn directory_doubt(file: &Path, daemon: Option<u32>) -> Option<String> {
    let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    doubt(directory, &directory.metadata().ok()?, daemon)
}

fn doubt(path: &Path, found: &Metadata, daemon: Option<u32>) -> Option<String> {
    let shown = printable::path(path);
    let (mode, owner) = (found.mode() & 0o7777, found.uid());
    if mode & 0o022 != 0 && !(found.is_dir() && mode & STICKY != 0) {
        return Some(format!(
            "{shown} can be changed by its group or by others (mode {mode:04o}), and with it what the daemon does: chmod go-w {shown}"
        ));
    }
    if owner != 0 && owner != geteuid().as_raw() && Some(owner) != daemon {
        let user = User::from_uid(Uid::from_raw(owner)).ok().flatten().map_or(owner.to_string(), |user| user.name);
        return Some(format!(
            "{shown} belongs to the user `{user}`, who can change it, and with it what others do who use it: chown root {shown}"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn who_else_can_write_it_is_told() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let file = directory.path().join("fanfare.toml");
        fs::write(&file, "").expect("writable");
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
        for (of_file, of_directory, wrong) in [
            (0o644, 0o755, 0),
            (0o600, 0o700, 0),
            (0o664, 0o755, 1),
            (0o646, 0o700, 1),
            (0o644, 0o775, 1),
            (0o666, 0o777, 2),
            (0o644, 0o1777, 0),
        ] {
            mode(&file, of_file);
            mode(directory.path(), of_directory);
            let doubts = doubts(&file, None);
            assert_eq!(doubts.len(), wrong, "{of_file:o} {of_directory:o}: {doubts:?}");
        }
        assert!(doubts(&directory.path().join("missing"), None).is_empty(), "its directory is in order");
        mode(directory.path(), 0o700);
        mode(&file, 0o600);
        if !geteuid().is_root() {
            println!("SKIPPED: only root can give a file away");
            return;
        }
        chown(&file, Some(65_534), None).expect("root may");
        assert!(doubts(&file, None)[0].contains("belongs to the user"), "{:?}", doubts(&file, None));
        chown(directory.path(), Some(65_534), None).expect("root may");
        assert_eq!(doubts(&file, None).len(), 2);
        assert!(doubts(&file, Some(65_534)).is_empty());
    }
}
