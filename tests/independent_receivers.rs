//! What the daemon seals and signs is understood by code that others wrote: bodies are opened by http_ece of PyPI and of npm,
//! tokens are verified by PyJWT.
//!
//! The libraries are installed once, in pinned versions, below the user's cache folder. Where Python, Node or a package registry
//! is missing the tests print `SKIPPED: …` and pass; with `FANFARE_RECEIVERS=required` in the environment they fail instead.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fanfare::encrypt::payload::{Agreement, Body, Plain, Sealer, padded_len};
use fanfare::message::{Encoding, Origin};
use fanfare::vapid::key::SigningKey;
use fanfare::vapid::token::{AppKeys, Tokens};
use p256::elliptic_curve::Generate;
use p256::elliptic_curve::sec1::ToSec1Point;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A message without payload is not sealed at all.
const SIZES: [usize; 11] = [1, 2, 15, 16, 17, 250, 1_000, 2_967, 2_968, 3_992, 3_993];

#[test]
fn http_ece_of_pypi_opens_every_body() {
    let cases = bodies();
    run(python(), |python| {
        let mut command = Command::new(python);
        command.arg(receiver("receive.py")).arg("bodies");
        (command, cases)
    });
}

#[test]
fn http_ece_of_npm_opens_every_body() {
    let cases = bodies();
    run(node(), |folder| {
        let mut command = Command::new("node");
        command.arg(receiver("receive.mjs")).arg(folder);
        (command, cases)
    });
}

#[test]
fn pyjwt_verifies_tokens_of_both_schemes() {
    let cases = tokens();
    run(python(), |python| {
        let mut command = Command::new(python);
        command.arg(receiver("receive.py")).arg("tokens");
        (command, cases)
    });
}

/// Lets the receiver judge the cases, or says why it cannot.
fn run(receiver: Result<PathBuf, String>, command: impl FnOnce(&Path) -> (Command, Vec<Value>)) {
    let receiver = match receiver {
        Ok(receiver) => receiver,
        Err(reason) if std::env::var_os("FANFARE_RECEIVERS").is_some_and(|value| value == "required") => panic!("{reason}"),
        Err(reason) => return println!("SKIPPED: {reason}"),
    };
    let (mut command, cases) = command(&receiver);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cases.json");
    fs::write(&file, json!({"cases": cases, "tokens": cases}).to_string()).unwrap();
    let output = command.arg(&file).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    assert_eq!(stdout.trim(), format!("{} as expected", cases.len()));
}

/// Bodies of every size, padded and not, by all back ends and in both encodings; and of each encoding one that was changed on
/// its way, which nobody may open.
fn bodies() -> Vec<Value> {
    let mut cases = Vec::new();
    for (by, agreement) in [("fastest", Agreement::fastest()), ("aws-lc", Agreement::AwsLc), ("p256", Agreement::P256)] {
        for encoding in [Encoding::Aes128gcm, Encoding::Aesgcm] {
            let private = p256::SecretKey::generate();
            let p256dh = private.public_key().to_sec1_point(false).as_bytes().try_into().unwrap();
            let auth = std::array::from_fn(|i| private.to_bytes()[i] ^ 0x5a);
            let payloads = SIZES.map(|len| (0..len).map(|i| (i % 251) as u8).collect::<Vec<_>>());
            let mut slice = Vec::new();
            for payload in &payloads {
                for padding in [0, 128, 4_096] {
                    let pad_to = padded_len(payload.len(), padding, false);
                    slice.push(Plain { p256dh: &p256dh, auth: &auth, encoding, payload, pad_to });
                }
            }
            let mut sealed = Vec::new();
            Sealer::new(agreement).seal(&slice, &mut sealed);
            for (plain, body) in slice.iter().zip(sealed) {
                let name = format!("{by} {encoding:?} {} padded to {}", plain.payload.len(), plain.pad_to);
                cases.push(case(name, &private, plain, &body.unwrap()));
            }
            let mut changed = cases.last().unwrap().clone();
            let mut body = URL_SAFE_NO_PAD.decode(changed["body"].as_str().unwrap()).unwrap();
            body[1_000] ^= 1;
            changed["body"] = URL_SAFE_NO_PAD.encode(body).into();
            changed["expected"] = Value::Null;
            cases.push(changed);
        }
    }
    cases
}

