//! Counting the load generator's messages: each payload begins with its number and the time it was made, so that distinctness,
//! completeness and latency come for the price of reading two numbers.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Numbers above this are not counted here, so that a stray payload cannot make the set of numbers huge.
const NUMBER_MAX: u64 = 1 << 28;

/// How a measured payload begins: `{"seq":N,"sent":MICROSECONDS,...`, microseconds since 1970.
pub fn payload_head(seq: u64, sent: u64) -> String {
    format!("{{\"seq\":{seq},\"sent\":{sent},")
}

fn parse(payload: &[u8]) -> Option<(u64, u64)> {
    let (seq, rest) = number(payload.strip_prefix(b"{\"seq\":")?)?;
    let (sent, _) = number(rest.strip_prefix(b",\"sent\":")?)?;
    (seq < NUMBER_MAX).then_some((seq, sent))
}

fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take(20).take_while(|byte| byte.is_ascii_digit()).count();
    let value = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    Some((value, &text[digits..]))
}

/// The quantiles of [`Measured::latency_curve`].
pub const CURVE: [f64; 14] = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999];

/// What has been taken of a measurement's messages.
#[derive(Default)]
pub(super) struct Tally {
    seen: Vec<u64>,
    distinct: u64,
    repeats: u64,
    first: u64,
    last: u64,
    latency: Option<Histogram<u64>>,
}

/// What a measurement asks for at its end; times in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Different numbers taken.
    pub distinct: u64,
    /// Taken again.
    pub repeats: u64,
    /// When the first came, since 1970; 0 if none has.
    pub first: u64,
    /// When the last came, since 1970.
    pub last: u64,
    /// From `sent` to the whole request's arrival here.
    pub latency_p50: u64,
    pub latency_p99: u64,
    pub latency_max: u64,
    /// At each of [`CURVE`]; empty if nothing has come.
    pub latency_curve: Vec<u64>,
}

impl Tally {
    /// Counts a message taken at `time`: how often it had come before; None if it is not a measurement's.
    pub fn count(&mut self, payload: &[u8], time: u64) -> Option<u32> {
        let (seq, sent) = parse(payload)?;
        let (word, bit) = ((seq / 64) as usize, 1 << (seq % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        let before = self.seen[word] & bit != 0;
        self.seen[word] |= bit;
        if before {
            self.repeats += 1;
            // A bit knows no more than that.
            return Some(1);
        }
        self.distinct += 1;
        if self.first == 0 {
            self.first = time;
        }
        self.last = time;
        // An hour, to three digits.
        let latency = self.latency.get_or_insert_with(|| Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("good bounds"));
        latency.saturating_record(time.saturating_sub(sent).max(1));
        Some(0)
    }

    pub fn measured(&self) -> Measured {
        let at = |quantile| self.latency.as_ref().map_or(0, |latency| latency.value_at_quantile(quantile));
        Measured {
            distinct: self.distinct,
            repeats: self.repeats,
            first: self.first,
            last: self.last,
            latency_p50: at(0.5),
            latency_p99: at(0.99),
            latency_max: self.latency.as_ref().map_or(0, Histogram::max),
            latency_curve: self.latency.as_ref().map_or_else(Vec::new, curve),
        }
    }

    /// Adds the numbers of another, whose messages are others.
    pub fn join(&mut self, other: &Tally) {
        self.distinct += other.distinct;
        self.repeats += other.repeats;
        if self.first == 0 || other.first != 0 && other.first < self.first {
            self.first = other.first;
        }
        self.last = self.last.max(other.last);
        match (&mut self.latency, &other.latency) {
            (Some(latency), Some(more)) => latency.add(more).expect("equal bounds"),
            (None, Some(more)) => self.latency = Some(more.clone()),
            (_, None) => {}
        }
    }

    pub fn reset(&mut self) {
        *self = Tally::default();
    }
}

/// A histogram's values at each of [`CURVE`].
pub fn curve(histogram: &Histogram<u64>) -> Vec<u64> {
    CURVE.iter().map(|quantile| histogram.value_at_quantile(*quantile)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_once_and_timed() {
        let mut tally = Tally::default();
        for seq in [0, 70, 1] {
            let payload = format!("{}\"pad\":\"\"}}", payload_head(seq, 1_000));
            assert_eq!(tally.count(payload.as_bytes(), 3_000), Some(0));
        }
        assert_eq!(tally.count(format!("{}\"pad\":\"\"}}", payload_head(70, 1_000)).as_bytes(), 9_000), Some(1));
        assert_eq!(tally.count(b"hello", 3_000), None);
        assert_eq!(tally.count(b"{\"seq\":x", 3_000), None);
        assert_eq!(tally.count(b"{\"seq\":5,\"sent\":", 3_000), None);
        let measured = tally.measured();
        assert_eq!((measured.distinct, measured.repeats, measured.first, measured.last), (3, 1, 3_000, 3_000));
        assert!((1_999..=2_001).contains(&measured.latency_p50), "{measured:?}");
        assert_eq!(measured.latency_curve.len(), CURVE.len());
        assert!(measured.latency_curve.iter().all(|value| (1_999..=2_001).contains(value)), "{measured:?}");
        tally.reset();
        assert_eq!(tally.measured(), Measured::default());
    }
}
