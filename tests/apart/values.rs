//! The values that belong to the shop, and for each another of the same form that nobody has.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fanfare_loadtest::mock::{Subscription, subscription_id};
use serde_json::Value;

use crate::lives::Life;

/// Values of one name: more of the same kind teach nothing.
const OF_A_NAME: usize = 12;

/// A text of the shop's.
pub struct Own {
    /// The names of the members that it stood under.
    names: BTreeSet<String>,
    pub text: String,
    /// As it is tried: itself, or what nobody has.
    pub tried: String,
}

/// The shop's values in the order in which they were met.
pub struct Values(pub Vec<Own>);

impl Values {
    /// What stands in the shop's life and not in that of the news.
    pub fn of(shop: &Life<'_>, news: &Life<'_>, browsers: &[Subscription]) -> Values {
        let (of_shop, of_news) = (texts(shop), texts(news));
        let foreign: BTreeSet<&String> = of_news.iter().map(|(_, text)| text).collect();
        let mut values = Values(Vec::new());
        let mut places: HashMap<String, usize> = HashMap::new();
        for (name, text) in of_shop.into_iter().filter(|(_, text)| !foreign.contains(text) && !is_time(text)) {
            let place = *places.entry(text.clone()).or_insert(values.0.len());
            if place == values.0.len() {
                values.0.push(Own { names: BTreeSet::new(), tried: text.clone(), text });
            }
            values.0[place].names.insert(name);
        }
        // Ids of browsers that it has not been told: not tried, but known.
        let untold = browsers.iter().map(|browser| subscription_id(&browser.endpoint)).filter(|id| !places.contains_key(id));
        values.0.extend(untold.map(|id| Own { names: BTreeSet::new(), tried: id.clone(), text: id }));
        values
    }

    /// The same with what nobody has in each place.
    pub fn made_up(mut self, shop: &[Subscription], nobody: &[Subscription]) -> Values {
        let names = |browser: &Subscription| {
            let browser = browser.json();
            let [endpoint, p256dh, auth] = ["/endpoint", "/keys/p256dh", "/keys/auth"]
                .map(|place| browser.pointer(place).and_then(Value::as_str).expect("text").to_owned());
            [subscription_id(&endpoint), endpoint, p256dh, auth]
        };
        let browsers: BTreeMap<String, String> =
            shop.iter().zip(nobody).flat_map(|(own, other)| names(own).into_iter().zip(names(other))).collect();
        // The apps' keys are points of the curve: those of browsers that nothing else is known of are as well.
        let mut points = nobody[shop.len()..].iter().map(|browser| names(browser)[2].clone());
        for own in &mut self.0 {
            own.tried = match browsers.get(&own.text) {
                Some(text) => text.clone(),
                None if own.text.len() == 87 && own.text.starts_with('B') => points.next().expect("a point"),
                None => own.text.split('.').map(turned).collect::<Vec<_>>().join("."),
            };
            assert_ne!(own.tried, own.text);
        }
        self
    }

    /// What is tried under a member: all values that stood under this name, and one of each other kind.
    pub fn tried_as(&self, member: &str) -> Vec<&str> {
        let mut kinds: BTreeMap<&BTreeSet<String>, usize> = BTreeMap::new();
        let mut tried = Vec::new();
        for own in &self.0 {
            let most = match own.names.contains(member) {
                true => OF_A_NAME,
                false => own.names.len().min(1),
            };
            let count = kinds.entry(&own.names).or_default();
            *count += 1;
            if *count <= most {
                tried.push(&*own.tried);
            }
        }
        tried
    }

    /// A line of the shop's with what is tried in place of its values.
    pub fn line(&self, line: &Value) -> Value {
        match line {
            Value::Array(items) => items.iter().map(|item| self.line(item)).collect(),
            Value::Object(members) => members.iter().map(|(name, value)| (self.text(name), self.line(value))).collect(),
            Value::String(text) => self.text(text).into(),
            other => other.clone(),
        }
    }

    fn text(&self, text: &str) -> String {
        self.0.iter().find(|own| own.text == text).map_or_else(|| text.to_owned(), |own| own.tried.clone())
    }
}

