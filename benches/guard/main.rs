//! Whether a message still costs what it did: the instructions of parsing, sealing, posting and settling one, against those that
//! are kept in `guard.toml`. `make guard` compares and fails beyond the tolerance; `make guard-keep` keeps what was counted.
//!
//! Instructions and not time, because they stay the same on a machine that is busy with other work: two runs differ by less than
//! half a percent. Another compiler or C library can make more of a difference.
//!
//! They are counted by callgrind, which runs this program again for each part (`--play`) and counts only what happens within
//! [`counted`]; the other side of a connection does not count ([`uncounted`]). What callgrind wrote stays in the target directory:
//! `callgrind_annotate` shows where the instructions are.
//!
//! Callgrind knows no AVX-512, so `seal` is sealing with aws-lc-rs. The batched key agreement is stepped through (`step.rs`).

mod deliver;
#[path = "../fixture/mod.rs"]
mod fixture;
mod parts;
mod settle;
mod step;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use self::parts::{PARTS, Part};

/// The daemon's own: allocating is part of what is counted.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/guard/guard.toml");

const KEPT_HEAD: &str = "\
# Instructions for one operation of each part, and the compiler that made them. `make guard` fails where more are counted than here,
# by more than the tolerance. `make guard-keep` writes this file anew: whoever keeps higher numbers says in the commit why.
";

/// What is written in `guard.toml`.
#[derive(serde::Deserialize)]
struct Kept {
    tolerance_percent: f64,
    compiler: String,
    instructions: BTreeMap<String, u64>,
}

impl Kept {
    fn read() -> Result<Kept, String> {
        let file = config::File::from(Path::new(KEPT)).format(config::FileFormat::Toml);
        let read = config::Config::builder().add_source(file).build();
        read.and_then(config::Config::try_deserialize).map_err(|error| format!("{KEPT}: {error}"))
    }

    fn write(&self) -> Result<(), String> {
        let Kept { tolerance_percent, compiler, instructions } = self;
        let mut text =
            format!("{KEPT_HEAD}tolerance_percent = {tolerance_percent:?}\ncompiler = {compiler:?}\n\n[instructions]\n");
        for (part, instructions) in instructions {
            text += &format!("{part} = {instructions}\n");
        }
        std::fs::write(KEPT, text).map_err(|error| format!("{KEPT}: {error}"))
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| *argument != "--bench").collect();
    let done = match arguments[..] {
        ["--play", name] => play(name),
        ["--play-stepped", name] => {
            step::offer();
            play(name)
        }
        [] => compare(),
        ["--keep"] => keep(),
        _ => Err("usage: guard [--keep]".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn play(name: &str) -> Result<(), String> {
    let part = PARTS.iter().find(|part| part.name == name).ok_or_else(|| format!("there is no part {name}"))?;
    (part.play)(part.operations);
    Ok(())
}

/// Runs `work`, of which every instruction counts. Told to callgrind by its name: not generic, and without a closure of its own.
#[inline(never)]
pub fn counted(work: &mut dyn FnMut()) {
    // The marks also keep the compiler from making one function of this and `uncounted`; and were `work` the last thing done, it
    // would be a jump, which callgrind does not take for a call.
    step::mark();
    work();
    step::mark();
}

/// Runs `work`, of which none counts. Only within [`counted`]: callgrind takes each of the two for a switch.
#[inline(never)]
pub fn uncounted(work: &mut dyn FnMut()) {
    work();
    std::hint::black_box(());
}

/// What counting a part gave.
enum Count {
    /// Instructions for one operation.
    Instructions(u64),
    /// It cannot be counted here, and why.
    Skipped(String),
}

fn compare() -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        return skipped("the kept numbers are those of x86-64");
    }
    if !is_there("valgrind") {
        return skipped("valgrind is missing (`make guard` installs it)");
    }
    let kept = Kept::read()?;
    let compiler = compiler()?;
    let by = if compiler == kept.compiler { String::new() } else { format!(", kept with {}, this is {compiler}", kept.compiler) };
    let mut failures = Vec::new();
    for (part, count) in count_all()? {
        let Part { name, what, .. } = *part;
        let counted = match count {
            Count::Instructions(counted) => counted,
            Count::Skipped(why) => {
                println!("{name:<13} SKIPPED: {why}");
                continue;
            }
        };
        let told = thousands(counted);
        let Some(&before) = kept.instructions.get(name) else {
            println!("{name:<13} {told:>9} instructions {what}: none are kept yet (`make guard-keep`)");
            continue;
        };
        let percent = (counted as f64 / before as f64 - 1.0) * 100.0;
        println!("{name:<13} {told:>9} instructions {what}, {percent:+.1} % against the kept {}", thousands(before));
        if percent > kept.tolerance_percent {
            failures.push(format!(
                "{name}: {told} instructions {what}, {percent:.1} % above the kept {}{by}: a regression, or run `make guard-keep` and \
                 say why in the commit",
                thousands(before)
            ));
        } else if percent < -kept.tolerance_percent {
            println!("{:<13} cheaper than what is kept{by}: run `make guard-keep`, so that it stays so", "");
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn keep() -> Result<(), String> {
    let mut kept = Kept::read()?;
    kept.compiler = compiler()?;
    for (part, count) in count_all()? {
        match count {
            Count::Instructions(counted) => {
                println!("{:<13} {:>9} instructions {}", part.name, thousands(counted), part.what);
                kept.instructions.insert(part.name.to_owned(), counted);
            }
            Count::Skipped(why) => println!("{:<13} SKIPPED: {why}", part.name),
        }
    }
    kept.write()
}

fn skipped(why: &str) -> Result<(), String> {
    println!("SKIPPED: {why}");
    Ok(())
}

/// All parts at once: what others do on the machine changes nothing.
fn count_all() -> Result<Vec<(&'static Part, Count)>, String> {
    std::thread::scope(|scope| {
        let counting: Vec<_> = PARTS.iter().map(|part| (part, scope.spawn(|| count(part)))).collect();
        let joined = counting.into_iter().map(|(part, count)| Ok((part, count.join().expect("counting does not panic")?)));
        joined.collect()
    })
}

fn count(part: &Part) -> Result<Count, String> {
    if part.batched { step::count(part) } else { count_by_callgrind(part).map(Count::Instructions) }
}

fn count_by_callgrind(part: &Part) -> Result<u64, String> {
    let out = own_path()?.with_file_name(format!("guard-{}.callgrind", part.name));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--demangle=no", "--toggle-collect=*5guard7counted*", "--toggle-collect=*5guard9uncounted*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(own_path()?)
        .args(["--play", part.name])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let collected = log.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse::<u64>().ok());
    match collected {
        Some(collected) if output.status.success() && collected > 0 => Ok(collected / part.operations),
        _ => Err(format!("{}: callgrind counted nothing\n{log}", part.name)),
    }
}

fn own_path() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| error.to_string())
}

fn is_there(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Name and version: another compiler makes other instructions.
fn compiler() -> Result<String, String> {
    let output = Command::new("rustc").arg("--version").output().map_err(|error| format!("rustc: {error}"))?;
    let told = String::from_utf8_lossy(&output.stdout);
    Ok(told.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group)).collect();
    groups.join(",")
}
