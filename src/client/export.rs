//! `fanfare export`: all subscriptions as lines that `import` reads.
//!
//! The file holds what is needed to write to each browser: it is made for its owner only, under another name, and gets its own when
//! it is whole. It shows the registry page by page, not at one moment: who comes or goes meanwhile may be in it or not.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::client::arguments::Export;
use crate::client::connection::{Connection, Reply};
use crate::client::new_file::NewFile;
use crate::client::output::{Output, note};
use crate::client::pages::{self, Page};
use crate::client::send::{is_dash, style};
use crate::exit::{Exit, Failure};
use crate::printable;
use crate::protocol::json::{Members, Value as Json, read_line, write_compact};

/// Members of a line, in this order; the others that the daemon tells are found out anew.
const MEMBERS: &[&str] = &["app", "account", "name", "user_agent", "scopes", "tags", "attributes", "enabled", "created", "seen"];
/// Those of the browser's own object.
const BROWSERS: &[&str] = &["endpoint", "expirationTime", "keys", "contentEncoding", "applicationServerKey", "ref"];

/// Writes them out.
pub fn export(socket: &Path, output: &mut Output, arguments: &Export) -> Result<(), Failure> {
    let mut selection = Map::new();
    if let Some(app) = &arguments.app {
        selection.insert("app".to_owned(), app.as_str().into());
    }
    if let Some(segment) = arguments.segment.json()? {
        selection.insert("segment".to_owned(), segment);
    }
    let mut connection = Connection::open(socket)?;
    let request = |op: &str| {
        let mut request = selection.clone();
        request.insert("op".to_owned(), op.into());
        request
    };
    let count = connection.call(&Value::Object(request("count")))?.count("count");
    let bar = ProgressBar::new(count).with_style(style("{bar:30} {human_pos}/{human_len} written, {speed}, {eta} left"));

    let mut list = request("list_subscriptions");
    list.insert("reveal".to_owned(), true.into());
    let started = Instant::now();
    let mut target = Target::open(&arguments.file)?;
    let mut line = Vec::new();
    let mut bytes = 0;
    let mut disabled = BTreeSet::new();
    let written = pages::each(None, None, |after, limit| {
        list.insert("limit".to_owned(), limit.into());
        if let Some(after) = after {
            list.insert("after".to_owned(), after.into());
        }
        let reply = connection.call(&Value::Object(list.clone()))?;
        let elements = reply.elements("subscriptions");
        for element in &elements {
            line.clear();
            write_line(element, &mut line)?;
            disabled.extend(disabled_account(element).filter(|_| selection.contains_key("segment")));
            target.write(&line)?;
            bytes += line.len();
        }
        bar.inc(elements.len() as u64);
        // The count is of those that can be reached, the list of all.
        bar.set_length(count.max(bar.position()));
        let after = reply.text("after").map(str::to_owned);
        Ok(Page { count: elements.len() as u64, more: after.is_some(), after })
    })?;
    bar.finish_and_clear();
    // Behind the subscriptions: a disabled account takes no new ones. Of a segment's accounts those that have a browser in it.
    let mut accounts = disabled.len();
    for (app, account) in disabled {
        bytes += write_disabled(&mut target, &app, &account)?;
    }
    if !selection.contains_key("segment") {
        let mut list = request("disabled_accounts");
        pages::each(None, None, |after, limit| {
            list.insert("limit".to_owned(), limit.into());
            if let Some(after) = after {
                list.insert("after".to_owned(), after.into());
            }
            let reply = connection.call(&Value::Object(list.clone()))?;
            let elements = reply.elements("accounts");
            for element in &elements {
                let told = Reply::parse(element.get().to_owned())?;
                if let (Some(app), Some(account)) = (told.text("app"), told.text("account")) {
                    bytes += write_disabled(&mut target, app, account)?;
                    accounts += 1;
                }
            }
            let after = reply.text("after").map(str::to_owned);
            Ok(Page { count: elements.len() as u64, more: after.is_some(), after })
        })?;
    }
    target.finish()?;
    if is_dash(&arguments.file) {
        let off = if accounts > 0 { format!(", {accounts} accounts that are switched off") } else { String::new() };
        note(format_args!("{} subscriptions{off}", written.count));
        return Ok(());
    }
    let summary = json!({
        "file": arguments.file.display().to_string(),
        "subscriptions": written.count,
        "disabled_accounts": accounts,
        "bytes": bytes,
        "seconds": (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
    });
    output.reply(&Reply::parse(summary.to_string())?, &["file", "subscriptions", "disabled_accounts", "bytes"])
}

/// A line about an account that is switched off; its bytes.
fn write_disabled(target: &mut Target, app: &str, account: &str) -> Result<usize, Failure> {
    let line = format!("{}\n", json!({"account": account, "app": app, "enabled": false}));
    target.write(line.as_bytes())?;
    Ok(line.len())
}

/// A subscription as the daemon tells it -> a line.
fn write_line(element: &RawValue, line: &mut Vec<u8>) -> Result<(), Failure> {
    let told = |what: &str| Failure::new(Exit::Io, format!("the daemon tells a subscription {what}: is it of another version?"));
    let members = read_line(element.get()).members.map_err(|_| told("that is no object"))?;
    let has = |wanted: &str| members.iter().any(|(name, _)| name == wanted);
    if !has("endpoint") || !has("keys") {
        return Err(told("without endpoint and keys"));
    }
    line.extend_from_slice(b"{\"subscription\":{");
    write_members(&members, BROWSERS, line);
    line.push(b'}');
    let before = line.len();
    line.push(b',');
    write_members(&members, MEMBERS, line);
    if line.len() == before + 1 {
        line.truncate(before);
    }
    line.extend_from_slice(b"}\n");
    Ok(())
}

/// App and account of a subscription whose account is switched off.
fn disabled_account(element: &RawValue) -> Option<(String, String)> {
    let members = read_line(element.get()).members.ok()?;
    let text = |wanted: &str| match members.iter().find(|(name, _)| name == wanted) {
        Some((_, Json::Text(text))) => Some(text.to_string()),
        _ => None,
    };
    let off = members.iter().any(|(name, value)| name == "account_enabled" && *value == Json::Bool(false));
    if off { text("app").zip(text("account")) } else { None }
}

/// Those of `names` that say something: a null says nothing that is not said by leaving it out.
fn write_members(members: &Members<'_>, names: &[&str], line: &mut Vec<u8>) {
    let mut first = true;
    for name in names {
        let Some((_, value)) = members.iter().find(|(own, value)| own == name && *value != Json::Null) else {
            continue;
        };
        if !std::mem::take(&mut first) {
            line.push(b',');
        }
        line.extend_from_slice(format!("\"{name}\":").as_bytes());
        write_compact(value, line);
    }
}

/// Where the bytes of an export or a backup go: standard output, or a file that appears when it is whole.
pub struct Target {
    to: BufWriter<Box<dyn Write>>,
    file: Option<NewFile>,
}

impl Target {
    /// `-` is standard output.
    pub fn open(path: &Path) -> Result<Target, Failure> {
        if is_dash(path) {
            return Ok(Target { to: BufWriter::with_capacity(256 * 1024, Box::new(io::stdout())), file: None });
        }
        let failed = |error: io::Error| Failure::io(format_args!("cannot write {}", printable::path(path)), &error);
        let file = NewFile::make(path).map_err(failed)?;
        let copy = file.file.try_clone().map_err(failed)?;
        Ok(Target { to: BufWriter::with_capacity(256 * 1024, Box::new(copy)), file: Some(file) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.to.write_all(bytes).map_err(|error| self.failed(&error))
    }

    /// For who writes by itself; an error of it is told by [`Target::failed`].
    pub fn writer(&mut self) -> &mut dyn Write {
        &mut self.to
    }

    /// Everything is on disk, and the file has its name.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.to.flush().map_err(|error| self.failed(&error))?;
        if let Some(file) = &mut self.file {
            // A device cannot be synced, and need not be.
            let synced = match file.file.sync_all() {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
                other => other,
            };
            return synced.and_then(|()| file.rename()).map_err(|error| self.failed(&error));
        }
        Ok(())
    }

    /// A reader that has gone is no failure of ours.
    pub fn failed(&self, error: &io::Error) -> Failure {
        match &self.file {
            None => Failure::output(error),
            Some(file) => Failure::io(format_args!("cannot write {}", printable::path(file.path())), error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_line_is_what_import_reads() {
        let element = r#"{"subscription_id":"x","account":"anna","app":"shop","name":null,"service":"fcm","enabled":false,"scopes":[],"tags":["a"],
            "attributes":{"z":1,"a":"ż"},"key":"k","valid":true,"endpoint":"https://x","expirationTime":null,"keys":{"p256dh":"p","auth":"a"}}"#;
        let mut line = Vec::new();
        write_line(&RawValue::from_string(element.to_owned()).expect("JSON"), &mut line).expect("it has all it needs");
        assert_eq!(
            String::from_utf8(line).expect("UTF-8"),
            "{\"subscription\":{\"endpoint\":\"https://x\",\"keys\":{\"p256dh\":\"p\",\"auth\":\"a\"}},\"app\":\"shop\",\
             \"account\":\"anna\",\"scopes\":[],\"tags\":[\"a\"],\"attributes\":{\"z\":1,\"a\":\"ż\"},\"enabled\":false}\n"
        );
        let hidden = RawValue::from_string(r#"{"subscription_id":"x"}"#.to_owned()).expect("JSON");
        assert_eq!(write_line(&hidden, &mut Vec::new()).expect_err("not revealed").exit, Exit::Io);
    }

    #[test]
    fn a_file_appears_when_it_is_whole() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let path = directory.path().join("x");
        let mut target = Target::open(&path).expect("writable");
        target.write(b"half").expect("writable");
        drop(target);
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0);
        let mut target = Target::open(&path).expect("writable");
        target.write(b"whole").expect("writable");
        target.finish().expect("writable");
        assert_eq!(fs::read(&path).expect("it is there"), b"whole");
        assert_eq!(path.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1);
    }
}
