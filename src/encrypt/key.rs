//! VAPID key pairs and the files they live in (RFC 8292 section 2; DESIGN 5, "A key file").
//!
//! Promises: a private key is read only from a file that nobody but its owner can read, is written only to a new file of
//! mode 0600, is wiped from memory when it is dropped, and is in no `Debug` or error text. A key that is not a private key of
//! P-256 is refused when it is read, never when it is used.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use p256::ecdsa::signature::Signer;
use p256::elliptic_curve::Generate;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::message::KeyId;

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
    /// `$CREDENTIALS_DIRECTORY`, which systemd makes for this service alone, of mode 0400 or 0440.
    pub fn read(path: &Path) -> Result<SigningKey, KeyFileError> {
        read_in(path, std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from).as_deref())
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
    /// never overwritten: that is [`io::ErrorKind::AlreadyExists`].
    pub fn write_new(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let written = file.write_all(self.to_pkcs8_pem().as_bytes()).and_then(|()| file.sync_all());
        if let Err(error) = written {
            // What is there is no key, and would stand in the way of the next try.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
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
            KeyFileError::NotAKey(reason) => reason.fmt(f),
        }
    }
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

fn read_in(path: &Path, credentials: Option<&Path>) -> Result<SigningKey, KeyFileError> {
    let mut file = File::open(path).map_err(KeyFileError::Unreadable)?;
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
