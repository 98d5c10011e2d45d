//! What `/proc` says of a process and of this machine.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `/proc/PID/stat` counts in ticks of USER_HZ, which is 100 on every Linux that Fanfare runs on (`man 7 time`).
const TICK: Duration = Duration::from_millis(10);

/// CPU time a process has used since its start, all threads, to 10 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub user: Duration,
    pub system: Duration,
}

impl Cpu {
    /// Of a process.
    pub fn of(pid: u32) -> io::Result<Cpu> {
        parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat has another form"))
    }

    /// Of this process.
    pub fn own() -> io::Result<Cpu> {
        Cpu::of(std::process::id())
    }

    /// What was used since `before`.
    pub fn since(self, before: Cpu) -> Cpu {
        Cpu { user: self.user.saturating_sub(before.user), system: self.system.saturating_sub(before.system) }
    }

    /// Microseconds of both kinds for each of `messages`.
    pub fn micros_each(self, messages: u64) -> f64 {
        (self.user + self.system).as_secs_f64() * 1e6 / messages.max(1) as f64
    }
}

fn parse_stat(stat: &str) -> Option<Cpu> {
    // The second field is the name in parentheses and may hold anything; utime and stime are fields 14 and 15.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(Cpu { user: TICK * ticks()?, system: TICK * ticks()? })
}

/// CPU time that each live thread of a process has used: its name, of which the kernel keeps 15 bytes, and the time. Where the kernel
/// keeps no account of the scheduler it is exact to 10 ms only.
pub fn threads(pid: u32) -> io::Result<Vec<(String, Duration)>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        // One that ends meanwhile has no files any more.
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        let exact = fs::read_to_string(path.join("schedstat")).ok().and_then(|text| parse_schedstat(&text));
        let ticks = || parse_stat(&fs::read_to_string(path.join("stat")).ok()?).map(|cpu| cpu.user + cpu.system);
        if let Some(used) = exact.or_else(ticks) {
            threads.push((name.trim_end().to_owned(), used));
        }
    }
    Ok(threads)
}

/// The first field is the time on a CPU in nanoseconds (the kernel's Documentation/scheduler/sched-stats.rst).
fn parse_schedstat(text: &str) -> Option<Duration> {
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// A value in KiB of `/proc/PID/status`, in bytes: `VmHWM` is the peak of resident memory, `VmRSS` what it is now.
pub fn status_bytes(pid: u32, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(number_after(&text, name).unwrap_or(0) * 1_024)
}

/// Bytes that a process caused to be written to storage. None where the kernel does not tell.
pub fn written_bytes(pid: u32) -> Option<u64> {
    number_after(&fs::read_to_string(format!("/proc/{pid}/io")).ok()?, "write_bytes")
}

/// Lets `VmHWM` begin anew with what is resident now (`man 5 proc`, clear_refs).
pub fn reset_peak(pid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// Lets this process, and those that it starts, have as many open files as the system allows them.
pub fn raise_descriptors() -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Bytes that the files below a directory take on disk, and those of them whose names end so.
pub fn disk_bytes(directory: &Path, ends: &str) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let (mut whole, mut part) = (0, 0);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // A file may go between the listing and the look: compactions do that.
        let Ok(about) = entry.metadata() else { continue };
        if about.is_dir() {
            let (more, of_part) = disk_bytes(&entry.path(), ends)?;
            whole += more;
            part += of_part;
        } else {
            // In units of 512 bytes, whatever the file system's own (`man 2 stat`).
            whole += about.blocks() * 512;
            part += if entry.file_name().to_string_lossy().ends_with(ends) { about.blocks() * 512 } else { 0 };
        }
    }
    Ok((whole, part))
}

/// How many of the machine's cores somebody used, other machines on the same host among them, while this thread slept so long.
pub fn busy_cores(during: Duration) -> io::Result<f64> {
    let read = || parse_busy(&fs::read_to_string("/proc/stat")?).ok_or_else(|| io::Error::other("/proc/stat has another form"));
    let before = read()?;
    std::thread::sleep(during);
    Ok((read()?.saturating_sub(before)).as_secs_f64() / during.as_secs_f64())
}

/// All but idle time of the first line, in which fields 4 and 5 are idle and waiting for a disk (`man 5 proc`). What guests used is
/// counted among the user's.
fn parse_busy(stat: &str) -> Option<Duration> {
    let ticks: Vec<u64> = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().flat_map(str::parse).collect();
    let busy = ticks.get(..8)?.iter().enumerate().filter(|(field, _)| !matches!(field, 3 | 4)).map(|(_, ticks)| ticks);
    Some(Duration::from_millis(10 * busy.sum::<u64>()))
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Where a measurement was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.memory_bytes as f64 / 1e9;
        write!(f, "{}, {} cores, {memory:.1} GB, Linux {}", self.cpu, self.cores, self.kernel)
    }
}

impl Machine {
    /// This machine; what cannot be found out is empty.
    pub fn here() -> Machine {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Machine {
            cpu: model.map(|(_, name)| name.to_owned()).unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: number_after(&memory, "MemTotal").unwrap_or(0) * 1_024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        }
    }
}

/// Whether this processor has what the daemon's batched P-256 needs (AVX-512 IFMA).
pub fn multiplies_in_lanes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512ifma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 250 31 0 0 20 0 1 0 1 1 1";
        let cpu = parse_stat(stat).unwrap();
        assert_eq!(cpu, Cpu { user: Duration::from_millis(2_500), system: Duration::from_millis(310) });
        assert!((cpu.micros_each(1_000) - 2_810.0).abs() < 0.001);
        assert_eq!(parse_stat("42 (x) S"), None);
        assert_eq!(parse_schedstat("1500000 7 3\n"), Some(Duration::from_micros(1_500)));
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(parse_busy("cpu  10 20 30 4000 5000 1 2 7 10 0\ncpu0 1"), Some(Duration::from_millis(700)));
        assert_eq!(parse_busy("cpu 1 2 3"), None);
    }

    #[test]
    fn this_process_and_machine_are_told() {
        assert!(status_bytes(std::process::id(), "VmHWM").unwrap() > 100_000);
        assert!(Cpu::own().is_ok());
        std::thread::Builder::new()
            .name("telling".to_owned())
            .spawn(|| {
                let begin = std::time::Instant::now();
                while begin.elapsed() < Duration::from_millis(50) {}
                let told = threads(std::process::id()).unwrap();
                let (_, used) = told.iter().find(|(name, _)| name == "telling").expect("it lives");
                assert!(*used > Duration::from_millis(5) && *used < Duration::from_secs(1), "{used:?}");
            })
            .unwrap()
            .join()
            .unwrap();
        assert!(reset_peak(std::process::id()).is_ok());
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("in")).unwrap();
        fs::write(directory.path().join("in/a.sst"), vec![1; 10_000]).unwrap();
        fs::write(directory.path().join("b"), vec![1; 5_000]).unwrap();
        let (whole, part) = disk_bytes(directory.path(), ".sst").unwrap();
        assert!(part >= 10_000 && whole >= part + 5_000 && whole < 200_000, "{whole} {part}");
        assert!(busy_cores(Duration::from_millis(50)).unwrap() >= 0.0);
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.memory_bytes > 1 << 20);
    }
}
