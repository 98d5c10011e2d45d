//! Which operations there are and which members each takes, found by asking a daemon.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::world::World;

/// Answers for a line's form. All others mean that it was understood.
const MALFORMED: [&str; 6] =
    ["bad_json", "missing_field", "invalid_field", "unknown_field", "endpoint_refused", "payload_too_large"];
/// A name that no operation knows.
const STRANGE: &str = "no-name-of-the-protocol";

/// The operations, and members of them as `op place`, that none of these lines has.
pub fn missing(world: &World, app: &str, lines: &[Value]) -> Vec<String> {
    let mut objects = BTreeMap::new();
    let mut members = BTreeSet::new();
    let mut lines: Vec<&Value> = lines.iter().collect();
    lines.sort_by_key(|line| line.to_string().len());
    for line in lines {
        find(line, line["op"].as_str().expect("text"), "", line, &mut objects, &mut members);
    }
    let mut missing: Vec<String> = operations(world, app).into_iter().filter(|op| !objects.contains_key(op)).collect();
    let words = words_of_the_parser();
    for (object, (line, place)) in &objects {
        // A member is what is answered otherwise than a name that is none.
        let answers = |name: &str| {
            [json!([[]]), json!(7)].map(|value| {
                let mut line = (*line).clone();
                line.pointer_mut(place).expect("it is there")[name] = value;
                line
            })
        };
        let requests: Vec<Value> = words.iter().map(String::as_str).chain([STRANGE]).flat_map(answers).collect();
        let told = world.ask(app, &requests);
        let judged = |name: &str, told: &[Vec<Value>]| -> Vec<String> {
            told.iter().map(|lines| judgement(lines.last().expect("an answer"), name)).collect()
        };
        let (told, strange) = told.split_at(2 * words.len());
        let strange = judged(STRANGE, strange);
        let known = words.iter().zip(told.chunks(2)).filter(|(word, told)| judged(word, told) != strange);
        missing.extend(known.map(|(word, _)| format!("{object} {word}")).filter(|member| !members.contains(member)));
    }
    missing
}

/// The objects in a line by operation and place, each with the shortest line that has it, and the members of all.
fn find<'l>(
    line: &'l Value,
    name: &str,
    place: &str,
    value: &Value,
    objects: &mut BTreeMap<String, (&'l Value, String)>,
    members: &mut BTreeSet<String>,
) {
    match value {
        Value::Object(of) => {
            objects.entry(name.to_owned()).or_insert_with(|| (line, place.to_owned()));
            for (member, value) in of {
                members.insert(format!("{name} {member}"));
                find(line, &format!("{name} {member}"), &format!("{place}/{member}"), value, objects, members);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                find(line, name, &format!("{place}/{index}"), item, objects, members);
            }
        }
        _ => {}
    }
}

/// Whether a line was understood, and what was wrong otherwise, whatever the name in it.
fn judgement(answer: &Value, name: &str) -> String {
    let problem = match answer.pointer("/rejected/0") {
        Some(rejected) => rejected,
        None => &answer["error"],
    };
    let Some(code) = problem["code"].as_str().filter(|code| MALFORMED.contains(code)) else { return String::new() };
    let field = problem["field"].as_str().unwrap_or_default();
    format!("{code} {}", field.strip_suffix(name).unwrap_or(field))
}

/// The operations, as the daemon tells them to who names none of them.
fn operations(world: &World, app: &str) -> Vec<String> {
    let error = world.client(app).error(&json!({"op": "no-operation"}));
    assert_eq!(error["code"], "unknown_op", "{error}");
    let message = error["message"].as_str().expect("text");
    let list = message.strip_prefix("must be one of ").unwrap_or_else(|| panic!("a list of operations, not {message}"));
    list.split(", ").map(str::to_owned).collect()
}

/// The words that stand between quotes in the parser's source, its tests left out: the names of all members are among them.
fn words_of_the_parser() -> BTreeSet<String> {
    /// Longer than any member's name; of a longer one an error does not tell the whole.
    const LONGEST_NAME: usize = 40;
    let mut sources = Vec::new();
    read(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut sources);
    let parser: BTreeSet<_> =
        sources.iter().filter(|(_, source)| source.contains("const OPERATIONS: [")).map(|(directory, _)| directory).collect();
    assert_eq!(parser.len(), 1, "the list of operations lies in one directory, the parser's");
    let mut words = BTreeSet::new();
    for (_, source) in sources.iter().filter(|(directory, _)| parser.contains(directory)) {
        let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let wordlike = |text: &&str| {
            (1..=LONGEST_NAME).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        words.extend(source.split('"').filter(wordlike).map(str::to_owned));
    }
    words.retain(|word| !matches!(&**word, "op" | "id"));
    words
}

/// The source files in a directory and below, each with the directory that it lies in.
fn read(directory: &std::path::Path, sources: &mut Vec<(std::path::PathBuf, String)>) {
    for entry in std::fs::read_dir(directory).expect("the source") {
        let path = entry.expect("a file").path();
        if path.is_dir() {
            read(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push((directory.to_owned(), std::fs::read_to_string(path).expect("a readable file")));
        }
    }
}
