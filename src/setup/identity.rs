//! The user that the daemon runs as, with its groups.
//!
//! Root may read and change everything, so what root finds in order can still stop the daemon. `check-config` that root runs
//! therefore becomes the daemon's user for good and then asks the kernel: modes, directories on the way and access lists count as they
//! will for the daemon.

use std::ffi::CString;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgrouplist, getgroups, setgroups, setresgid, setresuid};

use super::unit::Unit;
use crate::client::connection::user_name;
use crate::exit::{Exit, Failure};
use crate::printable;

/// A user with the groups of its processes.
#[derive(Debug)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
    /// Of all groups, the first one too.
    groups: Vec<Gid>,
    found: Found,
}

/// How the user was found.
#[derive(Debug)]
enum Found {
    /// The command runs as this user.
    Caller,
    /// `--user`.
    Named,
    /// `User=` of this unit.
    Unit(PathBuf),
    /// This data directory is the user's.
    Owner(PathBuf),
}

impl Identity {
    /// The user that will run the daemon. Root has this found out: the user `named`, or the one of the unit installed below `root`,
    /// or the owner of `data_dir`, or root. Everybody else is judged as they are. Exit 77 if another user than root names one, 78 if
    /// the unit names a user or a group that does not exist, 64 if `named` does not exist.
    pub fn of_daemon(named: Option<&str>, root: &Path, data_dir: &Path) -> Result<Identity, Failure> {
        if let Some(name) = named {
            let user =
                user(name).ok_or_else(|| Failure::new(Exit::Usage, format!("there is no user {}", printable::line(name))))?;
            if !geteuid().is_root() && user.uid != geteuid() {
                return Err(Failure::new(Exit::Permission, "only root can check as another user: sudo fanfare check-config"));
            }
            return Ok(Identity::of(&user, user.gid, Found::Named));
        }
        if !geteuid().is_root() {
            return Ok(Identity::caller());
        }
        if let Some(unit) = Unit::find(root, "fanfare.service") {
            return Identity::of_unit(&unit);
        }
        match data_dir.metadata() {
            Ok(found) => {
                let uid = Uid::from_raw(found.uid());
                let whose = Found::Owner(data_dir.to_owned());
                Ok(match User::from_uid(uid).ok().flatten() {
                    Some(user) => Identity::of(&user, user.gid, whose),
                    None => {
                        let gid = Gid::from_raw(found.gid());
                        Identity { uid, gid, groups: vec![gid], found: whose }
                    }
                })
            }
            Err(_) => Ok(Identity::caller()),
        }
    }

    fn caller() -> Identity {
        let mut groups = getgroups().unwrap_or_default();
        groups.insert(0, getegid());
        Identity { uid: geteuid(), gid: getegid(), groups, found: Found::Caller }.in_order()
    }

    fn of_unit(unit: &Unit) -> Result<Identity, Failure> {
        let missing = |what: &str, name: &str, key: &str, command: &str| {
            let file = printable::path(&unit.file);
            let name = printable::line(name);
            Failure::new(
                Exit::Configuration,
                format!("there is no {what} {name}, which {key}= of {file} names: {command} {name}"),
            )
        };
        let name = unit.value("Service", "User").unwrap_or("root");
        let user = user(name).ok_or_else(|| missing("user", name, "User", "useradd --system --shell /usr/sbin/nologin"))?;
        let group_of = |key: &str, name: &str| group(name).ok_or_else(|| missing("group", name, key, "groupadd --system"));
        let gid = unit.value("Service", "Group").map(|name| group_of("Group", name)).transpose()?.unwrap_or(user.gid);
        let mut identity = Identity::of(&user, gid, Found::Unit(unit.file.clone()));
        for name in unit.words("Service", "SupplementaryGroups") {
            identity.groups.push(group_of("SupplementaryGroups", name)?);
        }
        Ok(identity.in_order())
    }

    /// With the groups that /etc/group gives the user.
    fn of(user: &User, gid: Gid, found: Found) -> Identity {
        let name = CString::new(user.name.as_str()).unwrap_or_default();
        let mut groups = getgrouplist(&name, gid).unwrap_or_default();
        groups.insert(0, gid);
        Identity { uid: user.uid, gid, groups, found }.in_order()
    }

    /// Each group once.
    fn in_order(mut self) -> Identity {
        let mut seen = Vec::new();
        self.groups.retain(|group| {
            !seen.contains(group) && {
                seen.push(*group);
                true
            }
        });
        self
    }

