//! A file of subscriptions, record by record: JSON lines, or CSV.
//!
//! Promises: a bad record is told with the line it begins on, and the next one is read; a record has 256 KiB at most. In CSV
//! a quote that nobody closes would swallow the rest of the file: after that many bytes the line it stands in is given up, and
//! reading goes on with the line behind it.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

use crate::client::arguments::bulk::Format;
use crate::client::import::record::Records;
use crate::client::send::is_dash;
use crate::exit::{Exit, Failure};
use crate::printable;
use crate::protocol::json::{Members, Value, read_line};

/// Bytes of a record: a subscription with all that may belong to it has a few thousand.
const RECORD_MAX: usize = 256 * 1024;
/// Columns of a CSV file.
const COLUMNS_MAX: usize = 1_024;

/// Where the next record begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes before it.
    pub offset: u64,
    /// Its line, counted from 1.
    pub line: u64,
}

/// Why a record cannot be read, in the words of a file of rejects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub code: &'static str,
    pub message: String,
}

/// An open file of subscriptions.
pub struct Source {
    input: Box<dyn BufRead>,
    next: Place,
    /// The record's text.
    record: Vec<u8>,
    /// Read already, to be read again.
    again: Vec<u8>,
    csv: Option<Csv>,
}

struct Csv {
    reader: Reader,
    columns: Vec<String>,
    /// The fields of a record, without quotes, one behind the other, and where each ends.
    fields: Vec<u8>,
    ends: Vec<usize>,
    count: usize,
}

impl Source {
    /// Opens `file` and finds out what it holds. Exit 64 if that is nothing that can be imported.
    pub fn open(file: &Path, format: Format) -> Result<Source, Failure> {
        let input: Box<dyn BufRead> = if is_dash(file) {
            Box::new(BufReader::with_capacity(256 * 1024, io::stdin().lock()))
        } else {
            Box::new(BufReader::with_capacity(256 * 1024, open(file)?))
        };
        Source::of(input, format).map_err(|error| Failure { message: format!("{}: {error}", printable::path(file)), ..error })
    }

    fn of(input: Box<dyn BufRead>, format: Format) -> Result<Source, Failure> {
        let failed = |error: io::Error| Failure::io("cannot read", &error);
        let mut source = Source { input, next: Place { offset: 0, line: 1 }, record: Vec::new(), again: Vec::new(), csv: None };
        // A byte order mark and empty lines before the first record.
        let mut begins = source.next;
        while source.read_line().map_err(failed)? != Got::End && source.text().trim_ascii().is_empty() {
            begins = source.next;
        }
        let first = source.text().to_vec();
        let usage = |message: &str| Err(Failure::new(Exit::Usage, message));
        match (format, first.trim_ascii_start().first()) {
            (_, None) => {}
            (Format::Auto | Format::Ndjson, Some(b'[')) => {
                return usage("is a JSON array; one object a line is taken: `jq -c '.[]' FILE | fanfare import -`");
            }
            (Format::Ndjson, _) | (Format::Auto, Some(b'{')) => source.read_again(begins),
            (Format::Auto | Format::Csv, _) => {
                let mut csv = Csv::new(delimiter(&first));
                if csv.feed(&[&first[..], b"\n"].concat(), &mut 0) != Fed::Record {
                    return usage("its first line is no header of a CSV file");
                }
                csv.columns = csv.texts().map(|text| text.map(|text| text.trim().to_owned()).unwrap_or_default()).collect();
                if !Records::names_subscriptions(csv.columns.iter().map(String::as_str)) {
                    return usage(
                        "its first line is neither a JSON object nor a CSV header with a column `endpoint` or `subscription`",
                    );
                }
                source.csv = Some(csv);
            }
        }
        Ok(source)
    }

    /// Goes on at a place that an earlier run noted. Not possible with standard input.
    pub fn skip_to(&mut self, file: &Path, place: Place) -> Result<(), Failure> {
        let mut input = open(file)?;
        input.seek(SeekFrom::Start(place.offset)).map_err(|error| Failure::io("cannot read on", &error))?;
        self.input = Box::new(BufReader::with_capacity(256 * 1024, input));
        self.again.clear();
        self.next = place;
        Ok(())
    }

    /// Where the next record begins.
    pub fn next(&self) -> Place {
        self.next
    }

    /// Reads the next record; where it begins, and whether it can be read. None at the end.
    pub fn read(&mut self) -> io::Result<Option<(Place, Result<(), Unreadable>)>> {
        loop {
            let place = self.next;
            match self.read_line()? {
                Got::End => return Ok(None),
                Got::TooLong => return Ok(Some((place, Err(too_long())))),
                Got::Line if self.text().trim_ascii().is_empty() => {}
                Got::Line => return Ok(Some((place, self.read_record(place)?))),
            }
        }
    }

