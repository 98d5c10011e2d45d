//! How much a peer may send for what it is asked: a bound for everything that brings nothing, whatever it is.
//!
//! h2 bounds some of that itself: CONTINUATION (5 a header block), empty DATA (100 a connection), streams reset for errors of the peer
//! (1,024 a connection); and some are errors at once: PUSH_PROMISE, a WINDOW_UPDATE of 0, trailers that end no stream. The rest it
//! takes without a word and without end: WINDOW_UPDATE, PRIORITY, SETTINGS, PING, GOAWAY, unknown frames, 1xx answers, RST_STREAM of
//! closed streams, DATA of those that we have reset. TLS passes over tickets, and takes records of one byte; hyper takes any number
//! of 1xx over HTTP/1.1. An own rule for each would miss the next one, so all that comes is counted together, here, before h2 sees
//! it: what may come is a fixed amount, some more each second, and some more for each request (RFC 9113 section 10.5).
//!
//! Nothing here does I/O or reads a clock.

use std::time::Instant;

use super::origin::STREAMS_MAX;

/// What is counted: pieces (HTTP/2 frames, or reads of the socket where these are more, for a frame can come byte by byte) and
/// bytes of TLS, because a record can hold next to nothing.
#[derive(Clone, Copy, Debug)]
struct Amount {
    pieces: f64,
    bytes: f64,
}

/// Of a connection without requests. Push services say little then: Google's front ends PING to measure the path and open stream 0's
/// window again now and then, which makes a few frames a second at most.
const EACH_SECOND: Amount = Amount { pieces: 100.0, bytes: 64.0 * 1024.0 };
/// For each request. An answer is HEADERS and one or two DATA; beside it come at most a WINDOW_UPDATE each for stream and connection, a
/// 103, a PING, an RST_STREAM(NO_ERROR): half of this. Four times as much as the usual costs us less than the request itself. The
/// bytes are those of a stream's whole window and of a large header block.
const EACH_REQUEST: Amount = Amount { pieces: 16.0, bytes: 20.0 * 1024.0 };
/// From the start: greetings, tickets, SETTINGS, and whoever has a fit of talking.
const AT_FIRST: Amount = Amount { pieces: 1_000.0, bytes: 256.0 * 1024.0 };
/// What is not used is kept up to here, so that no connection earns a flood by good behaviour (twice this at most: before it is used up,
/// nobody looks at what could be given anew), and as many requests as there are streams can be answered at once.
const KEPT: Amount = Amount {
    pieces: AT_FIRST.pieces + STREAMS_MAX as f64 * EACH_REQUEST.pieces,
    bytes: AT_FIRST.bytes + STREAMS_MAX as f64 * EACH_REQUEST.bytes,
};

/// What one peer may still send on one connection.
#[derive(Debug)]
pub(super) struct Allowance {
    left: Amount,
    /// Until when, and for how many requests, it has been given.
    until: Instant,
    requests: u64,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Allowance {
        Allowance { left: AT_FIRST, until: now, requests: 0 }
    }

    /// Takes what has come. False if that is more than is allowed. `now` and the number of requests sent so far are asked for only when
    /// what was given before is used up: most reads cost two subtractions.
    pub(super) fn take(
        &mut self,
        pieces: u64,
        bytes: u64,
        now: impl FnOnce() -> Instant,
        requests: impl FnOnce() -> u64,
    ) -> bool {
        self.left.pieces -= pieces as f64;
        self.left.bytes -= bytes as f64;
        if self.enough() {
            return true;
        }
        self.give(now(), requests());
        self.enough()
    }

    fn enough(&self) -> bool {
        self.left.pieces >= 0.0 && self.left.bytes >= 0.0
    }

