//! Lists for people: as many columns as there is room for, the important ones at any rate, or a card for each row where the terminal is
//! too narrow for those.
//!
//! No line is longer than the terminal is wide. Ids, numbers and times are never broken, because they are copied and compared; labels
//! and other texts are continued on the next line of their cell.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde_json::Value;

use crate::message::UnixMillis;
use crate::printable;
use crate::protocol::time::parse_time;

/// The columns of a list in their order: the name of a member, and when it gives way to the others. 0 never does; of the others the
/// highest number goes first. A column with a number above 0 is left out too where it says nothing in any row.
pub type Columns = [(&'static str, u8)];

/// Members that have no place in [`Columns`] come last and go first.
const UNNAMED: u8 = u8::MAX;

/// Members of a subscription or message that are shown when it is looked at by itself: a list has no room for them.
const DETAILS: &[&str] = &["user_agent", "key", "created", "last_failure", "at", "expires", "open", "rate"];

/// Members that are a time.
const TIMES: &[&str] =
    &["at", "created", "eta", "expires", "last_error_at", "made", "probe_at", "seen", "time", "token_expires", "walked_at"];

/// Between two columns.
const GAP: usize = 2;
/// A text gets so many characters of a line at least, if it has as many.
const TEXT_MIN: usize = 12;
/// A word that is no longer than this is not broken: the name of a host, an address.
const WORD_MAX: usize = 26;

/// A list as text, without a newline at its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    pub text: String,
    /// Headings of columns that there is no room for.
    pub left_out: Vec<String>,
}

/// One column, as far as it was laid out.
struct Column<'a> {
    name: &'a str,
    rank: u8,
    cells: Vec<String>,
    numbers: bool,
    /// Characters that it needs, and those of its longest cell.
    needs: usize,
    wants: usize,
}

/// Lays out `rows`, each with its members by name, in `width` characters.
pub fn list(rows: &[Vec<(String, Value)>], columns: &Columns, width: usize, now: UnixMillis) -> Shown {
    let mut laid_out = laid_out(rows, columns, now);
    let room = |columns: &[Column<'_>]| columns.iter().map(|column| column.needs + GAP).sum::<usize>() <= width + GAP;
    let mut left_out = Vec::new();
    while !room(&laid_out) {
        let Some((last, _)) =
            laid_out.iter().enumerate().filter(|(_, column)| column.rank > 0).max_by_key(|(at, column)| (column.rank, *at))
        else {
            return Shown { text: cards(rows, columns, width, now), left_out: Vec::new() };
        };
        left_out.insert(0, heading(laid_out.remove(last).name));
    }
    Shown { text: text(&laid_out, width), left_out }
}

fn laid_out<'a>(rows: &'a [Vec<(String, Value)>], columns: &Columns, now: UnixMillis) -> Vec<Column<'a>> {
    let mut names: Vec<&str> = rows.iter().flatten().map(|(name, _)| name.as_str()).collect();
    names.sort_by_key(|name| (place(name, columns), *name));
    names.dedup();
    let column = |name: &'a str| {
        let rank = columns.get(place(name, columns)).map_or(UNNAMED, |(_, rank)| *rank);
        let values: Vec<&Value> =
            rows.iter().map(|row| row.iter().find(|(own, _)| own == name).map_or(&Value::Null, |(_, value)| value)).collect();
        let says = |value: &&&Value| !value.is_null() && (rank == 0 || value.as_u64() != Some(0));
        if rank == UNNAMED && DETAILS.contains(&name) || values.iter().filter(says).count() == 0 {
            return None;
        }
        let cells: Vec<String> = rows
            .iter()
            .zip(&values)
            .map(|(row, value)| match row.iter().any(|(own, _)| own == name) {
                true if TIMES.contains(&name) => relative(value, now).unwrap_or_else(|| shown(name, value)),
                true => shown(name, value),
                false => String::new(),
            })
            .collect();
        let numbers = values.iter().all(|value| value.is_number() || value.is_null());
        let is_text = !numbers && !name.ends_with("_id") && !TIMES.contains(&name);
        let word = |text: &str| text.split(' ').map(width_of).max().unwrap_or(0);
        let longest = cells.iter().map(|cell| width_of(cell)).max().unwrap_or(0);
        let longest_word = cells.iter().map(|cell| word(cell)).max().unwrap_or(0);
        let needs = if is_text { longest.min(TEXT_MIN).max(longest_word.min(WORD_MAX)) } else { longest };
        let needs = needs.max(word(&heading(name)));
        Some(Column { name, rank, cells, numbers, needs, wants: longest })
    };
    names.into_iter().filter_map(column).collect()
}