    /// The record that was read last, its members as they stand in JSON or in the columns.
    pub fn members(&self) -> Result<Members<'_>, Unreadable> {
        match &self.csv {
            None => {
                let text = std::str::from_utf8(self.text()).map_err(|_| bad("bad_json", "the line is not UTF-8"))?;
                read_line(text).members.map_err(|problem| bad("bad_json", format!("{} (at byte {})", problem.what, problem.at)))
            }
            Some(csv) if csv.count != csv.columns.len() => {
                let message = format!("the row has {} fields and the header {}", csv.count, csv.columns.len());
                Err(bad("bad_csv", message))
            }
            Some(csv) => {
                let fields = csv.columns.iter().zip(csv.texts()).filter(|(name, _)| !name.is_empty());
                let members = fields.map(|(name, field)| {
                    let field = field.map_err(|_| bad("bad_csv", "the row is not UTF-8"))?;
                    // As `psql` and MySQL write a null.
                    let field = if matches!(field, "\\N" | "NULL") { "" } else { field };
                    Ok((Cow::Borrowed(name.as_str()), Value::Text(Cow::Borrowed(field))))
                });
                members.collect()
            }
        }
    }

    /// The rest of a record whose first line was read.
    fn read_record(&mut self, place: Place) -> io::Result<Result<(), Unreadable>> {
        let Some(mut csv) = self.csv.take() else { return Ok(Ok(())) };
        let result = self.read_row(&mut csv, place);
        self.csv = Some(csv);
        result
    }

    /// A row of CSV may have several lines.
    fn read_row(&mut self, csv: &mut Csv, place: Place) -> io::Result<Result<(), Unreadable>> {
        csv.reader.reset();
        csv.count = 0;
        let mut line = self.text().to_vec();
        let behind_first = self.next;
        let mut rest = Vec::new();
        let mut fields = 0;
        loop {
            line.push(b'\n');
            match csv.feed(&line, &mut fields) {
                Fed::Record => return Ok(Ok(())),
                Fed::TooMany => return Ok(Err(bad("bad_csv", format!("a row has at most {COLUMNS_MAX} fields")))),
                Fed::Inside => {}
            }
            let got = if rest.len() > RECORD_MAX { Got::End } else { self.read_line()? };
            if got == Got::TooLong {
                // Its end was skipped; it is told as too long when it is read once more.
                rest.extend_from_slice(&self.record);
                rest.push(b'\n');
            }
            if got != Got::Line {
                // Nobody closed the quote: what was taken for its inside is read once more.
                rest.extend_from_slice(&std::mem::take(&mut self.again));
                self.again = rest;
                self.next = behind_first;
                let message = format!("a quote is opened in line {} and not closed", place.line);
                return Ok(Err(bad("bad_csv", message)));
            }
            rest.extend_from_slice(&self.record);
            line = self.text().to_vec();
        }
    }

    /// Puts the line that was read last back.
    fn read_again(&mut self, place: Place) {
        let mut line = std::mem::take(&mut self.record);
        line.extend_from_slice(&self.again);
        self.again = line;
        self.next = place;
    }

    /// The line that was read last, without its end and a byte order mark.
    fn text(&self) -> &[u8] {
        let line = self.record.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.record);
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        line.strip_suffix(b"\r").unwrap_or(line)
    }

    /// Reads a line with its end into `record`; of one that is too long the rest is skipped.
    fn read_line(&mut self) -> io::Result<Got> {
        self.record.clear();
        let mut read = 0u64;
        loop {
            let from_again = !self.again.is_empty();
            let bytes = if from_again { self.again.as_slice() } else { self.input.fill_buf()? };
            let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let taken = end.unwrap_or(bytes.len());
            let room = (RECORD_MAX + 1).saturating_sub(self.record.len());
            self.record.extend_from_slice(&bytes[..taken.min(room)]);
            if from_again {
                self.again.drain(..taken);
            } else {
                self.input.consume(taken);
            }
            read += taken as u64;
            if end.is_some() || taken == 0 {
                break;
            }
        }
        self.next.offset += read;
        self.next.line += u64::from(read > 0);
        Ok(match read {
            0 => Got::End,
            _ if self.record.len() > RECORD_MAX => Got::TooLong,
            _ => Got::Line,
        })
    }
}

/// What came of reading a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Got {
    Line,
    TooLong,
    End,
}

/// What came of giving a line to the reader of CSV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fed {
    Record,
    /// The line ends inside quotes.
    Inside,
    TooMany,
}

impl Csv {
    fn new(delimiter: u8) -> Csv {
        Csv {
            reader: ReaderBuilder::new().delimiter(delimiter).build(),
            columns: Vec::new(),
            fields: Vec::new(),
            ends: vec![0; COLUMNS_MAX],
            count: 0,
        }
    }

    /// Reads one more line of a row; `written` are the bytes of its fields so far.
    fn feed(&mut self, line: &[u8], written: &mut usize) -> Fed {
        let mut rest = line;
        loop {
            // Fields are never longer than what they were read from.
            self.fields.resize((*written + rest.len() + 1).max(self.fields.len()), 0);
            let (result, read, wrote, ended) =
                self.reader.read_record(rest, &mut self.fields[*written..], &mut self.ends[self.count..]);
            rest = &rest[read..];
            *written += wrote;
            self.count += ended;
            match result {
                ReadRecordResult::Record => return Fed::Record,
                ReadRecordResult::InputEmpty | ReadRecordResult::End => return Fed::Inside,
                ReadRecordResult::OutputEndsFull => return Fed::TooMany,
                ReadRecordResult::OutputFull => {}
            }
        }
    }