    fn give(&mut self, now: Instant, requests: u64) {
        let seconds = now.saturating_duration_since(self.until).as_secs_f64();
        let sent = (requests - self.requests) as f64;
        self.until = now;
        self.requests = requests;
        let given = |each_second: f64, each_request: f64| seconds * each_second + sent * each_request;
        let Amount { pieces, bytes } = self.left;
        self.left = Amount {
            pieces: (pieces + given(EACH_SECOND.pieces, EACH_REQUEST.pieces)).min(KEPT.pieces),
            bytes: (bytes + given(EACH_SECOND.bytes, EACH_REQUEST.bytes)).min(KEPT.bytes),
        };
    }
}

/// Follows the frames of HTTP/2 in what is read, to count them (RFC 9113 section 4.1). Nothing is copied; a frame costs the reading
/// of its length.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Bytes of the current frame that are still to come.
    rest: usize,
    /// The next frame's length, as far as it has come, and how many of its three bytes that are.
    length: usize,
    known: u8,
}

/// What follows the length in a frame's header: type, flags, stream.
const HEADER_REST: usize = 6;

impl Frames {
    /// How many frames begin in the next bytes of the connection.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) -> u64 {
        let mut begun = 0;
        loop {
            let pass = self.rest.min(bytes.len());
            self.rest -= pass;
            bytes = &bytes[pass..];
            while self.known < 3 {
                let Some((&byte, after)) = bytes.split_first() else { return begun };
                self.length = self.length << 8 | usize::from(byte);
                self.known += 1;
                bytes = after;
            }
            *self = Frames { rest: HEADER_REST + self.length, length: 0, known: 0 };
            begun += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Takes pieces one by one, `each` apart, until it is too much; gives how many were taken, at most `most`.
    fn until_too_much(allowance: &mut Allowance, begun: Instant, each: Duration, requests: u64, most: u32) -> u32 {
        (0..most).find(|&n| !allowance.take(1, 1, || begun + each * n, || requests)).unwrap_or(most)
    }

    #[test]
    fn a_flood_ends_and_a_trickle_does_not() {
        let now = Instant::now();
        let flood = until_too_much(&mut Allowance::new(now), now, Duration::from_micros(10), 0, 1_000_000);
        assert!((1_000..1_010).contains(&flood), "{flood}");
        let trickle = until_too_much(&mut Allowance::new(now), now, Duration::from_millis(11), 0, 100_000);
        assert_eq!(trickle, 100_000);
        let bytes = (0..).find(|_| !Allowance::new(now).take(1, 256 * 1024 + 1, || now, || 0));
        assert_eq!(bytes, Some(0), "bytes have their own bound");
    }

    #[test]
    fn each_request_allows_some_more() {
        let now = Instant::now();
        let taken = until_too_much(&mut Allowance::new(now), now, Duration::ZERO, 100, 1_000_000);
        assert_eq!(taken, 1_000 + 16 * 100);
        let mut allowance = Allowance::new(now);
        // As many frames as that for each request, for as long as one likes.
        assert!((1..100_000).all(|request| allowance.take(16, 20 * 1024, || now, || request)));
    }

    #[test]
    fn good_behaviour_earns_no_flood() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        assert!((1..100_000).all(|request| allowance.take(3, 200, || now, || request)));
        let flood = until_too_much(&mut allowance, now, Duration::ZERO, 100_000, 1_000_000);
        assert!(flood <= 2 * 17_000, "{flood}");
    }

    fn frame(length: usize) -> Vec<u8> {
        let mut frame = length.to_be_bytes()[5..].to_vec();
        // All bytes are large, so that one that is taken for a length shows.
        frame.resize(9 + length, 0xff);
        frame
    }

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let bytes = [frame(0), frame(8), frame(300), frame(70_000), frame(0), frame(1)].concat();
        for piece in [1, 2, 3, 5, 9, 17, 4096, bytes.len()] {
            let mut frames = Frames::default();
            assert_eq!(bytes.chunks(piece).map(|piece| frames.follow(piece)).sum::<u64>(), 6, "{piece}");
            assert_eq!(frames.rest, 0);
        }
    }
}
