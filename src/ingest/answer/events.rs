//! `events`: the log is read a page at a time, and followed while the client listens.

use crate::ids::Position;
use crate::ingest::answer::refusal::Refusal;
use crate::ingest::answer::{Answerer, Gone, OUT_BYTES, gone};
use crate::ingest::reply::{begin_ok, end, member, member_text};
use crate::ingest::request::{After, Code, EventType, Events, Problem, RequestId};
use crate::ingest::{stopping, subscription_name};
use crate::store::commit::Apps;
use crate::store::read::StoredEvent;
use crate::store::{ReadError, Store};

/// Events that are told unless a limit is given or they are followed.
const LIMIT: u32 = 1_000;
/// Events that are read at once.
const PAGE: usize = 1_000;

impl Answerer {
    pub(super) async fn events(&mut self, id: RequestId, events: Events, out: &mut Vec<u8>) -> Result<(), Gone> {
        let store = self.door.store.clone();
        let apps = self.socket.apps();
        let mut told = store.events_end.subscribe();
        let mut after = match first_number(&store, &events.after) {
            Ok(after) => after,
            Err(refusal) => {
                refusal.write(&id, out);
                return Ok(());
            }
        };
        let mut left = match (events.limit, events.follow) {
            (Some(limit), _) => u64::from(limit),
            (None, false) => u64::from(LIMIT),
            (None, true) => u64::MAX,
        };
        let filter = Filter { apps, events: &events, message_id: events.message_id.map(|id| id.to_string()) };
        let mut stop = self.door.stop.clone();
        loop {
            self.make_room().await?;
            told.mark_unchanged();
            let (reading, from) = (store.clone(), after);
            let read = tokio::task::spawn_blocking(move || reading.events_after(from, PAGE)).await;
            let page = match read {
                Ok(Ok(page)) => page,
                _ => {
                    Refusal::from(ReadError).write(&id, out);
                    return Ok(());
                }
            };
            let ended = page.is_empty();
            for event in page {
                if left == 0 {
                    break;
                }
                after = event.number;
                if filter.takes(&event) {
                    write_event(&store, &event, out);
                    left -= 1;
                }
                if out.len() >= OUT_BYTES {
                    self.flush(out, &mut Vec::new()).await?;
                }
            }
            if left == 0 || !events.follow && ended {
                break;
            }
            if ended {
                self.flush(out, &mut Vec::new()).await?;
                tokio::select! {
                    changed = told.changed() => if changed.is_err() { return Ok(()) },
                    () = stopping(&mut stop) => return Ok(()),
                    // The client has gone.
                    () = gone(&self.out) => return Err(Gone),
                }
            }
        }
        let more = store.event_range().is_ok_and(|range| after < range.newest);
        begin_ok(out, &id);
        member_text(out, "cursor", &cursor(&store, after));
        member(out, "more", more);
        end(out);
        Ok(())
    }
}

fn cursor(store: &Store, number: u64) -> String {
    cursor_head(store) + &store.ids.seal(Position::Event(number))
}

fn cursor_head(store: &Store) -> String {
    format!("{:016x}-", u64::from_be_bytes(store.id))
}

fn write_event(store: &Store, event: &StoredEvent, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"cursor\":\"");
    out.extend_from_slice(cursor(store, event.number).as_bytes());
    out.extend_from_slice(b"\",");
    // The stored text is an object: its opening brace is replaced.
    out.extend_from_slice(event.json.get(1..).unwrap_or_default());
    out.push(b'\n');
}

fn first_number(store: &Store, after: &After) -> Result<u64, Refusal> {
    let range = store.event_range()?;
    let number = match after {
        After::Oldest => return Ok(range.oldest),
        After::Newest => return Ok(range.newest),
        After::Cursor(text) => text.strip_prefix(&cursor_head(store)).and_then(|number| store.ids.event_number(number)),
    };
    match number {
        Some(number) if (range.oldest..=range.newest).contains(&number) => Ok(number),
        _ => Err(Refusal {
            problem: Problem {
                code: Code::CursorExpired,
                field: Some("after".to_owned()),
                message: "this cursor is too old, of another store, or beyond the end".to_owned(),
            },
            retry_after: None,
            extra: vec![
                ("oldest", format!("\"{}\"", cursor(store, range.oldest))),
                ("newest", format!("\"{}\"", cursor(store, range.newest))),
            ],
        }),
    }
}

struct Filter<'a> {
    apps: Apps,
    events: &'a Events,
    message_id: Option<String>,
}

impl Filter<'_> {
    fn takes(&self, event: &StoredEvent) -> bool {
        let Ok(object) = serde_json::from_slice::<serde_json::Value>(&event.json) else { return false };
        let text = |name: &str| object.get(name).and_then(serde_json::Value::as_str);
        let is = |wanted: Option<&str>, name: &str| wanted.is_none_or(|wanted| text(name) == Some(wanted));
        let events = self.events;
        self.apps.iter().any(|app| text("app") == Some(app))
            && is(events.app.as_deref(), "app")
            && is(events.label.as_deref(), "label")
            && is(self.message_id.as_deref(), "message_id")
            && is(events.account.as_deref(), "account")
            && is(events.subscription_id.as_ref().map(subscription_name).as_deref(), "subscription_id")
            && events
                .types
                .as_ref()
                .is_none_or(|types| text("type").and_then(EventType::parse).is_some_and(|kind| types.contains(&kind)))
    }
}