/// A text of the same form: the shop's name becomes another; of what is opaque the second half, as the first may tell a time or a
/// store, but for the last character, which must be a good one of base64.
fn turned(text: &str) -> String {
    if text.contains("shop") {
        return text.replace("shop", "none");
    }
    let half = text.len() / 2;
    let turn = |(at, letter): (usize, char)| {
        if at < half || at + 1 == text.len() {
            return letter;
        }
        match letter {
            '0'..='8' | 'a'..='e' | 'g'..='y' | 'A'..='G' | 'J' | 'M' | 'P'..='S' | 'V'..='Y' => char::from(letter as u8 + 1),
            '9' => '0',
            'f' => 'a',
            'z' => 'g',
            // Letters that a ULID has.
            'H' => 'J',
            'K' => 'M',
            'N' => 'P',
            'T' => 'V',
            'Z' => 'A',
            other => other,
        }
    };
    text.chars().enumerate().map(turn).collect()
}

/// All texts of a life with the names of their members.
fn texts(life: &Life<'_>) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    let lines = life.past.iter().flat_map(|(request, lines)| std::iter::once(request).chain(lines));
    for line in lines.chain(&life.future) {
        collect("", line, &mut texts);
    }
    texts
}

fn collect(name: &str, value: &Value, texts: &mut Vec<(String, String)>) {
    match value {
        Value::String(text) => texts.push((name.to_owned(), text.clone())),
        Value::Array(items) => items.iter().for_each(|item| collect(name, item, texts)),
        Value::Object(members) => {
            for (name, value) in members {
                // Names that an app chooses itself, of attributes.
                if name.contains('-') {
                    texts.push(("names".to_owned(), name.clone()));
                }
                collect(name, value, texts);
            }
        }
        _ => {}
    }
}

/// Makes alike what is new in each world: ids of messages, cursors and times.
pub struct Mask {
    /// The shop's values as they are tried, by their places.
    shops: HashMap<String, usize>,
}

impl Mask {
    pub fn new(values: &Values) -> Mask {
        let shops = values.0.iter().enumerate().map(|(place, own)| (own.tried.clone(), place)).collect();
        Mask { shops }
    }

    /// The lines of one answer. Events come in the order in which deliveries ended, which is nobody's doing; which of many are on a
    /// page is not said.
    pub fn lines(&self, mut lines: Vec<Value>) -> Vec<String> {
        let end = lines.pop_if(|line| line.get("ok").is_some());
        if end.as_ref().is_some_and(|end| end["more"] == true) {
            lines.clear();
        }
        // Whether a recipient whose browser goes is skipped or erased first is a matter of time.
        lines.retain(|line| line["reason"] != "removed" && line["reason"] != "erased");
        let mut lines: Vec<String> = lines.into_iter().map(|line| self.value("", line).to_string()).collect();
        lines.sort();
        lines.extend(end.map(|end| self.value("", end).to_string()));
        lines
    }

    fn value(&self, name: &str, value: Value) -> Value {
        match value {
            Value::String(text) => self.text(name, text).into(),
            Value::Array(items) => {
                let mut items: Vec<Value> = items.into_iter().map(|item| self.value(name, item)).collect();
                // Some are in the order of names, of which those tried have their own.
                items.sort_by_cached_key(Value::to_string);
                items.into()
            }
            Value::Object(mut members) => {
                let ended = ["cancelled", "skipped", "blanked"].map(|name| members.remove(name));
                let ended: u64 = ended.iter().flatten().filter_map(Value::as_u64).sum();
                let members = members.into_iter().map(|(name, value)| (name.replace("shop", "none"), self.value(&name, value)));
                members.chain([("ended".to_owned(), ended.into())]).collect()
            }
            other => other,
        }
    }

    fn text(&self, name: &str, text: String) -> String {
        if is_time(&text) {
            return "a time".to_owned();
        }
        if let Some(place) = self.shops.get(&text) {
            return format!("value {place}");
        }
        if text.len() == 26 && text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()) {
            return "a message".to_owned();
        }
        // Where a log or a list goes on is a word of the daemon's own; what can be read in it is looked at in `numbers`.
        if matches!(name, "cursor" | "oldest" | "newest" | "after") {
            "a cursor".to_owned()
        } else {
            text.replace("shop", "none")
        }
    }
}

fn is_time(text: &str) -> bool {
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).is_ok()
}
