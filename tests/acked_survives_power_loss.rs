//! Promise 1 where it is hardest: what was answered `"ok":true` survives the loss of power.
//!
//! The store lies on an ext4 image of its own, which is shut down without flushing its journal while the daemon is under load.
//! After every start all that was acknowledged must be there. The same run with libeatmydata, which makes fsync do nothing,
//! must lose lines: so the test is known to see a loss.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon};
use fanfare_loadtest::disk::Disk;
use fanfare_loadtest::mock::{Mock, Options, Subscription};
use serde_json::{Value, json};

const CYCLES: usize = 30;
const CONNECTIONS: usize = 2;
const LINES_A_BURST: usize = 20;
/// Acknowledged lines that a cycle must have before the power goes.
const LINES_A_CYCLE: usize = 40;

#[test]
fn acked_lines_survive_power_loss() {
    match run(CYCLES, None) {
        Ok(loss) => assert_eq!(loss, None),
        Err(reason) => println!("SKIPPED: {reason}"),
    }
}

#[test]
fn without_fsync_the_loss_is_seen() {
    let Some(library) = libeatmydata() else { return println!("SKIPPED: libeatmydata is not installed (Debian's eatmydata)") };
    match run(CYCLES, Some(&library)) {
        Ok(loss) => println!("as it must be: {}", loss.expect("a loss is reported where nothing is ever synced")),
        Err(reason) => println!("SKIPPED: {reason}"),
    }
}

/// What was lost first, if anything was. The error says why this machine cannot run it.
fn run(cycles: usize, preload: Option<&str>) -> Result<Option<String>, String> {
    let mut disk = Disk::make(256)?;
    let mock = Mock::start(Options { listeners: 2, ..Options::default() });
    let browsers: Vec<Subscription> = (0..2).flat_map(|origin| mock.subscribe(origin, 50)).collect();
    // One of the two is down: what is for it waits on disk.
    mock.stop_listening(1);
    let mut config = ConfigBuilder::new()
        .mock(&mock)
        .set("data_dir", disk.path().join("data").to_string_lossy().into_owned())
        .set("store.reserve_mb", 1)
        .set("store.min_free_percent", 0);
    if let Some(library) = preload {
        config = config.env("LD_PRELOAD", library);
    }
    let mut daemon = Daemon::prepare(env!("CARGO_BIN_EXE_fanfare"), config).map_err(|error| error.to_string())?;
    let mut acked: Vec<(String, u64)> = Vec::new();
    let mut next = 0;
    for cycle in 0..cycles {
        if let Err(problem) = daemon.restart() {
            return Ok(Some(format!("cycle {cycle}: the store is not usable: {problem}")));
        }
        if let Some(lost) = missing(&mut daemon.client(), &acked) {
            return Ok(Some(format!("cycle {cycle}: {lost}")));
        }
        let (taken, after) = cycle_of_load(&mut daemon, &disk, &browsers, next);
        next += 1_000_000;
        if let Some(problem) = after {
            return Ok(Some(format!("cycle {cycle}: {problem}")));
        }
        acked.extend(taken);
        // A file system that was shut down says EIO: what is on disk cannot be known, so the daemon ends.
        let status = daemon.wait_exit(Duration::from_secs(30)).expect("it ends when the disk fails");
        assert_eq!(status.code(), Some(74), "{status}; {}", daemon.log());
        disk.remount().expect("the image is mounted again");
    }
    if let Err(problem) = daemon.restart() {
        return Ok(Some(format!("the store is not usable: {problem}")));
    }
    if let Some(lost) = missing(&mut daemon.client(), &acked) {
        return Ok(Some(lost));
    }
    // And all of it is delivered.
    mock.resume_listening(1);
    let deadline = Instant::now() + Duration::from_secs(120);
    let wanted: BTreeSet<u64> = acked.iter().map(|(_, number)| *number).collect();
    loop {
        let taken: BTreeSet<u64> =
            mock.received().iter().filter(|post| post.taken()).map(|post| number_of(&post.text())).collect();
        let missing = wanted.difference(&taken).count();
        if missing == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{missing} of {} acknowledged messages were not delivered", wanted.len());
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{} acknowledged lines in {cycles} cycles", acked.len());
    Ok(None)
}

/// Sends until the power goes: what was acknowledged before, and an acknowledgement that came after, which must not be.
fn cycle_of_load(
    daemon: &mut Daemon,
    disk: &Disk,
    browsers: &[Subscription],
    first: u64,
) -> (Vec<(String, u64)>, Option<String>) {
    let socket = daemon.socket();
    let (count, off) = (AtomicUsize::new(0), AtomicBool::new(false));
    let taken = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let (socket, count, off) = (&socket, &count, &off);
                scope.spawn(move || send_until_it_ends(socket, browsers, first + connection as u64 * 500_000, count, off))
            })
            .collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        // A different moment each time: the load is in any phase of a commit or a checkpoint.
        let wanted = LINES_A_CYCLE * (1 + (first / 1_000_000) as usize % 7);
        while count.load(Ordering::Relaxed) < wanted {
            assert!(Instant::now() < deadline, "no load: {}", daemon.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        off.store(true, Ordering::SeqCst);
        disk.power_off().expect("the file system can be shut down");
        threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect()
    });
    // Whatever is asked now, nothing is promised any more.
    let mut late = None;
    if let Ok(mut client) = Client::connect(&socket)
        && let Ok(reply) = client.try_request(&request(&browsers[0], first + 999_999))
        && reply["ok"] == true
    {
        late = Some(format!("acknowledged after the power had gone: {reply}"));
    }
    (taken, late)
}