    /// This process is this user from now on, and cannot go back.
    pub fn become_it(&self) -> Result<(), Failure> {
        if !geteuid().is_root() || self.uid.is_root() {
            return Ok(());
        }
        let Identity { uid, gid, .. } = *self;
        // In this order: the first two need root's rights.
        let became = setgroups(&self.groups).and_then(|()| setresgid(gid, gid, gid)).and_then(|()| setresuid(uid, uid, uid));
        became.map_err(|error| Failure::io(format_args!("cannot become the user {}", self.name()), &error.into()))
    }

    /// The user's name, or the number of a user that has none.
    pub fn name(&self) -> String {
        user_name(self.uid.as_raw())
    }

    /// Whether the user may give a file of its own to this group.
    pub fn is_in(&self, group: Gid) -> bool {
        self.uid.is_root() || self.groups.contains(&group)
    }

    /// The file of the unit that names the user.
    pub fn unit(&self) -> Option<&Path> {
        match &self.found {
            Found::Unit(file) => Some(file),
            _ => None,
        }
    }
}

/// As the end of a sentence: "checked as user fanfare …".
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = |gid: &Gid| Group::from_gid(*gid).ok().flatten().map_or(gid.to_string(), |group| group.name);
        let groups: Vec<String> = self.groups.iter().map(group).collect();
        let groups = if groups.len() == 1 { format!("group {}", groups[0]) } else { format!("groups {}", groups.join(", ")) };
        write!(f, "user {} with the {groups}", self.name())?;
        match &self.found {
            Found::Caller => write!(f, ", who runs this command"),
            Found::Named => Ok(()),
            Found::Unit(file) => write!(f, ", as {} says", printable::path(file)),
            Found::Owner(directory) => write!(f, ", the owner of {}", printable::path(directory)),
        }
    }
}

/// By name or number.
fn user(name: &str) -> Option<User> {
    match name.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)).ok().flatten(),
        Err(_) => User::from_name(name).ok().flatten(),
    }
}

/// By name or number.
pub fn group(name: &str) -> Option<Gid> {
    match name.parse() {
        Ok(number) => Some(Gid::from_raw(number)),
        Err(_) => Group::from_name(name).ok().flatten().map(|group| group.gid),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    fn installed(service: &str) -> TempDir {
        let root = TempDir::new().expect("a temporary directory");
        let directory = root.path().join("etc/systemd/system");
        fs::create_dir_all(&directory).expect("writable");
        fs::write(directory.join("fanfare.service"), format!("[Service]\n{service}")).expect("writable");
        root
    }

    fn of_daemon(root: &TempDir) -> Result<Identity, Failure> {
        Identity::of_daemon(None, root.path(), &root.path().join("data"))
    }

    #[test]
    fn root_checks_as_the_user_of_the_unit_with_its_groups() {
        if !geteuid().is_root() {
            println!("SKIPPED: everybody but root is judged as they are");
            return;
        }
        let root = installed("User=nobody\nGroup=daemon\nSupplementaryGroups=mail\n");
        let identity = of_daemon(&root).expect("they exist on every Linux");
        assert_eq!(identity.name(), "nobody");
        for name in ["daemon", "mail"] {
            assert!(identity.is_in(group(name).expect("it exists on every Linux")), "{name}");
        }
        assert!(!identity.is_in(group("tty").expect("it exists on every Linux")));
        let told = identity.to_string();
        assert!(told.starts_with("user nobody with the groups daemon, ") && told.contains("mail"), "{told}");
        assert!(told.ends_with("etc/systemd/system/fanfare.service says"), "{told}");

        for (service, command) in [
            ("User=no-such-user\n", "useradd --system --shell /usr/sbin/nologin no-such-user"),
            ("User=nobody\nSupplementaryGroups=no-such-group\n", "groupadd --system no-such-group"),
        ] {
            let failure = of_daemon(&installed(service)).expect_err("it does not exist");
            assert_eq!(failure.exit, Exit::Configuration);
            assert!(failure.message.ends_with(command), "{failure}");
        }
    }

    #[test]
    fn without_a_unit_the_owner_of_the_data_counts() {
        if !geteuid().is_root() {
            println!("SKIPPED: everybody but root is judged as they are");
            return;
        }
        let root = TempDir::new().expect("a temporary directory");
        assert_eq!(of_daemon(&root).expect("root is there").name(), "root");
        fs::create_dir(root.path().join("data")).expect("writable");
        std::os::unix::fs::chown(root.path().join("data"), Some(65_534), Some(65_534)).expect("root may");
        assert!(of_daemon(&root).expect("it is there").to_string().contains("the owner of"));
        let named = Identity::of_daemon(Some("daemon"), root.path(), root.path()).expect("it is there");
        assert_eq!(named.name(), "daemon", "--user comes before all");
    }
}
