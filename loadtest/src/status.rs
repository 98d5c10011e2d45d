//! Where a message stands.

use serde::Serialize;
use serde_json::{Value, json};

use crate::client::Client;

/// The states in which a recipient ends.
pub const ENDED: [&str; 6] = ["accepted", "gone", "refused", "expired", "cancelled", "skipped"];

/// The status of a message. Its numbers must add up whenever it is asked for.
///
/// # Panics
///
/// If there is none, or its numbers do not add up.
pub fn status(client: &mut Client, id: impl Serialize) -> Value {
    let status = client.ok(&json!({"op": "status", "message_id": id}));
    assert!(adds_up(&status), "{status}");
    status
}

/// Whether the numbers of a status add up (docs/design.md 1.4).
pub fn adds_up(status: &Value) -> bool {
    let n = |name: &str| status[name].as_u64();
    let all: Option<u64> = ENDED.into_iter().chain(["pending"]).map(n).sum();
    all.is_some() && all == n("recipients") && n("in_flight") <= n("pending")
}