fn text(columns: &[Column<'_>], width: usize) -> String {
    let mut table = empty();
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| heading(column.name)));
    for row in 0..columns.first().map_or(0, |column| column.cells.len()) {
        table.add_row(columns.iter().map(|column| column.cells[row].as_str()));
    }
    // What is left over goes to the texts in their order, and then to headings.
    let mut left = (width + GAP).saturating_sub(columns.iter().map(|column| column.needs + GAP).sum());
    let mut widths: Vec<usize> = columns.iter().map(|column| column.needs).collect();
    let texts = columns.iter().map(|column| column.wants);
    let headings = columns.iter().map(|column| width_of(&heading(column.name)));
    for (at, wanted) in texts.enumerate().chain(headings.enumerate()) {
        let more = left.min(wanted.saturating_sub(widths[at]));
        widths[at] += more;
        left -= more;
    }
    for ((own, width), laid_out) in columns.iter().zip(widths).zip(table.column_iter_mut()) {
        let fixed = u16::try_from(width + GAP).unwrap_or(u16::MAX);
        laid_out.set_padding((0, GAP as u16));
        laid_out.set_constraint(ColumnConstraint::Absolute(Width::Fixed(fixed)));
        if own.numbers {
            laid_out.set_cell_alignment(CellAlignment::Right);
        }
    }
    trimmed(&table)
}

/// Each row by itself, a member on a line.
fn cards(rows: &[Vec<(String, Value)>], columns: &Columns, width: usize, now: UnixMillis) -> String {
    let cards: Vec<String> = rows
        .iter()
        .map(|row| {
            let mut members: Vec<&(String, Value)> = row
                .iter()
                .filter(|(name, value)| {
                    let named = place(name, columns) < columns.len();
                    !value.is_null() && (named || !DETAILS.contains(&name.as_str()) && value.as_u64() != Some(0))
                })
                .collect();
            members.sort_by_key(|(name, _)| (place(name, columns), name.as_str()));
            let told = |(name, value): &(String, Value)| {
                let time = if TIMES.contains(&name.as_str()) { relative(value, now) } else { None };
                (heading(name), time.unwrap_or_else(|| shown(name, value)))
            };
            pairs(members.into_iter().map(told), width)
        })
        .collect();
    cards.join("\n\n")
}

/// Members of one thing, a line each: times both as they are and from now.
pub fn members(members: &[(String, Value)], width: usize, now: UnixMillis) -> String {
    let told = |(name, value): &(String, Value)| {
        let time = if TIMES.contains(&name.as_str()) { relative(value, now) } else { None };
        let text = shown(name, value);
        (heading(name), time.map_or_else(|| text.clone(), |time| format!("{text} ({time})")))
    };
    pairs(members.iter().map(told), width)
}

fn pairs(members: impl Iterator<Item = (String, String)>, width: usize) -> String {
    let members: Vec<(String, String)> = members.collect();
    let names = members.iter().map(|(name, _)| width_of(name)).max().unwrap_or(0) + GAP;
    let mut table = empty();
    table.set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in members {
        table.add_row([name, value]);
    }
    let widths = [names, width.saturating_sub(names).max(TEXT_MIN)];
    for (width, column) in widths.into_iter().zip(table.column_iter_mut()) {
        column.set_padding((0, 0));
        column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(u16::try_from(width).unwrap_or(u16::MAX))));
    }
    if let Some(column) = table.column_mut(0) {
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(u16::try_from(names).unwrap_or(u16::MAX))));
    }
    trimmed(&table)
}

fn empty() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// Without blanks at the ends of lines.
fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

fn place(name: &str, columns: &Columns) -> usize {
    columns.iter().position(|(other, _)| *other == name).unwrap_or(columns.len())
}

/// Near enough: a table measures its cells itself, and continues those that are wider.
fn width_of(text: &str) -> usize {
    text.chars().count()
}

/// The name of a member, which may be one of somebody's attributes, above its column.
pub fn heading(name: &str) -> String {
    printable::line(name).replace('_', " ")
}

/// A cell of the member `name`.
fn shown(name: &str, value: &Value) -> String {
    match (name, value) {
        // What has no scopes accepts all of them, and an empty list is the opposite.
        ("scopes", Value::Null) => "all".to_owned(),
        _ => cell(value),
    }
}

/// A part of a line for a terminal.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::String(text) => printable::line(text).into_owned(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => printable::line(&other.to_string()).into_owned(),
    }
}