fn case(name: String, private: &p256::SecretKey, plain: &Plain<'_>, body: &Body) -> Value {
    let headers = body.aesgcm.as_ref().map(|headers| {
        let vapid = SigningKey::generate().public_key_base64url();
        json!({
            "encryption": headers.encryption.to_str().unwrap(),
            "crypto_key": headers.crypto_key(&vapid).to_str().unwrap(),
        })
    });
    json!({
        "name": name,
        "private_key": URL_SAFE_NO_PAD.encode(private.to_bytes()),
        "auth": URL_SAFE_NO_PAD.encode(plain.auth),
        "encoding": if plain.encoding == Encoding::Aesgcm { "aesgcm" } else { "aes128gcm" },
        "headers": headers,
        "body": URL_SAFE_NO_PAD.encode(&body.bytes),
        "expected": URL_SAFE_NO_PAD.encode(plain.payload),
    })
}

fn tokens() -> Vec<Value> {
    let subject = "mailto:push@example.com";
    let mut cases = Vec::new();
    for audience in ["https://push.example.net", "https://push.example.net:8443", "https://[2001:db8::1]:8443"] {
        for (scheme, encoding) in [("vapid", Encoding::Aes128gcm), ("webpush", Encoding::Aesgcm)] {
            let key = SigningKey::generate();
            let app = AppKeys { app: "default".into(), subject: subject.into(), keys: vec![key.clone()] };
            let tokens = Tokens::new(vec![app], 1);
            let now = fanfare::clock::now();
            let made = tokens.authorization("default", 0, &Origin(audience.into()), encoding, now).unwrap();
            cases.push(json!({
                "scheme": scheme,
                "authorization": made.value.to_str().unwrap(),
                "crypto_key": made.p256ecdsa.map(|key| format!("dh=BA;p256ecdsa={key}")),
                "public_key": key.public_key_base64url(),
                "audience": audience,
                "subject": subject,
            }));
        }
    }
    cases
}

/// The Python that has the libraries.
fn python() -> Result<PathBuf, String> {
    let version = output(Command::new("python3").arg("--version"))?;
    let folder = installed("python", &receiver("requirements.txt"), &version, |folder| {
        output(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        let mut pip = Command::new(folder.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=20", "-r"]);
        output(pip.arg(receiver("requirements.txt")))
    })?;
    Ok(folder.join("bin/python"))
}

/// The folder with the libraries for Node.
fn node() -> Result<PathBuf, String> {
    let version = output(Command::new("node").arg("--version"))?;
    installed("node", &receiver("package.json"), &version, |folder| {
        fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        fs::copy(receiver("package.json"), folder.join("package.json")).map_err(|error| error.to_string())?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=20000"]);
        output(npm.current_dir(folder))
    })
}

/// A folder that `install` has filled, once for these pins and this version of the interpreter.
fn installed(
    kind: &str,
    pins: &Path,
    version: &str,
    install: impl FnOnce(&Path) -> Result<String, String>,
) -> Result<PathBuf, String> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")));
    let cache = cache.ok_or("no cache folder: HOME is not set")?.join("fanfare/receivers");
    fs::create_dir_all(&cache).map_err(|error| format!("no cache folder: {error}"))?;
    let mut hash = Sha256::new_with_prefix(fs::read(pins).unwrap());
    hash.update(version);
    let folder = cache.join(format!("{kind}-{}", URL_SAFE_NO_PAD.encode(&hash.finalize()[..9])));
    // Tests run at once, in threads and in processes.
    let lock = File::create(folder.with_extension("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    let complete = folder.join("complete");
    if !complete.exists() {
        let _ = fs::remove_dir_all(&folder);
        install(&folder)?;
        File::create(complete).map_err(|error| error.to_string())?;
    }
    Ok(folder)
}

/// What the command prints; or, if it cannot be run or fails, why.
fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let Output { status, stdout, stderr } = command.output().map_err(|error| format!("{name} cannot be run: {error}"))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&stderr);
    Err(format!("{name} failed: {}", stderr.trim().lines().last().unwrap_or_default()))
}

fn receiver(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/receivers").join(file)
}