/// Bursts of pipelined lines until the connection ends: what was acknowledged while there was power.
///
/// An fsync that is under way when ext4 is shut down may return 0 although its transaction was thrown away
/// (`jbd2_complete_transaction` takes one that is no longer running for committed), and the line is acknowledged. When the
/// power fails nobody is left to hear that, so what is heard after the switch was touched does not count.
fn send_until_it_ends(
    socket: &Path,
    browsers: &[Subscription],
    first: u64,
    count: &AtomicUsize,
    off: &AtomicBool,
) -> Vec<(String, u64)> {
    let mut acked = Vec::new();
    let Ok(mut client) = Client::connect(socket) else { return acked };
    for burst in 0.. {
        let numbers = (0..LINES_A_BURST as u64).map(|line| first + burst * LINES_A_BURST as u64 + line);
        let lines = numbers.clone().map(|number| format!("{}\n", request(&browsers[number as usize % browsers.len()], number)));
        if client.send_raw(lines.collect::<String>().as_bytes()).is_err() {
            return acked;
        }
        for number in numbers {
            match client.recv() {
                Ok(reply) if reply["ok"] == true && !off.load(Ordering::SeqCst) => {
                    acked.push((reply["message_id"].as_str().expect("an id").to_owned(), number));
                    count.fetch_add(1, Ordering::Relaxed);
                }
                // Refused, too late, or the end.
                _ => return acked,
            }
        }
    }
    acked
}

fn request(to: &Subscription, number: u64) -> Value {
    json!({"op": "send", "to": {"subscription": to.json()}, "payload": {"n": number}})
}

/// The first acknowledged line that the daemon does not know.
fn missing(client: &mut Client, acked: &[(String, u64)]) -> Option<String> {
    let mut lost = Vec::new();
    for ids in acked.chunks(500) {
        for (id, _) in ids {
            client.send(&json!({"op": "status", "message_id": id})).expect("the daemon runs");
        }
        for (id, number) in ids {
            let status = client.recv().expect("the daemon runs");
            if status["ok"] != true || status["recipients"] != 1 {
                lost.push(format!("line {number}, {id}: {status}"));
            }
        }
    }
    Some(format!("{} of {} lost, the first: {}", lost.len(), acked.len(), lost.first()?))
}

fn number_of(payload: &str) -> u64 {
    let payload: Value = serde_json::from_str(payload).expect("our own payload");
    payload["n"].as_u64().expect("its number")
}

fn libeatmydata() -> Option<String> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    let mut candidates = folders.map(|folder| folder.join("libeatmydata.so"));
    let found = candidates.find(|path| path.exists())?;
    Some(found.to_string_lossy().into_owned())
}
