//! VAPID key pairs and the files they live in (RFC 8292 section 2).
//!
//! Promises: a private key is read only from a file of root's or of this process's user that nobody else can read, is written only
//! to a new file of mode 0600, is wiped from memory when it is dropped, and is in no `Debug` or error text. A key that is not a private key of
//! P-256 is refused when it is read, never when it is used.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{AccessFlags, access, geteuid};
use p256::ecdsa::signature::Signer;
use p256::elliptic_curve::Generate;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::message::KeyId;
use crate::printable;

/// A key file is some 240 bytes; what is longer than this is something else.
const FILE_MAX: u64 = 16 * 1024;

/// A VAPID key pair, which signs tokens (RFC 8292 section 2). Its parts are wiped when it is dropped.
#[derive(Clone)]
pub struct SigningKey {
    key: p256::ecdsa::SigningKey,
    public: [u8; 65],
    id: KeyId,
}

impl SigningKey {
    /// A new key pair from the system's CSPRNG. Panics if there is none: nothing could be sent without it.
    pub fn generate() -> SigningKey {
        SigningKey::new(p256::SecretKey::generate())
    }

    /// Reads a key file in any of the forms of [`SigningKey::parse`].
    ///
    /// The file must not be readable, writable or executable for others, nor for its group. The group bits are allowed below
    /// `$CREDENTIALS_DIRECTORY`, which systemd makes for this service alone, of mode 0400 or 0440. It must belong to root or to this
    /// process's user: whoever owns a file can give it back the rights that were taken from it.
    pub fn read(path: &Path) -> Result<SigningKey, KeyFileError> {
        SigningKey::read_for(path, None)
    }

    /// As [`SigningKey::read`], for another process: the file may also belong to the user `daemon`, by number. For commands that root
    /// runs about a daemon that is not root's.
    pub fn read_for(path: &Path, daemon: Option<u32>) -> Result<SigningKey, KeyFileError> {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        read_in(path, credentials.as_deref(), daemon)
    }

    /// Takes PEM (SEC1 `EC PRIVATE KEY` or PKCS#8 `PRIVATE KEY`; other blocks, such as OpenSSL's `EC PARAMETERS`, may stand
    /// beside it) or the 43 characters of base64url that the web-push tool prints as private key. White space around it
    /// does not matter.
    pub fn parse(text: &str) -> Result<SigningKey, NotAKey> {
        let text = text.trim();
        if text.contains("-----BEGIN") { parse_pem(text) } else { parse_base64url(text) }
    }

    /// Takes a key pair of the web-push tool, as its base64url text; `private` may also be PEM. Where `public` is given it must
    /// belong to `private`.
    pub fn import(public: Option<&str>, private: &str) -> Result<SigningKey, ImportError> {
        let key = SigningKey::parse(private).map_err(ImportError::Private)?;
        if let Some(public) = public {
            let public = public.trim().trim_end_matches('=');
            let public = URL_SAFE_NO_PAD.decode(public).map_err(|_| ImportError::Public)?;
            let public = p256::PublicKey::from_sec1_bytes(&public).map_err(|_| ImportError::Public)?;
            if public.to_sec1_point(false).as_bytes() != key.public {
                return Err(ImportError::Mismatch);
            }
        }
        Ok(key)
    }

    /// The public key as an uncompressed point.
    pub fn public_key(&self) -> [u8; 65] {
        self.public
    }

    /// The public key as pages and `k=` of RFC 8292 section 3.2 want it: 87 characters of base64url.
    pub fn public_key_base64url(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.public)
    }

    /// How rows name this key.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// ES256 (RFC 7518 section 3.4) over `message`: r and s, 32 bytes each. The nonce is that of RFC 6979, which needs no
    /// random numbers.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature: p256::ecdsa::Signature = self.key.sign(message);
        signature.to_bytes().into()
    }

    /// The private key as PKCS#8 PEM.
    pub fn to_pkcs8_pem(&self) -> Zeroizing<String> {
        let secret = p256::SecretKey::from(&self.key);
        secret.to_pkcs8_pem(LineEnding::LF).expect("a P-256 key has a PKCS#8 form")
    }

    /// Writes the private key as PKCS#8 PEM to a new file of mode 0600 and syncs file and directory. A file that exists is
    /// never overwritten: that is [`io::ErrorKind::AlreadyExists`]. The file is handed back so that it can be given to somebody.
    pub fn write_new(&self, path: &Path) -> io::Result<File> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let written = file.write_all(self.to_pkcs8_pem().as_bytes()).and_then(|()| file.sync_all());
        if let Err(error) = written {
            // What is there is no key, and would stand in the way of the next try.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
        Ok(file)
    }

    fn new(secret: p256::SecretKey) -> SigningKey {
        let public = secret.public_key().to_sec1_point(false);
        let public: [u8; 65] = public.as_bytes().try_into().expect("an uncompressed point of P-256 has 65 bytes");
        let hash: [u8; 32] = Sha256::digest(public).into();
        let id = KeyId(*hash.first_chunk().expect("8 is less than 32"));
        SigningKey { key: secret.into(), public, id }
    }
}

