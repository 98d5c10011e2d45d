//! What makes two requests the same for `idempotency_key`.

use sha2::{Digest, Sha256};

use crate::protocol::json::{Members, Value};

/// First 16 bytes of the SHA-256 of all that a request asks for: every member but `id` and `idempotency_key`, in the order of their names,
/// with one spelling for each number and string.
pub(super) fn fingerprint(members: &Members<'_>) -> [u8; 16] {
    let mut canonical = Vec::with_capacity(1_024);
    let own = |name: &str| !matches!(name, "id" | "idempotency_key");
    write_canonical_members(members, own, false, &mut canonical);
    let hash = Sha256::digest(&canonical);
    let mut first = [0; 16];
    first.copy_from_slice(&hash[..16]);
    first
}

/// `nulls`: a null is a member like any other, as it is inside what is sent; elsewhere it equals an absent one.
fn write_canonical_members(members: &Members<'_>, counts: impl Fn(&str) -> bool, nulls: bool, out: &mut Vec<u8>) {
    let mut sorted: Vec<_> = members.iter().filter(|(name, value)| counts(name) && (nulls || *value != Value::Null)).collect();
    sorted.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    out.push(b'{');
    write_length(sorted.len(), out);
    for (name, value) in sorted {
        write_canonical_text(name, out);
        let sent = nulls || matches!(name.as_ref(), "payload" | "notification");
        write_canonical(value, sent, out);
    }
}

fn write_canonical(value: &Value<'_>, nulls: bool, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(b'n'),
        Value::Bool(true) => out.push(b't'),
        Value::Bool(false) => out.push(b'f'),
        Value::Number(digits) => write_canonical_number(digits, out),
        Value::Text(text) => {
            out.push(b'"');
            write_canonical_text(text, out);
        }
        Value::Array(items) => {
            out.push(b'[');
            write_length(items.len(), out);
            for item in items {
                write_canonical(item, nulls, out);
            }
        }
        Value::Object(members) => write_canonical_members(members, |_| true, nulls, out),
    }
}

/// Integers by their digits, whatever their size (JSON allows no leading zeros); all others by the double they denote, and if that is an
/// integer a double holds exactly, by its digits.
fn write_canonical_number(digits: &str, out: &mut Vec<u8>) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let text = |text: &str, out: &mut Vec<u8>| {
        out.push(b'i');
        write_canonical_text(text, out);
    };
    if !digits.contains(['.', 'e', 'E']) {
        return text(if digits == "-0" { "0" } else { digits }, out);
    }
    match digits.parse::<f64>() {
        Ok(number) if number.trunc() == number && number.abs() < EXACT => text(&format!("{}", number as i64), out),
        Ok(number) if number.is_finite() => {
            out.push(b'd');
            out.extend_from_slice(&number.to_bits().to_be_bytes());
        }
        _ => text(digits, out),
    }
}

fn write_canonical_text(text: &str, out: &mut Vec<u8>) {
    write_length(text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

fn write_length(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&(length as u64).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

    #[test]
    fn fingerprints() {
        let print = |more: &str| sent(&format!(r#","idempotency_key":"k"{more}"#)).fingerprint;
        let base = print(r#","ttl":60,"payload":{"a":1,"b":[null,1.5]},"label":"l""#);
        assert_ne!(base, [0; 16]);
        for same in [
            r#","label":"l","payload":{"b":[null,15e-1],"a":1.0},"ttl":6e1"#,
            r#","ttl":60.0,"payload":{"a":1,"b":[null,1.5]},"label":"\u006c","urgency":null,"id":9"#,
        ] {
            assert_eq!(print(same), base, "{same}");
        }
        let other_key = sent(r#","idempotency_key":"other","ttl":60,"payload":{"a":1,"b":[null,1.5]},"label":"l""#);
        assert_eq!(other_key.fingerprint, base);
        for other in [
            r#","ttl":61,"payload":{"a":1,"b":[null,1.5]},"label":"l""#,
            r#","ttl":60,"payload":{"a":1,"b":[1.5]},"label":"l""#,
            r#","ttl":60,"payload":{"a":1,"b":[null,1.5],"c":null},"label":"l""#,
            r#","ttl":60,"payload":{"a":"1","b":[null,1.5]},"label":"l""#,
            r#","ttl":60,"payload":"{\"a\":1,\"b\":[null,1.5]}","label":"l""#,
            r#","ttl":60,"payload":{"a":1,"b":[null,1.5]},"label":"l","ref":"r""#,
            r#","ttl":60,"payload":{"a":12345678901234567890123,"b":[null,1.5]},"label":"l""#,
            r#","ttl":60,"payload":{"a":12345678901234567890124,"b":[null,1.5]},"label":"l""#,
            r#","ttl":60,"payload":{"a":[],"b":[null,1.5]},"label":"l""#,
            r#","ttl":60,"payload":{"a":{},"b":[null,1.5]},"label":"l""#,
        ] {
            assert_ne!(print(other), base, "{other}");
        }
        let mut prints =
            vec![base, print(r#","payload":["ab","c"]"#), print(r#","payload":["a","bc"]"#), print(r#","payload":[["a"],"bc"]"#)];
        prints
            .extend([print(r#","payload":{"a":12345678901234567890123}"#), print(r#","payload":{"a":12345678901234567890124}"#)]);
        prints.sort_unstable();
        prints.dedup();
        assert_eq!(prints.len(), 6);
    }
}
