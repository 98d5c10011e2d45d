//! Units of systemd, read from their files: systemd need not run, and nobody is asked.
//!
//! It finds what an administrator has set by `systemctl edit`: the first directory that has a unit's file wins, and the drop-ins
//! beside it are added in the order of their names (systemd.unit(5), "Unit File Load Path").

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where units may be installed, the strongest first.
pub const UNIT_DIRS: &[&str] =
    &["etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

/// An installed unit.
#[derive(Debug)]
pub struct Unit {
    /// Its own file, without the drop-ins.
    pub file: PathBuf,
    settings: Vec<Setting>,
}

#[derive(Debug)]
struct Setting {
    section: String,
    key: String,
    value: String,
}

impl Unit {
    /// The unit `name` below the directory `root`. None: it is not installed, or masked.
    pub fn find(root: &Path, name: &str) -> Option<Unit> {
        let directories = || UNIT_DIRS.iter().map(|directory| root.join(directory));
        let file = directories().map(|directory| directory.join(name)).find(|file| file.exists())?;
        let mut settings = parse(&fs::read_to_string(&file).ok()?);
        if settings.is_empty() {
            return None;
        }
        let mut drop_ins = BTreeMap::new();
        for directory in directories() {
            for entry in fs::read_dir(directory.join(format!("{name}.d"))).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "conf") {
                    drop_ins.entry(entry.file_name()).or_insert(entry.path());
                }
            }
        }
        for text in drop_ins.values().filter_map(|file| fs::read_to_string(file).ok()) {
            settings.extend(parse(&text));
        }
        Some(Unit { file, settings })
    }

    /// A setting that has one value: the last one counts, and an empty one takes it back.
    pub fn value(&self, section: &str, key: &str) -> Option<&str> {
        self.values(section, key).last().copied().filter(|value| !value.is_empty())
    }

    /// A setting that is a list of words: each line adds some, and an empty one takes back those before it.
    pub fn words(&self, section: &str, key: &str) -> Vec<&str> {
        let mut words = Vec::new();
        for value in self.values(section, key) {
            if value.is_empty() {
                words.clear();
            }
            words.extend(value.split_whitespace());
        }
        words
    }

    fn values(&self, section: &str, key: &str) -> Vec<&str> {
        let named = |setting: &&Setting| setting.section == section && setting.key == key;
        self.settings.iter().filter(named).map(|setting| setting.value.as_str()).collect()
    }
}

fn parse(text: &str) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut section = "";
    // A backslash at its end continues a line.
    let joined = text.replace("\\\n", " ");
    for line in joined.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if let Some((key, value)) = line.split_once('=') {
            let [key, value] = [key, value].map(|part| part.trim().to_owned());
            settings.push(Setting { section: section.to_owned(), key, value });
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn write(root: &TempDir, path: &str, text: &str) {
        let file = root.path().join(path);
        fs::create_dir_all(file.parent().expect("it has one")).expect("writable");
        fs::write(file, text).expect("writable");
    }

    #[test]
    fn drop_ins_add_to_a_unit_and_take_back() {
        let root = TempDir::new().expect("a temporary directory");
        assert!(Unit::find(root.path(), "fanfare.service").is_none());
        write(&root, "usr/lib/systemd/system/fanfare.service", "[Service]\nUser=distribution\n");
        write(
            &root,
            "usr/local/lib/systemd/system/fanfare.service",
            "[Unit]\nUser=elsewhere\n[Service]\n# User=comment\nUser = fanfare\nSupplementaryGroups=shop \\\n  news\nGroup=fanfare\n",
        );
        let unit = Unit::find(root.path(), "fanfare.service").expect("it is installed");
        assert_eq!(unit.file, root.path().join("usr/local/lib/systemd/system/fanfare.service"), "before the distribution's");
        assert_eq!(unit.value("Service", "User"), Some("fanfare"));
        assert_eq!(unit.words("Service", "SupplementaryGroups"), ["shop", "news"]);

        write(&root, "usr/lib/systemd/system/fanfare.service.d/20.conf", "[Service]\nUser=twenty\nSupplementaryGroups=late\n");
        write(&root, "etc/systemd/system/fanfare.service.d/10.conf", "[Service]\nUser=ten\nSupplementaryGroups=\nGroup=\n");
        write(&root, "usr/lib/systemd/system/fanfare.service.d/10.conf", "[Service]\nSupplementaryGroups=hidden\n");
        write(&root, "etc/systemd/system/fanfare.service.d/30.txt", "[Service]\nUser=no drop-in\n");
        let unit = Unit::find(root.path(), "fanfare.service").expect("it is installed");
        assert_eq!((unit.value("Service", "User"), unit.value("Service", "Group")), (Some("twenty"), None));
        assert_eq!(unit.words("Service", "SupplementaryGroups"), ["late"]);

        // As `systemctl mask` does.
        std::os::unix::fs::symlink("/dev/null", root.path().join("etc/systemd/system/fanfare.service")).expect("writable");
        assert!(Unit::find(root.path(), "fanfare.service").is_none());
    }
}
