//! `make install` and `make uninstall`: what they put below a directory, and what they leave there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fanfare_loadtest::output::{stderr, stdout};
use tempfile::TempDir;

/// A directory with a build that was made elsewhere, and one to install below.
struct Place {
    directory: TempDir,
}

impl Place {
    fn make() -> Place {
        let directory = TempDir::new().expect("a temporary directory");
        let release = directory.path().join("build/release");
        fs::create_dir_all(&release).expect("writable");
        // Any program with debug information will do; this one is small.
        let program = std::env::current_exe().expect("it runs");
        for name in ["fanfare", "fanfare-mock"] {
            fs::copy(&program, release.join(name)).expect("writable");
        }
        Place { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `make`, as root's shell would start it: without the variables of the build.
    fn make_target(&self, arguments: &[String]) -> Output {
        Command::new("make")
            .args(["--no-print-directory", "--silent"])
            .args(arguments)
            .arg(format!("DESTDIR={}", self.path("system").display()))
            .arg(format!("BUILT={}", self.path("built").display()))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .env("HOME", self.path("nobody"))
            .env_remove("SUDO_USER")
            .output()
            .expect("make is there: it has built this test")
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.expect("readable").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn has_debug_information(program: &Path) -> bool {
    let shown = Command::new("readelf").args(["--sections", "--wide"]).arg(program).output().expect("it comes with the compiler");
    stdout(&shown).contains(".debug_line")
}

#[test]
fn programs_are_installed_without_debug_information_and_removed_without_what_is_the_operators() {
    let place = Place::make();
    let build = format!("CARGO_TARGET_DIR={}", place.path("build").display());
    let installed = place.make_target(&["install".to_owned(), build.clone()]);
    assert!(installed.status.success(), "{}", stderr(&installed));
    let system = place.path("system");
    assert!(has_debug_information(&place.path("build/release/fanfare")), "else this test shows nothing");
    for name in ["fanfare", "fanfare-mock"] {
        assert!(!has_debug_information(&system.join("usr/local/bin").join(name)), "{name}");
    }
    assert!(stdout(&installed).contains("debug information stay in"), "{}", stdout(&installed));
    for file in ["lib/systemd/system/fanfare.service", "share/doc/fanfare/README.md", "share/doc/fanfare/docs/bounds.md"] {
        assert!(system.join("usr/local").join(file).exists(), "{file}");
    }

    let own = ["etc/fanfare/vapid.pem", "etc/fanfare/fanfare.toml", "var/lib/fanfare/db/CURRENT"].map(|name| system.join(name));
    for file in &own {
        fs::create_dir_all(file.parent().expect("it has one")).expect("writable");
        fs::write(file, "precious").expect("writable");
    }
    let removed = place.make_target(&["uninstall".to_owned()]);
    assert!(removed.status.success(), "{}", stderr(&removed));
    let mut left = own.to_vec();
    left.sort();
    assert_eq!(files(&system), left);
    for kept in ["/etc/fanfare", "/var/lib/fanfare"] {
        assert!(stdout(&removed).contains(kept), "it says that {kept} stays: {}", stdout(&removed));
    }
}

#[test]
fn a_build_elsewhere_is_found_although_sudo_forgets_the_variable() {
    let place = Place::make();
    let missing = place.make_target(&["install".to_owned()]);
    assert!(!missing.status.success());
    let told = stdout(&missing);
    assert!(told.contains("make build") && told.contains("sudo make install CARGO_TARGET_DIR="), "{told}");

    // What `make build` notes, without building.
    let variable = format!("CARGO_TARGET_DIR={}", place.path("build").display());
    let shown = place.make_target(&["--dry-run".to_owned(), "build".to_owned(), variable]);
    let note = format!("echo \"{}\" >{}", place.path("build").display(), place.path("built").display());
    assert!(stdout(&shown).contains(&note), "{}", stdout(&shown));
    fs::write(place.path("built"), format!("{}\n", place.path("build").display())).expect("writable");

    let installed = place.make_target(&["install".to_owned()]);
    assert!(installed.status.success(), "{}{}", stdout(&installed), stderr(&installed));
    assert!(place.path("system/usr/local/bin/fanfare").exists());
}
