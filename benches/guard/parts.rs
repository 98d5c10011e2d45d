//! The parts whose instructions are counted, and those of them that need nothing around them: parsing and sealing.

use std::hint::black_box;

use fanfare::encrypt::payload::{Agreement, Plain, Sealer};
use fanfare::endpoint::{EndpointPolicy, Policy};
use fanfare::ingest::line::parse;
use fanfare::message::Encoding;

use crate::fixture::{self, BODY, NOW, POINT};
use crate::{counted, deliver, settle};

/// One step of a message's way.
pub struct Part {
    pub name: &'static str,
    /// What one operation is done with, with its article.
    pub what: &'static str,
    /// How many are played.
    pub operations: u64,
    /// Plays so many, of which [`counted`] sees what the step is made of.
    pub play: fn(u64),
    /// It needs what callgrind does not know.
    pub batched: bool,
}

/// In the order in which a message meets them.
pub const PARTS: [Part; 5] = [
    Part { name: "parse", what: "a line", operations: 1_000, play: play_parse, batched: false },
    Part { name: "seal", what: "a slice of eight", operations: 8, play: |slices| seal(slices, Agreement::AwsLc), batched: false },
    Part { name: "seal_batched", what: "a slice of eight", operations: 2, play: play_batch, batched: true },
    Part { name: "post", what: "a message", operations: 960, play: deliver::play, batched: false },
    Part { name: "settle", what: "an answer", operations: 2_048, play: settle::play, batched: false },
];

/// A `send` to one subscription with a body of its own.
fn play_parse(lines: u64) {
    let rules = fixture::rules(EndpointPolicy::new(Policy::Known, Vec::new()));
    let line = format!(
        r#"{{"op":"send","id":17,"to":{{"subscription":{{"endpoint":"https://fcm.googleapis.com/fcm/send/{}","expirationTime":null,"keys":{{"p256dh":"{POINT}","auth":"BTBZMqHH6r4Tts7J_aSIgg"}}}}}},"urgency":"high","ttl":3600,"label":"orders","payload":"{}"}}"#,
        "dQw4w9WgXcQ:APA91b".repeat(9),
        "a".repeat(BODY)
    );
    assert!(parse(line.as_bytes(), &rules, NOW).1.is_ok());
    counted(&mut || {
        for _ in 0..lines {
            black_box(parse(black_box(line.as_bytes()), &rules, NOW).1.is_ok());
        }
    });
}

/// Slices of eight, by eight keys.
fn seal(slices: u64, agreement: Agreement) {
    let keys: [[u8; 65]; 8] = fixture::points();
    let (payload, auth) = (vec![b'x'; BODY], [7; 16]);
    let plain = |p256dh| Plain { p256dh, auth: &auth, encoding: Encoding::Aes128gcm, payload: &payload, pad_to: 0 };
    let slice = keys.each_ref().map(plain);
    let mut sealer = Sealer::new(agreement);
    let mut out = Vec::with_capacity(slice.len());
    // The first one fills what is kept.
    sealer.seal(&slice, &mut out);
    counted(&mut || {
        for _ in 0..slices {
            out.clear();
            sealer.seal(&slice, &mut out);
        }
    });
    assert!(out.len() == slice.len() && out.iter().all(Result::is_ok));
}

fn play_batch(slices: u64) {
    seal(slices, with_batch().expect("it was asked for before"));
}

/// The batched key agreement, where the processor has it.
pub fn with_batch() -> Option<Agreement> {
    Some(Agreement::fastest()).filter(|fastest| matches!(fastest, Agreement::Batch(_)))
}
