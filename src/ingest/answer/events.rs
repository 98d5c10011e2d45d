//! `events`: the log is read a page at a time, and followed while the client listens. Each page is a turn, so that who has much to
//! look at does not hold up others, and a client that has gone is found to be before the next one.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::Position;
use crate::ingest::answer::refusal::Refusal;
use crate::ingest::answer::{Answerer, Gone, gone, one_of};
use crate::ingest::stopping;
use crate::protocol::reply::{begin_ok, end, member, member_text};
use crate::protocol::request::{After, Code, Events, Problem, RequestId};
use crate::store::commit::Apps;
use crate::store::log::{EventFilter, PAGE, StoredEvent};
use crate::store::registry::row::App;
use crate::store::{ReadError, Store};

/// Events that are told unless a limit is given or they are followed.
const LIMIT: u32 = 1_000;

impl Answerer {
    pub(super) async fn events(&mut self, id: RequestId, events: Events, out: &mut Vec<u8>) -> Result<(), Gone> {
        let store = self.door.store.clone();
        let apps = self.socket.apps();
        let app = store.registry.seals_for(&apps);
        let filter = Arc::new(EventFilter::new(&events, &apps));
        let mut told = store.events_end.subscribe();
        let dropped = store.log.dropped(&filter);
        let mut stop = self.door.stop.clone();
        let begin = match &events.after {
            After::Last(most) => {
                let Some(turn) = one_of(self.door.walks.take(&self.socket.name), &self.out, &mut stop).await? else {
                    Refusal::stopping().write(&id, out);
                    return Ok(());
                };
                let (reading, wanted, most) = (store.clone(), filter.clone(), *most as usize);
                let read = tokio::task::spawn_blocking(move || {
                    let _turn = turn;
                    reading.before_last_events(&wanted, most)
                });
                match read.await {
                    Ok(Ok(number)) => Ok(number),
                    _ => Err(Refusal::from(ReadError)),
                }
            }
            after => first_number(&store, &apps, &filter, after),
        };
        let mut after = match begin {
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
        loop {
            self.make_room().await?;
            told.mark_unchanged();
            let end = *store.events_end.borrow();
            let ended = if store.log.newest(&filter) <= after {
                // Nothing that concerns it has come: that needs no turn.
                after = after.max(end - 1);
                true
            } else {
                self.flush(out, &mut Vec::new()).await?;
                let Some(turn) = one_of(self.door.walks.take(&self.socket.name), &self.out, &mut stop).await? else {
                    if !events.follow {
                        Refusal::stopping().write(&id, out);
                    }
                    return Ok(());
                };
                let (reading, wanted, from) = (store.clone(), filter.clone(), after);
                let most = usize::try_from(left).unwrap_or(PAGE).min(PAGE);
                let read = tokio::task::spawn_blocking(move || {
                    let _turn = turn;
                    reading.events_page(&wanted, from, most)
                });
                let Ok(Ok(page)) = read.await else {
                    Refusal::from(ReadError).write(&id, out);
                    return Ok(());
                };
                // Told before rows go: if something was missing, it is known by now.
                if let Err(refusal) = nothing_missing(&store, &apps, &filter, &dropped, after) {
                    refusal.write(&id, out);
                    return Ok(());
                }
                after = page.reached;
                left -= page.events.len() as u64;
                let ended = page.ended;
                page.events.iter().for_each(|event| write_event(&store, app, event, out));
                // Nobody who takes his time holds more than this of it.
                drop(page);
                self.flush(out, &mut Vec::new()).await?;
                ended
            };
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
        begin_ok(out, &id);
        member_text(out, "cursor", &cursor(&store, app, after));
        member(out, "more", store.log.newest(&filter) > after);
        end(out);
        Ok(())
    }
}

fn cursor(store: &Store, app: App, number: u64) -> String {
    cursor_head(store) + &store.ids.seal(Position::Event { app, number })
}

fn cursor_head(store: &Store) -> String {
    format!("{:016x}-", u64::from_be_bytes(store.id))
}

fn write_event(store: &Store, app: App, event: &StoredEvent, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"cursor\":\"");
    out.extend_from_slice(cursor(store, app, event.number).as_bytes());
    out.extend_from_slice(b"\",");
    // The stored text is an object: its opening brace is replaced.
    out.extend_from_slice(event.json.get(1..).unwrap_or_default());
    out.push(b'\n');
}

fn first_number(store: &Store, apps: &Apps, filter: &EventFilter, after: &After) -> Result<u64, Refusal> {
    let range = store.event_range(filter);
    let number: Option<u64> = match after {
        After::Oldest | After::Last(_) => return Ok(0),
        After::Newest => return Ok(range.newest),
        After::Cursor(text) => {
            let has = |app| store.registry.is_of(app, apps);
            text.strip_prefix(&cursor_head(store)).and_then(|number| store.ids.event_number(number, has))
        }
    };
    match number.filter(|number| *number <= range.newest) {
        Some(number) => nothing_missing(store, apps, filter, &BTreeMap::new(), number).map(|()| number),
        None => {
            Err(expired(store, apps, filter, "this cursor is too old, of another store or socket, or beyond the end".to_owned()))
        }
    }
}

/// Whether all events of these apps behind this number are there; of those that were `known` to be missing nothing is said.
fn nothing_missing(
    store: &Store,
    apps: &Apps,
    filter: &EventFilter,
    known: &BTreeMap<Arc<str>, u64>,
    after: u64,
) -> Result<(), Refusal> {
    let missing: Vec<_> =
        store.log.dropped(filter).into_iter().filter(|of| of.1 > after && known.get(&of.0) != Some(&of.1)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|(app, _)| &**app).filter(|app| !app.is_empty()).collect();
    let whose = if names.is_empty() { String::new() } else { format!(" of {}", names.join(", ")) };
    let message = format!("events{whose} behind this cursor are not kept any more: see events.retention and events.max_mb");
    Err(expired(store, apps, filter, message))
}

fn expired(store: &Store, apps: &Apps, filter: &EventFilter, message: String) -> Refusal {
    let range = store.event_range(filter);
    let app = store.registry.seals_for(apps);
    Refusal {
        problem: Problem { code: Code::CursorExpired, field: Some("after".to_owned()), message },
        retry_after: None,
        extra: vec![
            ("oldest", format!("\"{}\"", cursor(store, app, range.oldest))),
            ("newest", format!("\"{}\"", cursor(store, app, range.newest))),
        ],
    }
}