/// Shows the public key only.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public_key_base64url())
    }
}

/// Why a key file was not taken. The text does not name the file: the caller knows it.
#[derive(Debug)]
pub enum KeyFileError {
    /// Missing, or it cannot be read.
    Unreadable(io::Error),
    /// Group or others have rights on it; its mode is told. The caller exits 77.
    TooOpen {
        /// The permission bits.
        mode: u32,
    },
    /// It belongs to neither root nor the process's user. The caller exits 77.
    NotOurs {
        /// Whose it is.
        owner: u32,
    },
    /// It holds something else.
    NotAKey(NotAKey),
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyFileError::Unreadable(error) => write!(f, "cannot be read: {error}"),
            KeyFileError::TooOpen { mode } => {
                write!(f, "is open to group or others (mode {mode:04o}): a private key must have mode 0600 or 0400")
            }
            KeyFileError::NotOurs { owner } => {
                write!(f, "belongs to the user {owner}: a private key must belong to root or to the daemon's user")
            }
            KeyFileError::NotAKey(reason) => reason.fmt(f),
        }
    }
}

impl KeyFileError {
    /// Whether somebody has no right to the file, or too many have one. The caller exits 77, else 78.
    pub fn is_about_rights(&self) -> bool {
        match self {
            KeyFileError::TooOpen { .. } | KeyFileError::NotOurs { .. } => true,
            KeyFileError::Unreadable(error) => error.kind() == io::ErrorKind::PermissionDenied,
            KeyFileError::NotAKey(_) => false,
        }
    }

    /// The command that mends it for the user `daemon`, who is to read the file at `path`. None: no command does.
    pub fn remedy(&self, path: &Path, daemon: &str) -> Option<String> {
        let file = printable::path(path);
        match self {
            KeyFileError::TooOpen { .. } => Some(format!("chmod 600 {file}")),
            KeyFileError::NotOurs { .. } => Some(format!("chown {daemon} {file}")),
            KeyFileError::Unreadable(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Some(match closed_directory(path) {
                    Some(directory) => format!("chmod o+x {}", printable::path(directory)),
                    None => format!("chown {daemon} {file}"),
                })
            }
            KeyFileError::Unreadable(error) if error.kind() == io::ErrorKind::NotFound => {
                Some(format!("fanfare keygen --out {file}"))
            }
            _ => None,
        }
    }
}

/// The first directory on the way to `path` that this process may not pass.
fn closed_directory(path: &Path) -> Option<&Path> {
    let mut directories: Vec<&Path> = path.ancestors().skip(1).filter(|directory| !directory.as_os_str().is_empty()).collect();
    directories.reverse();
    directories.into_iter().find(|directory| access(*directory, AccessFlags::X_OK) == Err(Errno::EACCES))
}

impl std::error::Error for KeyFileError {}

/// The text is no usable private key; never quotes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAKey {
    /// Neither PEM nor 43 characters of base64url.
    Unknown,
    /// PEM without a private key in it.
    NoPrivateKey,
    /// PEM of a private key that needs a passphrase.
    Encrypted,
    /// A private key of another kind or curve, a number that is no key of P-256, or damaged.
    NotP256,
}

impl fmt::Display for NotAKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotAKey::Unknown => "is neither PEM nor the 43 characters of a base64url private key",
            NotAKey::NoPrivateKey => "is PEM, but holds no private key",
            NotAKey::Encrypted => "is protected by a passphrase; store it without one, with mode 0600",
            NotAKey::NotP256 => "does not hold a private key of the curve P-256 (prime256v1)",
        })
    }
}

impl std::error::Error for NotAKey {}

/// Why a key pair was not imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportError {
    Private(NotAKey),
    /// The public key is no base64url of a point of P-256.
    Public,
    /// Public and private key do not belong together.
    Mismatch,
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImportError::Private(reason) => write!(f, "the private key {reason}"),
            ImportError::Public => f.write_str("the public key is no base64url of a point on P-256"),
            ImportError::Mismatch => f.write_str("public and private key do not belong together"),
        }
    }
}