    fn texts(&self) -> impl Iterator<Item = Result<&str, std::str::Utf8Error>> {
        let ends = &self.ends[..self.count];
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(ends).map(|(start, end)| std::str::from_utf8(&self.fields[start..*end]))
    }
}

/// What stands between the columns: whatever the header has most of.
fn delimiter(header: &[u8]) -> u8 {
    let count = |delimiter: u8| header.iter().filter(|byte| **byte == delimiter).count();
    [b',', b';', b'\t'].into_iter().rev().max_by_key(|delimiter| count(*delimiter)).unwrap_or(b',')
}

fn open(file: &Path) -> Result<File, Failure> {
    File::open(file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::new(Exit::Usage, format!("there is no file {}", printable::path(file))),
        _ => Failure::io(format_args!("cannot read {}", printable::path(file)), &error),
    })
}

fn bad(code: &'static str, message: impl Into<String>) -> Unreadable {
    Unreadable { code, message: message.into() }
}

fn too_long() -> Unreadable {
    bad("line_too_long", format!("a line may have {RECORD_MAX} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines and members, or code, of each record.
    fn read(text: &str, format: Format) -> Vec<(u64, Result<String, &'static str>)> {
        let mut source = Source::of(Box::new(io::Cursor::new(text.as_bytes().to_vec())), format).expect("it can be read");
        let mut found = Vec::new();
        while let Some((place, readable)) = source.read().expect("memory") {
            let members = readable.and_then(|()| source.members()).map(|members| {
                let mut json = Vec::new();
                crate::protocol::json::write_compact(&Value::Object(members), &mut json);
                String::from_utf8(json).expect("UTF-8")
            });
            found.push((place.line, members.map_err(|unreadable| unreadable.code)));
        }
        assert_eq!(source.next().offset, text.len() as u64, "{text:?}");
        found
    }

    fn good(line: u64, json: &str) -> (u64, Result<String, &'static str>) {
        (line, Ok(json.to_owned()))
    }

    #[test]
    fn lines_of_json() {
        assert_eq!(
            read("\u{feff}\n{\"a\":1}\r\n\n{\n[1]\n{\"b\":2}", Format::Auto),
            [good(2, r#"{"a":1}"#), (4, Err("bad_json")), (5, Err("bad_json")), good(6, r#"{"b":2}"#)]
        );
        assert_eq!(read("", Format::Auto), []);
        assert_eq!(read("x\n", Format::Ndjson), [(1, Err("bad_json"))]);
        let long = format!("{{\"a\":1}}\n{{\"a\":\"{}\"}}\n{{\"b\":2}}\n", "x".repeat(RECORD_MAX));
        assert_eq!(read(&long, Format::Auto), [good(1, r#"{"a":1}"#), (2, Err("line_too_long")), good(3, r#"{"b":2}"#)]);
    }

    #[test]
    fn rows_of_csv() {
        let rows = "\u{feff}endpoint,\"name\"\r\nx,\"a, \"\"b\"\"\nc\"\r\n\r\ny\nz,NULL\n,1,\nlast,";
        assert_eq!(
            read(rows, Format::Auto),
            [
                good(2, r#"{"endpoint":"x","name":"a, \"b\"\nc"}"#),
                (5, Err("bad_csv")),
                good(6, r#"{"endpoint":"z","name":""}"#),
                (7, Err("bad_csv")),
                good(8, r#"{"endpoint":"last","name":""}"#),
            ]
        );
        for delimiter in [";", "\t"] {
            let rows = format!("endpoint{delimiter}auth\n1,2{delimiter}3\n");
            assert_eq!(read(&rows, Format::Csv), [good(2, r#"{"endpoint":"1,2","auth":"3"}"#)]);
        }
    }

    #[test]
    fn a_quote_that_is_not_closed_costs_one_row() {
        assert_eq!(
            read("endpoint,name\n1,\"a\n2,b\n3,c\n", Format::Auto),
            [(2, Err("bad_csv")), good(3, r#"{"endpoint":"2","name":"b"}"#), good(4, r#"{"endpoint":"3","name":"c"}"#)]
        );
        let many = (0..20_000).map(|n| format!("{n},some text that fills a row\n")).collect::<String>();
        let found = read(&format!("endpoint,name\n1,\"a\n{many}"), Format::Auto);
        assert_eq!(found.len(), 20_001);
        assert_eq!(found.iter().filter(|(_, result)| result.is_err()).count(), 1);
    }

    #[test]
    fn what_cannot_be_imported_is_said_at_once() {
        for text in ["[{\"endpoint\":1}]", "hello\n", "a,b\n1,2\n", "\"endpoint\n"] {
            let failure = Source::of(Box::new(io::Cursor::new(text.as_bytes().to_vec())), Format::Auto).err().expect(text);
            assert_eq!(failure.exit, Exit::Usage, "{text}");
        }
    }
}
