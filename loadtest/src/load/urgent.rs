//! Urgent one-to-one messages at a steady pace, whatever else goes on: numbered and timed, so that the mock knows how long each took.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::mock::payload_head;
use serde_json::value::RawValue;

/// One to each of the targets this often.
const EVERY: Duration = Duration::from_millis(100);

/// Sends until it is finished.
pub struct Urgent {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<()>>,
}

impl Urgent {
    /// Starts at the number `first`; each target gets every so-manieth.
    pub fn start(socket: &Path, targets: Vec<Box<RawValue>>, first: u64) -> io::Result<Urgent> {
        let mut client = Client::connect(socket)?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), sent.clone());
        let thread = std::thread::Builder::new().name("urgent".to_owned()).spawn(move || {
            let mut due = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                for target in &targets {
                    let number = first + counted.load(Ordering::Relaxed);
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
                    let line = format!(
                        "{{\"op\":\"send\",\"urgency\":\"high\",\"ttl\":3600,\"to\":{{\"subscription\":{}}},\"payload\":{}\"text\":\"now\"}}}}\n",
                        target.get(),
                        payload_head(number, now)
                    );
                    client.send_raw(line.as_bytes())?;
                    let reply = client.recv()?;
                    if reply["ok"] != true {
                        return Err(io::Error::other(format!("an urgent message was answered {reply}")));
                    }
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                due += EVERY;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Ok(())
        })?;
        Ok(Urgent { stop, sent, thread })
    }

    /// Ends it: how many were sent and acknowledged.
    pub fn finish(self) -> io::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| io::Error::other("the urgent messages' thread panicked"))??;
        Ok(self.sent.load(Ordering::Relaxed))
    }
}