impl std::error::Error for ImportError {}

fn read_in(path: &Path, credentials: Option<&Path>, daemon: Option<u32>) -> Result<SigningKey, KeyFileError> {
    // A pipe would wait for its other end.
    let opened = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let mut file = opened.map_err(KeyFileError::Unreadable)?;
    // Asked of the open file: the name may point elsewhere by now.
    let metadata = file.metadata().map_err(KeyFileError::Unreadable)?;
    if !metadata.is_file() {
        return Err(KeyFileError::Unreadable(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let mode = metadata.mode() & 0o7777;
    let forbidden = if is_below(path, credentials) { 0o007 } else { 0o077 };
    if mode & forbidden != 0 {
        return Err(KeyFileError::TooOpen { mode });
    }
    let owner = metadata.uid();
    if owner != 0 && owner != geteuid().as_raw() && Some(owner) != daemon {
        return Err(KeyFileError::NotOurs { owner });
    }
    // With room for the file and one byte more: growing would leave copies of the key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_MAX as usize + 1));
    (&mut file).take(FILE_MAX).read_to_end(&mut text).map_err(KeyFileError::Unreadable)?;
    let text = std::str::from_utf8(&text).map_err(|_| KeyFileError::NotAKey(NotAKey::Unknown))?;
    SigningKey::parse(text).map_err(KeyFileError::NotAKey)
}

/// Whether `path` really lies below `directory`, links resolved.
fn is_below(path: &Path, directory: Option<&Path>) -> bool {
    let Some(directory) = directory.filter(|directory| directory.is_absolute()) else { return false };
    match (path.canonicalize(), directory.canonicalize()) {
        (Ok(path), Ok(directory)) => path.starts_with(directory),
        _ => false,
    }
}

fn parse_pem(text: &str) -> Result<SigningKey, NotAKey> {
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(NotAKey::Encrypted);
    }
    let secret = if let Some(der) = pem_block(text, "PRIVATE KEY")? {
        p256::SecretKey::from_pkcs8_der(&der).map_err(|_| NotAKey::NotP256)?
    } else if let Some(der) = pem_block(text, "EC PRIVATE KEY")? {
        p256::SecretKey::from_sec1_der(&der).map_err(|_| NotAKey::NotP256)?
    } else if text.contains("PRIVATE KEY-----") {
        return Err(NotAKey::NotP256);
    } else {
        return Err(NotAKey::NoPrivateKey);
    };
    Ok(SigningKey::new(secret))
}

/// The decoded block of that label. Read here and not by the PEM reader of p256, which takes one block with lines of 64
/// characters and nothing beside it: keys get pasted.
fn pem_block(text: &str, label: &str) -> Result<Option<Zeroizing<Vec<u8>>>, NotAKey> {
    let Some((_, rest)) = text.split_once(&format!("-----BEGIN {label}-----")) else { return Ok(None) };
    let Some((inner, _)) = rest.split_once(&format!("-----END {label}-----")) else { return Err(NotAKey::NotP256) };
    let mut base64 = Zeroizing::new(String::with_capacity(inner.len()));
    base64.extend(inner.chars().filter(|c| !c.is_ascii_whitespace()));
    let mut der = Zeroizing::new(vec![0; base64.len()]);
    let len = STANDARD.decode_slice(base64.as_bytes(), &mut der).map_err(|_| NotAKey::NotP256)?;
    der.truncate(len);
    Ok(Some(der))
}

fn parse_base64url(text: &str) -> Result<SigningKey, NotAKey> {
    let text = text.trim_end_matches('=');
    if text.len() != 43 {
        return Err(NotAKey::Unknown);
    }
    // A little longer than the result: the decoder wants room for its estimate.
    let mut bytes = Zeroizing::new([0; 36]);
    let len = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes[..]).map_err(|_| NotAKey::Unknown)?;
    let secret = p256::SecretKey::from_slice(&bytes[..len]).map_err(|_| NotAKey::NotP256)?;
    Ok(SigningKey::new(secret))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use p256::ecdsa::signature::Verifier;

    use super::*;

    // A key pair made once by OpenSSL 3, in each of the forms that OpenSSL gives it.
    const SEC1: &str = "-----BEGIN EC PARAMETERS-----
BggqhkjOPQMBBw==
-----END EC PARAMETERS-----
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIKL2fuv3keDgTN0kNTwCe90DsZV+Eq/PhJkZl+6n4YAkoAoGCCqGSM49
AwEHoUQDQgAENB2XLDK63O6mBhVF5Puh5teJ3Et6OjgJ5CG9RwTz2rV7XT97RZcq
KS3btm00hX0A6iAhY9peaDUJiVcn7Odfkg==
-----END EC PRIVATE KEY-----
";
    const PKCS8: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgovZ+6/eR4OBM3SQ1
PAJ73QOxlX4Sr8+EmRmX7qfhgCShRANCAAQ0HZcsMrrc7qYGFUXk+6Hm14ncS3o6
OAnkIb1HBPPatXtdP3tFlyopLdu2bTSFfQDqICFj2l5oNQmJVyfs51+S
-----END PRIVATE KEY-----
";
    const PRIVATE: &str = "ovZ-6_eR4OBM3SQ1PAJ73QOxlX4Sr8-EmRmX7qfhgCQ";
    const PUBLIC: &str = "BDQdlywyutzupgYVReT7oebXidxLejo4CeQhvUcE89q1e10_e0WXKikt27ZtNIV9AOogIWPaXmg1CYlXJ-znX5I";
    const P384: &str = "-----BEGIN PRIVATE KEY-----
MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGbAgEBBDBHMpmYA24/FHMICRKE
m9c+B4QAwqRwOmerS2TM/+2TRwBY2tpyKev/QOGt6SviiTKhZANiAARtIeffvk+t
nYKzvSMT58Yhy6Ze8Mk05u9nn6j2r9j+I1m9OoQMX/pzB41RT+nCg24cxRtgUrSV
/jSDlFGe/wqrEFtQWzKjmd0Kac77YRpbTMc9X7aYVpcrQOMw2MCUru8=
-----END PRIVATE KEY-----
";
    const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
AAAA
-----END ENCRYPTED PRIVATE KEY-----
";

    #[test]
    fn every_form_gives_the_same_key() {
        let pasted = SEC1.replace('\n', "\r\n");
        let one_line = format!(
            "-----BEGIN PRIVATE KEY-----{}-----END PRIVATE KEY-----",
            PKCS8.lines().filter(|line| !line.starts_with('-')).collect::<String>()
        );
        let spaced = format!("\n  {PRIVATE}\t\n");
        let padded = format!("{PRIVATE}=");
        for text in [SEC1, PKCS8, &pasted, &one_line, PRIVATE, &spaced, &padded] {
            let key = SigningKey::parse(text).unwrap();
            assert_eq!(key.public_key_base64url(), PUBLIC);
            assert_eq!(URL_SAFE_NO_PAD.encode(key.public_key()), PUBLIC);
            let hash: [u8; 32] = Sha256::digest(key.public_key()).into();
            assert_eq!(key.id().0, hash[..8]);
        }
        assert_eq!(PUBLIC.len(), 87);
    }

    #[test]
    fn what_is_no_p256_private_key_is_refused() {
        let cut = &PKCS8.replace("-----END PRIVATE KEY-----", "");
        let damaged = &PKCS8.replacen("MIGH", "MIGI", 1);
        let zero = "A".repeat(43);
        // The group's order: the first number that is too large.
        let order = "_____wAAAAD__________7zm-q2nF56E87nKwvxjJVE";
        for (text, reason) in [
            ("", NotAKey::Unknown),
            ("secret", NotAKey::Unknown),
            (PUBLIC, NotAKey::Unknown),
            (&PRIVATE[1..], NotAKey::Unknown),
            (&PRIVATE.replacen(|c: char| c.is_alphanumeric(), "+", 1), NotAKey::Unknown),
            (&zero, NotAKey::NotP256),
            (order, NotAKey::NotP256),
            (P384, NotAKey::NotP256),
            (cut, NotAKey::NotP256),
            (damaged, NotAKey::NotP256),
            ("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----", NotAKey::NotP256),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", NotAKey::NoPrivateKey),
            (ENCRYPTED, NotAKey::Encrypted),
        ] {
            assert_eq!(SigningKey::parse(text).unwrap_err(), reason, "{text}");
        }
    }

    #[test]
    fn an_imported_pair_must_belong_together() {
        let key = SigningKey::import(Some(PUBLIC), PRIVATE).unwrap();
        assert_eq!(key.public_key_base64url(), PUBLIC);
        SigningKey::import(None, PRIVATE).unwrap();
        SigningKey::import(Some(&format!(" {PUBLIC}=\n")), SEC1).unwrap();
        let other = SigningKey::generate().public_key_base64url();
        assert_eq!(SigningKey::import(Some(&other), PRIVATE).unwrap_err(), ImportError::Mismatch);
        assert_eq!(SigningKey::import(Some("BA"), PRIVATE).unwrap_err(), ImportError::Public);
        assert_eq!(SigningKey::import(Some("?"), PRIVATE).unwrap_err(), ImportError::Public);
        assert_eq!(SigningKey::import(Some(PUBLIC), PUBLIC).unwrap_err(), ImportError::Private(NotAKey::Unknown));
    }

    #[test]
    fn what_is_written_is_private_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vapid.pem");
        let key = SigningKey::generate();
        key.write_new(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let read = SigningKey::read(&path).unwrap();
        assert_eq!(read.public_key(), key.public_key());
        assert_eq!(*read.to_pkcs8_pem(), *key.to_pkcs8_pem());
        let error = SigningKey::generate().write_new(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(SigningKey::read(&path).unwrap().public_key(), key.public_key());
        assert!(key.write_new(&dir.path().join("missing/vapid.pem")).is_err());
    }

    #[test]
    fn an_open_file_is_refused_but_a_credential_may_be_the_group_s() {
        let dir = tempfile::tempdir().unwrap();
        let (credentials, elsewhere) = (dir.path().join("credentials"), dir.path().join("elsewhere"));
        for dir in [&credentials, &elsewhere] {
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("key"), SEC1).unwrap();
        }
        let link = credentials.join("link");
        std::os::unix::fs::symlink(elsewhere.join("key"), &link).unwrap();
        let read = |path: &Path, mode| {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            match read_in(path, Some(&credentials), None) {
                Ok(_) => true,
                Err(KeyFileError::TooOpen { mode: told }) => {
                    assert_eq!(told, mode);
                    false
                }
                Err(error) => panic!("{error}"),
            }
        };
        for (mode, outside, inside) in [
            (0o600, true, true),
            (0o400, true, true),
            (0o700, true, true),
            (0o440, false, true),
            (0o640, false, true),
            (0o620, false, true),
            (0o604, false, false),
            (0o644, false, false),
            (0o601, false, false),
        ] {
            assert_eq!(read(&elsewhere.join("key"), mode), outside, "{mode:o}");
            assert_eq!(read(&link, mode), outside, "{mode:o}: a link out of the directory");
            assert_eq!(read(&credentials.join("key"), mode), inside, "{mode:o}");
        }
        std::fs::set_permissions(elsewhere.join("key"), Permissions::from_mode(0o440)).unwrap();
        assert!(read_in(&elsewhere.join("key"), None, None).is_err());
        assert!(read_in(&elsewhere.join("key"), Some(Path::new("")), None).is_err());
    }

    #[test]
    fn a_stranger_s_file_is_refused_unless_the_daemon_is_his() {
        if !geteuid().is_root() {
            println!("SKIPPED: only root can give a file away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vapid.pem");
        SigningKey::generate().write_new(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        assert!(matches!(SigningKey::read(&path), Err(KeyFileError::NotOurs { owner: 65_534 })));
        assert!(matches!(SigningKey::read_for(&path, Some(65_533)), Err(KeyFileError::NotOurs { owner: 65_534 })));
        SigningKey::read_for(&path, Some(65_534)).unwrap();
    }

    #[test]
    fn what_cannot_be_read_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let missing = SigningKey::read(&dir.path().join("missing")).unwrap_err();
        assert!(matches!(&missing, KeyFileError::Unreadable(error) if error.kind() == io::ErrorKind::NotFound), "{missing}");
        assert!(matches!(SigningKey::read(dir.path()), Err(KeyFileError::Unreadable(_))));
        let path = dir.path().join("binary");
        for content in [vec![0xff; 100], b"x".repeat(100_000)] {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(SigningKey::read(&path), Err(KeyFileError::NotAKey(NotAKey::Unknown))));
        }
    }

    #[test]
    fn nothing_shows_the_secret() {
        let key = SigningKey::parse(PRIVATE).unwrap();
        assert_eq!(format!("{key:?}"), format!("SigningKey({PUBLIC})"));
        let error = SigningKey::import(Some(&SigningKey::generate().public_key_base64url()), PRIVATE).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&PRIVATE[..8]));
    }

    #[test]
    fn signatures_verify() {
        let key = SigningKey::generate();
        let signature = p256::ecdsa::Signature::from_slice(&key.sign(b"message")).unwrap();
        let public = p256::ecdsa::VerifyingKey::from_sec1_bytes(&key.public_key()).unwrap();
        public.verify(b"message", &signature).unwrap();
        assert!(public.verify(b"another", &signature).is_err());
    }
}
