//! Times of the protocol: RFC 3339 text <-> milliseconds.

use std::io::Write;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::message::UnixMillis;

/// RFC 3339 in UTC with milliseconds. Times beyond the year 9999 (there is none but "never") are shown as its end.
pub fn format_time(time: UnixMillis) -> String {
    let mut out = Vec::with_capacity(24);
    write_time(&mut out, time);
    String::from_utf8(out).expect("a time is ASCII")
}

/// Appends what [`format_time`] returns.
pub fn write_time(out: &mut Vec<u8>, time: UnixMillis) {
    // 9999-12-31T23:59:59.999Z
    const LAST: u64 = 253_402_300_799_999;
    let millis = time.0.min(LAST);
    let (year, month, day) = civil(millis / 86_400_000);
    let rest = millis % 86_400_000;
    let (hour, minute, second) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1_000 % 60);
    write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", rest % 1_000)
        .expect("writing to memory does not fail");
}

/// The time of RFC 3339 text with any offset, cut to milliseconds; what lies before 1970 is 1970. None if it is no such text.
pub fn parse_time(text: &str) -> Option<UnixMillis> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    let millis = time.unix_timestamp_nanos().div_euclid(1_000_000);
    Some(UnixMillis(u64::try_from(millis).unwrap_or(0)))
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar: counted in years that begin in March, so
/// that the leap day is the last one.
fn civil(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468; // since 0000-03-01
    let era = day / 146_097;
    let of_era = day % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times() {
        assert_eq!(format_time(UnixMillis(1_795_343_400_123)), "2026-11-22T10:30:00.123Z");
        assert_eq!(format_time(UnixMillis::NEVER), "9999-12-31T23:59:59.999Z");
        for (text, millis) in [
            ("2026-11-22T10:30:00.123Z", Some(1_795_343_400_123)),
            ("2026-11-22T10:30:00.1239999999Z", Some(1_795_343_400_123)),
            ("2026-11-22T11:30:00+01:00", Some(1_795_343_400_000)),
            ("2026-11-22t10:30:00z", Some(1_795_343_400_000)),
            ("1969-12-31T23:59:59.5Z", Some(0)),
            ("2026-11-22T10:30:00", None),
            ("2026-11-22", None),
            ("2026-02-29T00:00:00Z", None),
            ("2026-11-22T24:00:00Z", None),
            ("22.11.2026", None),
            ("", None),
        ] {
            assert_eq!(parse_time(text), millis.map(UnixMillis), "{text}");
        }
    }

    proptest! {
        #[test]
        fn times_go_there_and_back(millis in 0u64..253_402_300_800_000) {
            prop_assert_eq!(parse_time(&format_time(UnixMillis(millis))), Some(UnixMillis(millis)));
        }

        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            parse_time(&text);
        }
    }
}
