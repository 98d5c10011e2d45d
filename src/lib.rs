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
//! | [`schedule`] | which rows are due, lane by lane; [`origin::table`] keeps each push service's health |
//! | [`encrypt`] | worker threads; [`encrypt::payload`] is RFC 8188 and 8291, [`vapid::token`] RFC 8292 |
//! | [`deliver`] | a pool of connections for each push service |
//! | [`outcome`] | [`outcome::verdict`] names what an answer means; then the delivery is settled or waits |
//!
//! Beside the way: [`message`] holds the types that the stages hand to each other, [`limits`] the bounds that must agree,
//! [`protocol`] the words that clients, store and stages share, [`clock`] is the only caller of the system clock, [`metrics`] names every metric, [`template`] makes bodies the recipient's own,
//! [`receipt`] issues and opens the tokens that come back as `feedback`, [`ids`] makes opaque what clients see of ids and cursors.
//! [`daemon`] makes every channel, thread and task; stages know the types and the store, but not each other. [`descriptors`] shares out
//! the process's limit of open files, [`complaint`] keeps the log readable whatever comes from outside, [`printable`] stands between text
//! from outside and every terminal and log, [`scrape`] serves the metrics. [`config`] is read once into checked values. [`setup`],
//! [`client`] and [`exit`] are the program's other commands, which use the daemon through its socket only.
//!
//! # Following one message
//!
//! Each arrow is one call or one channel.
//!
//! 1. `ingest/mod.rs` reads a line -> `ingest/line/` parses and checks it; what passed cannot fail later for its form.
//! 2. -> `store/commit.rs` lays out its rows -> `store/writer/accept.rs` numbers it and commits it with everything else that waited, in
//!    one synced batch -> `ingest/answer/mod.rs` answers.
//! 3. The writer's news, or the next look at the lane, brings its row to `schedule/mod.rs`, which hands out a run: a row, from
//!    where, how many at most. It never sees a body. Of a campaign it opens a stretch of serials (`store/registry/walk.rs`).
//! 4. -> `encrypt/mod.rs`: a worker reads the row (`store/load.rs`), claims the places that are still due, fills in what is each
//!    recipient's own (`encrypt/fill.rs`), seals them (`encrypt/payload.rs`) and adds the token that is ready (`encrypt/vapid.rs`).
//! 5. -> `deliver/mod.rs` queues it at its origin -> `deliver/http2.rs` (or `http1.rs`) posts it, and answers exactly once: with
//!    the push service's answer or the reason why there is none.
//! 6. -> `outcome/mod.rs` asks `outcome/verdict/mod.rs` what that means and tells `schedule/origins.rs` how the push service fares.
//! 7. -> `store/writer/settle.rs` settles: one byte for the recipient, a row if it waits, an event if there is something to tell; all of
//!    that is on disk at the next checkpoint.
//! 8. `ingest/answer/read.rs` (or `events.rs`) reads it from the store (`store/read.rs`) when a client asks for `status` or `events`.

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
pub mod limits;
pub mod message;
pub mod metrics;
pub mod origin;
pub mod outcome;
pub mod printable;
pub mod protocol;
pub mod receipt;
pub mod schedule;
pub mod scrape;
pub mod services;
pub mod setup;
pub mod store;
pub mod template;
pub mod vapid;
