//! A segment: the choice of subscriptions for a campaign, a list or a count.

use super::fields::{fields, invalid, names, within};
use super::subscription::checked_attributes;
use crate::message::Segment;
use crate::protocol::json::Value;
use crate::protocol::request::Problem;

/// `field` is its path in the line. What would hold for all must say so with `all`: an audience that was computed and came out empty
/// must not become everybody.
pub(super) fn segment(value: &Value<'_>, field: &str) -> Result<Segment, Problem> {
    const NOTHING: &str = "must hold all, tags or attributes, and something in them; {\"all\":true} means all";
    let Value::Object(members) = value else { return Err(invalid(field, "must be an object with all, tags or attributes")) };
    let [all, tags, attributes] = fields(members, ["all", "tags", "attributes"]).map_err(|problem| within(problem, field))?;
    let mut segment = Segment::default();
    if let Some(value) = tags {
        let place = format!("{field}.tags");
        let Value::Object(members) = value else { return Err(invalid(place, "must be an object with any, all or none")) };
        let [any, all, none] = fields(members, ["any", "all", "none"]).map_err(|problem| within(problem, &place))?;
        if let Some(value) = any {
            let any = format!("{place}.any");
            segment.tags_any = names(value, &any)?;
            if segment.tags_any.is_empty() {
                return Err(invalid(any, "must not be empty: no subscription has one of no tags"));
            }
        }
        if let Some(value) = all {
            segment.tags_all = names(value, &format!("{place}.all"))?;
        }
        if let Some(value) = none {
            segment.tags_none = names(value, &format!("{place}.none"))?;
        }
    }
    if let Some(value) = attributes {
        segment.attributes = checked_attributes(value, &format!("{field}.attributes"))?;
    }
    match all {
        Some(Value::Bool(true)) => Ok(segment),
        Some(_) => Err(invalid(format!("{field}.all"), "must be true")),
        None if segment == Segment::default() => Err(invalid(field, NOTHING)),
        None => Ok(segment),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::limits::{ATTRIBUTES_MAX, NAME_MAX, NAMES_MAX};
    use crate::protocol::request::Request;

    fn counted(segment: &str) -> Segment {
        match good(&format!(r#"{{"op":"count","segment":{segment}}}"#)) {
            Request::Count { segment: Some(segment), .. } => segment,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn good_segments() {
        assert_eq!(counted(r#"{"all":true}"#), Segment::default());
        assert_eq!(
            counted(
                r#"{"all":null,"tags":{"any":["b","a","b"],"all":["c"],"none":["d"]},"attributes":{"lang":"pl","age":3e1,"x":null}}"#
            ),
            Segment {
                tags_any: names_of(["a", "b"]),
                tags_all: names_of(["c"]),
                tags_none: names_of(["d"]),
                attributes: attributes_of([("age", "30"), ("lang", r#""pl""#)]),
            }
        );
        assert_eq!(
            counted(r#"{"all":true,"tags":{"none":["d"]}}"#),
            Segment { tags_none: names_of(["d"]), ..Segment::default() }
        );
        // Lists that an application always writes, though they may be empty.
        assert_eq!(
            counted(r#"{"tags":{"any":null,"all":["c"],"none":[]},"attributes":{}}"#),
            Segment { tags_all: names_of(["c"]), ..Segment::default() }
        );
        let most: Vec<String> = (0..NAMES_MAX).map(|n| format!(r#""{n:064}""#)).collect();
        assert_eq!(counted(&format!(r#"{{"tags":{{"any":[{},{}]}}}}"#, most.join(","), most[0])).tags_any.len(), NAMES_MAX);
    }

    #[test]
    fn bad_segments() {
        let names = |n: usize| (0..n).map(|n| format!(r#""{n}""#)).collect::<Vec<_>>().join(",");
        let attributes: Vec<String> = (0..=ATTRIBUTES_MAX).map(|n| format!(r#""{n}":1"#)).collect();
        for (segment, code, field) in [
            ("[]".to_owned(), Code::InvalidField, ""),
            ("true".to_owned(), Code::InvalidField, ""),
            ("\"all\"".to_owned(), Code::InvalidField, ""),
            ("{}".to_owned(), Code::InvalidField, ""),
            (r#"{"all":null}"#.to_owned(), Code::InvalidField, ""),
            (r#"{"tags":{}}"#.to_owned(), Code::InvalidField, ""),
            (r#"{"attributes":{}}"#.to_owned(), Code::InvalidField, ""),
            (r#"{"attributes":{"lang":null}}"#.to_owned(), Code::InvalidField, ""),
            (r#"{"tags":{"all":[],"none":[]}}"#.to_owned(), Code::InvalidField, ""),
            (r#"{"all":false}"#.to_owned(), Code::InvalidField, ".all"),
            (r#"{"all":1}"#.to_owned(), Code::InvalidField, ".all"),
            (r#"{"all":false,"tags":{"any":["a"]}}"#.to_owned(), Code::InvalidField, ".all"),
            (r#"{"tag":["a"]}"#.to_owned(), Code::UnknownField, ".tag"),
            (r#"{"tags":["a"]}"#.to_owned(), Code::InvalidField, ".tags"),
            (r#"{"tags":{"some":["a"]}}"#.to_owned(), Code::UnknownField, ".tags.some"),
            (r#"{"tags":{"any":[]}}"#.to_owned(), Code::InvalidField, ".tags.any"),
            (r#"{"all":true,"tags":{"any":[]}}"#.to_owned(), Code::InvalidField, ".tags.any"),
            (r#"{"tags":{"any":"a"}}"#.to_owned(), Code::InvalidField, ".tags.any"),
            (r#"{"tags":{"any":["a",7]}}"#.to_owned(), Code::InvalidField, ".tags.any[1]"),
            (r#"{"tags":{"all":[""]}}"#.to_owned(), Code::InvalidField, ".tags.all[0]"),
            (r#"{"tags":{"all":{}}}"#.to_owned(), Code::InvalidField, ".tags.all"),
            (r#"{"tags":{"none":["a","b",null]}}"#.to_owned(), Code::InvalidField, ".tags.none[2]"),
            (r#"{"tags":{"none":7}}"#.to_owned(), Code::InvalidField, ".tags.none"),
            (format!(r#"{{"tags":{{"any":["{}"]}}}}"#, "a".repeat(NAME_MAX + 1)), Code::InvalidField, ".tags.any[0]"),
            (format!(r#"{{"tags":{{"all":[{}]}}}}"#, names(NAMES_MAX + 1)), Code::InvalidField, ".tags.all"),
            (r#"{"attributes":["a"]}"#.to_owned(), Code::InvalidField, ".attributes"),
            (r#"{"attributes":{"lang":["pl","de"]}}"#.to_owned(), Code::InvalidField, ".attributes.lang"),
            (format!(r#"{{"attributes":{{{}}}}}"#, attributes.join(",")), Code::InvalidField, ".attributes"),
        ] {
            for (line, place) in [
                (format!(r#"{{"op":"count","segment":{segment}}}"#), "segment"),
                (format!(r#"{{"op":"list_subscriptions","segment":{segment}}}"#), "segment"),
                (format!(r#"{{"op":"send","to":{{"segment":{segment}}}}}"#), "to.segment"),
            ] {
                assert_eq!(bad(&line), (code, format!("{place}{field}")), "{line:.120}");
            }
        }
    }
}
