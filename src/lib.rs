//! Fanfare: a Web Push delivery daemon for one Linux host.
//!
//! An application writes messages to a Unix socket, one JSON object a line. Each is committed to an embedded store, encrypted for
//! its browser, signed for its sender, and posted to the browser's push service until it is accepted, refused, or out of time.
//!
//! ```text
//!   application          on threads, with the store         on tokio, with sockets        push service
//!
//!     line --> ingest --> store::writer --> schedule --> encrypt --> deliver ==== HTTP/2 ====> endpoint
//!              (tokio)      | commit          picks        seals       posts                      |
//!     reply <------------- synced                                        |                        |
//!                           ^                                            v                        |
//!     events <--- store <-- settle <------------------------------ outcome <=== status, headers ==+
//!                          (checkpoint)                            what the answer means
//! ```
//!
//! # Two durable moments
//!
//! *Commit*: the line is in the synced write-ahead log, and only then is it answered `"ok":true`. *Settle*: what became of its
//! recipients is in a synced checkpoint. What lies between may vanish at any instant: after a start, what is not settled is due
//! again. So the stages between the two keep nothing that matters, and no state has to be restored but the store's.
//!
//! # The modules, in the order in which a message meets them
//!
//! | module | |
//! |---|---|
//! | [`ingest`] | sockets, connections; [`ingest::line`] turns bytes into checked requests, [`endpoint`] judges endpoints |
//! | [`store`] | the only one that knows RocksDB; [`store::writer`] is the one thread that writes |
//! | [`schedule`] | which rows are due, lane by lane; [`origin`] keeps each push service's health |
//! | [`encrypt`] | worker threads; [`encrypt::payload`] is RFC 8188 and 8291, the crate `p256_batch` its key agreements eight at a time; [`vapid`] RFC 8292 |
//! | [`deliver`] | a pool of connections for each push service |
//! | [`outcome`] | [`outcome::verdict`] names the meaning of an answer; then the delivery is settled or waits |
//!
//! Beside the way:
//!
//! - Words: [`message`] holds the types that the stages hand to each other, [`protocol`] the words that clients read and write,
//!   [`services`] the push services by number, [`limits`] the bounds that must agree.
//! - Text: [`template`] makes bodies the recipient's own, [`receipt`] issues and opens the tokens that come back as `feedback`,
//!   [`ids`] makes opaque what clients see of ids and cursors, [`printable`] stands between text from outside and every terminal and
//!   log, [`complaint`] keeps the log readable whatever comes from outside, [`journal`] gives its entries their priorities.
//! - The machine: [`clock`] is the only caller of the system clock, [`descriptors`] shares out the process's limit of open files, [`queue`] carries work from thread to thread,
//!   [`metrics`] names every metric, [`scrape`] serves them.
//! - The program: [`config`] is read once into checked values. [`daemon`] makes every channel, thread and task. [`client`] has the
//!   commands that use the daemon through its socket only, [`setup`] those before its first start, [`backup`] those that also read the
//!   files of the store. [`exit`] has the exit codes of all of them.
//!
//! # Floors
//!
//! A module uses modules of lower floors, never one of its own floor or of a higher one; test code is free. So the stages do not know
//! each other, and the clients know nothing of the daemon's inside. `tests/floors.rs` reads this table and holds the sources against it.
//!
//! | floor | modules | |
//! |---|---|---|
//! | 8 | [`daemon`], [`backup`] | may use everything |
//! | 7 | [`ingest`], [`schedule`], [`encrypt`], [`deliver`], [`outcome`] | the stages |
//! | 6 | [`origin`] | the health that three stages share |
//! | 5 | [`store`], [`setup`] | the state that outlives the process |
//! | 4 | [`client`], [`config`], [`metrics`], [`receipt`] | users of the protocol's words |
//! | 3 | [`protocol`] | the protocol's words |
//! | 2 | [`clock`], [`endpoint`], [`exit`], [`ids`], [`scrape`], [`services`], [`template`], [`vapid`] | small things that are whole |
//! | 1 | [`complaint`], [`descriptors`], [`journal`], [`limits`], [`message`], [`printable`], [`queue`] | use nothing of ours |
//!
//! # Following one message
//!
//! Each arrow is one call or one channel.
//!
//! 1. `ingest/mod.rs` reads a line -> `ingest/line/` parses and checks it; what passed cannot fail later for its form.
//! 2. -> `store/commit.rs` lays out its rows -> `store/writer/accept.rs` numbers it and puts it into a group with all else that waited ->
//!    `store/writer/write.rs` commits the group in one synced batch -> `ingest/answer/mod.rs` answers.
//! 3. The writer's news (`store/writer/news.rs`), or the next look at the lane, brings its row to `schedule/step.rs`, which hands out
//!    a run (`store/run.rs`): a row, from where, how many at most. It never sees a body. Of a campaign it opens a stretch of serials
//!    (`store/registry/walk.rs`).
//! 4. -> `encrypt/mod.rs`: a worker reads the row and claims the places that are still due (`store/run.rs`, `store/load.rs`), fills
//!    in what is each recipient's own (`encrypt/fill.rs`), seals them (`encrypt/payload.rs`) and adds the token that is ready
//!    (`vapid/token.rs`).
//! 5. -> `deliver/mod.rs` queues it at its origin -> `deliver/http2.rs` (or `deliver/http1.rs`) posts it, and answers exactly once:
//!    with the push service's answer or the reason why there is none.
//! 6. -> `outcome/mod.rs` asks `outcome/verdict/mod.rs` what that means and tells `origin/table.rs` how the push service fares.
//! 7. -> `store/writer/settle.rs` settles: one byte for the recipient, a row if it waits, an event if there is something to tell;
//!    all of that is on disk at the next checkpoint.
//! 8. `ingest/answer/read.rs` reads it from `store/read.rs`, or `ingest/answer/events.rs` from `store/log/mod.rs`, when a client
//!    asks for `status` or `events`.

// They panic where the output takes no more: `client::output` has `say` and `note`.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod backup;
pub mod client;
pub mod clock;
pub mod complaint;
pub mod config;
pub mod daemon;
pub mod deliver;
pub mod descriptors;
pub mod encrypt;
pub mod endpoint;
pub mod exit;
pub mod ids;
pub mod ingest;
pub mod journal;
pub mod limits;
pub mod message;
pub mod metrics;
pub mod origin;
pub mod outcome;
pub mod printable;
pub mod protocol;
pub mod queue;
pub mod receipt;
pub mod schedule;
pub mod scrape;
pub mod services;
pub mod setup;
pub mod store;
pub mod template;
pub mod vapid;