/// A time as it is seen from `now`. None: the value is no time.
pub fn relative(value: &Value, now: UnixMillis) -> Option<String> {
    let time = parse_time(value.as_str()?)?;
    let seconds = time.0.abs_diff(now.0) / 1_000;
    let rounded = match seconds {
        0 => return Some("now".to_owned()),
        1..100 => format!("{seconds} s"),
        100..6_000 => format!("{} min", seconds / 60),
        6_000..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    };
    Some(if time.0 > now.0 { format!("in {rounded}") } else { format!("{rounded} ago") })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: &str = "2027-01-31T18:00:00Z";

    fn now() -> UnixMillis {
        parse_time(NOW).expect("a time")
    }

    fn rows(elements: &[Value]) -> Vec<Vec<(String, Value)>> {
        let members = |element: &Value| element.as_object().expect("an object").clone().into_iter().collect();
        elements.iter().map(members).collect()
    }

    const COLUMNS: &Columns = &[
        ("message_id", 0),
        ("state", 0),
        ("label", 1),
        ("ref", 3),
        ("created", 2),
        ("recipients", 0),
        ("pending", 0),
        ("gone", 2),
    ];

    fn messages() -> Vec<Vec<(String, Value)>> {
        rows(&[
            json!({"message_id": "01J8X3V9K2M4N6P8Q0R2S4T6V8", "state": "sending", "label": "the evening's news, with the weather",
                "ref": "17", "created": "2027-01-31T17:57:00Z", "recipients": 1_000_000, "pending": 412_345, "gone": 0, "shown": 12}),
            json!({"message_id": "01J8X3V9K2M4N6P8Q0R2S4T6V9", "state": "done", "label": "morning", "ref": null,
                "created": "2027-01-30T06:00:00Z", "recipients": 7, "pending": 0, "gone": 0, "shown": 0}),
        ])
    }

    fn at(width: usize) -> Shown {
        let shown = list(&messages(), COLUMNS, width, now());
        for line in shown.text.lines() {
            assert!(width_of(line) <= width && !line.ends_with(' '), "{width}: {line:?}\n{}", shown.text);
        }
        shown
    }

    #[test]
    fn columns_give_way_in_their_order_and_are_named() {
        let (wide, middle) = (at(140), at(80));
        assert_eq!(wide.left_out, [""; 0], "{}", wide.text);
        for word in ["the evening's news, with the weather", "3 min ago", "36 h ago", "17", "shown"] {
            assert!(wide.text.contains(word), "{word}:\n{}", wide.text);
        }
        assert!(!wide.text.contains("gone"), "it is 0 everywhere:\n{}", wide.text);
        assert_eq!(middle.left_out, ["created", "ref", "shown"], "{}", middle.text);
        for word in ["01J8X3V9K2M4N6P8Q0R2S4T6V8", "412345", "1000000", "sending", "morning"] {
            assert!(middle.text.contains(word), "{word}:\n{}", middle.text);
        }
    }

    #[test]
    fn where_the_important_columns_do_not_fit_each_row_is_a_card() {
        let narrow = at(50);
        assert_eq!(narrow.left_out, [""; 0]);
        let cards: Vec<&str> = narrow.text.split("\n\n").collect();
        assert_eq!(cards.len(), 2, "{}", narrow.text);
        assert!(
            cards[0].starts_with("message id  01J8X3V9K2M4N6P8Q0R2S4T6V8\nstate       sending\nlabel       the evening's news,")
        );
        assert!(
            cards[0].contains("\nref         17\ncreated     3 min ago\n") && cards[0].contains("shown       12"),
            "{}",
            cards[0]
        );
        assert!(!cards[1].contains("ref"), "it says nothing: {}", cards[1]);
    }

    #[test]
    fn numbers_stand_below_each_other() {
        let text = at(140).text;
        let lines: Vec<&str> = text.lines().collect();
        let end = |line: &str, number: &str| line.find(number).map(|at| at + number.len());
        assert_eq!(end(lines[1], "1000000"), end(lines[2], " 7"), "{text}");
    }

    #[test]
    fn times_are_told_from_now() {
        for (time, told) in [
            (NOW, "now"),
            ("2027-01-31T18:00:05Z", "in 5 s"),
            ("2027-01-31T17:58:30Z", "90 s ago"),
            ("2027-01-31T19:30:00Z", "in 90 min"),
            ("2027-01-31T08:00:00Z", "10 h ago"),
            ("2027-02-20T18:00:00Z", "in 20 d"),
        ] {
            assert_eq!(relative(&time.into(), now()).as_deref(), Some(told));
        }
        assert_eq!(relative(&"tomorrow".into(), now()), None);
        let shown =
            members(&[("expires".to_owned(), "2027-01-31T18:30:00Z".into()), ("label".to_owned(), NOW.into())], 80, now());
        assert_eq!(shown, format!("expires  2027-01-31T18:30:00Z (in 30 min)\nlabel    {NOW}"), "a label is no time");
    }
}
