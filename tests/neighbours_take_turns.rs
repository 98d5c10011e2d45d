//! Promises 5 and 6 between two apps: whatever one of them asks for, as fast as it can and from 64 connections, the other one's
//! urgent messages to another push service and the operator's pings come through, and memory stays within what is configured.
//!
//! This is the short form of `fanfare-load fair`: some operations of each kind, for a second and a half each. Its bounds on time are
//! five to ten times those that are promised, because the machine that runs it has other things to do; an app that has no turn at all
//! waits for seconds.

use std::path::Path;
use std::process::Command;

/// Milliseconds that a message or a ping may take more than alone.
const LATER: &str = "500";

#[test]
fn a_flood_of_messages_holds_up_no_other_app() {
    beside("send,stream,campaign_small", "leave");
}

#[test]
fn a_flood_of_walks_holds_up_no_other_app() {
    beside("list_messages,events_none,list_none", "leave");
}

#[test]
fn a_flood_of_followers_holds_up_no_other_app() {
    beside("follow,follow_none", "stay");
}

#[test]
fn a_flood_of_small_writes_holds_up_no_other_app() {
    beside("cancel,subscribe,erase,presence", "leave");
}

#[test]
fn connections_that_ask_for_nothing_hold_up_no_other_app() {
    beside("half_line,idle", "silent");
}

/// Plays these operations; fails with the cases that were over a bound.
fn beside(operations: &str, manners: &str) {
    let program = Path::new(env!("CARGO_BIN_EXE_fanfare"));
    let load = program.with_file_name("fanfare-load");
    if !load.exists() {
        println!("SKIPPED: there is no fanfare-load beside {}: cargo build --release --workspace", program.display());
        return;
    }
    let output = Command::new(load)
        .args(["fair", "--operations", operations, "--manners", manners, "--connections", "64"])
        .args(["--seconds", "1.5", "--alone", "1", "--message-ms", LATER, "--ping-ms", LATER])
        .args(["--subscriptions", "10000", "--events", "20000"])
        .arg("--daemon")
        .arg(program)
        .output()
        .expect("it was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}", text(&output.stderr));
}
