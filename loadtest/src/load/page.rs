//! The page of a suite: what was measured and where, a table of all, the plots, and every number with the command that measures it
//! again. One file without anything outside it; the plots lie beside it as files, too.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::bench::STAGES;
use super::plot::{self, Bars, Lines, Series};
use super::report::{grouped, megabytes};
use super::results::{Group, Results, Run};
use super::suite::IDLE;

const FILE: &str = "report.html";

const STYLE: &str = "\
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.2rem; margin-top: 2.5rem }
p.where { color: #555; margin-top: .3rem } figure { margin: 1rem 0 } figcaption { color: #555; max-width: 48rem }
svg { max-width: 100%; height: auto; display: block } .wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th { font-weight: 600; vertical-align: bottom }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd } td { white-space: nowrap }
th:first-child, td:first-child { text-align: left } details td:last-child { text-align: left; white-space: normal }
details { margin: .4rem 0 } summary { cursor: pointer } code { background: #f3f3f3; padding: .1rem .3rem }
.bad { color: #b00020; font-weight: 600 }";

/// A plot: its file's name without ending, what it shows, and it.
struct Figure {
    name: String,
    caption: String,
    svg: String,
}

/// Writes the page and the plots; where the page is.
pub fn write(results: &Results, directory: &Path) -> io::Result<PathBuf> {
    let figures = figures(results)?;
    for figure in &figures {
        fs::write(directory.join(format!("{}.svg", figure.name)), &figure.svg)?;
    }
    let path = directory.join(FILE);
    fs::write(&path, html(results, &figures))?;
    // The page is opened from anywhere.
    path.canonicalize()
}

fn figures(results: &Results) -> io::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let work: Vec<&Run> = results.of(Group::Work).collect();
    if !work.is_empty() {
        figures.push(Figure {
            name: "stages".to_owned(),
            caption: "What a message costs the daemon, user and system time, by what its threads do. Sockets are the threads that read \
                      lines and post to push services. With the mock that checks every message the same work costs more, as it \
                      comes in smaller pieces and shares the caches."
                .to_owned(),
            svg: stacked("CPU time of a message by stage", &work, |run| run.title.clone())?,
        });
    }
    figures.extend(latency(results)?);
    for (group, name, x_name, caption) in [
        (
            Group::Recipients,
            "recipients",
            "registered recipients of one campaign",
            "Campaigns to all who are registered, to a push service that takes everything. The budget: what a message costs is flat \
             within 10 % from 100,000 on.",
        ),
        (
            Group::Threads,
            "threads",
            "threads that seal (encrypt.threads)",
            "One line, one recipient, as above. The work must cost the same however many do it; that more of them deliver more is \
             seen only where there are cores that nobody else needs: here mock and generator have theirs on the same machine.",
        ),
        (
            Group::Connections,
            "connections",
            "connections an origin (deliver.connections_per_origin)",
            "One line, one recipient, over this many connections of up to 128 streams each.",
        ),
        (Group::Body, "body", "bytes of each payload", "One line, one recipient, payloads from none to the largest."),
    ] {
        let mut runs: Vec<&Run> = results.of(group).collect();
        runs.sort_by(|a, b| a.x.total_cmp(&b.x));
        if runs.is_empty() {
            continue;
        }
        // Sizes are what they are; of the others each is a multiple of the one before.
        let place = |x: f64| if group == Group::Body { x } else { x.max(1.0).log2() };
        let rates = runs.iter().filter_map(|run| Some((place(run.x), run.rate()?))).collect();
        let throughput = plot::lines(&Lines {
            title: &format!("Messages delivered a second, by {x_name}"),
            x_name,
            y_name: "a second",
            ticks: runs.iter().map(|run| (place(run.x), grouped(run.x as u64))).collect(),
            logarithmic: false,
            series: vec![Series { name: String::new(), points: rates }],
        })?;
        figures.push(Figure { name: format!("{name}-throughput"), caption: caption.to_owned(), svg: throughput });
        let cpu = stacked(&format!("CPU time of a message by stage and {x_name}"), &runs, |run| grouped(run.x as u64))?;
        figures.push(Figure { name: format!("{name}-cpu"), caption: String::new(), svg: cpu });
    }
    Ok(figures)
}

fn stacked(title: &str, runs: &[&Run], name: impl Fn(&Run) -> String) -> io::Result<String> {
    let bars = runs.iter().map(|run| (name(run), run.stages())).filter(|(_, stages)| !stages.is_empty()).collect();
    let parts = STAGES.iter().map(|(name, _)| *name).chain(["rest"]).collect();
    plot::bars(&Bars { title, x_name: "us of CPU time", parts, bars })
}

/// Percentiles on a scale on which each step to the right is a tenth of the messages that are left.
fn latency(results: &Results) -> io::Result<Option<Figure>> {
    let place = |at: f64| -(1.0 - at).log10();
    let mut series = Vec::new();
    for run in results.of(Group::Latency).chain(results.of(Group::Work)) {
        for (curve, name) in [
            ("delivery", run.title.clone()),
            ("alone_delivery", "1,000 a second, one push service of two".to_owned()),
            ("mixed_delivery", "the same, and 1,000 a second to a slow one".to_owned()),
            ("urgent_other", "urgent to another service, during a campaign".to_owned()),
            ("urgent_same", "urgent to the campaign's service".to_owned()),
        ] {
            // As fast as they are acknowledged, most of it is the queue.
            if curve == "delivery" && run.group != Group::Latency {
                continue;
            }
            let points: Vec<(f64, f64)> = run.curve(curve).into_iter().map(|(at, us)| (place(at), us / 1e3)).collect();
            if !points.is_empty() {
                series.push(Series { name, points });
            }
        }
    }
    if series.is_empty() {
        return Ok(None);
    }
    let ticks = [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];
    let svg = plot::lines(&Lines {
        title: "From the socket to the push service",
        x_name: "so many of the messages took at most this long",
        y_name: "ms",
        ticks: ticks.map(|(at, text)| (place(at), text.to_owned())).to_vec(),
        logarithmic: true,
        series,
    })?;
    let caption = "From the line made to the request's arrival, fsync included, where the daemon is not at its limit. A curve ends where \
                   less than one message lies beyond.";
    Ok(Some(Figure { name: "latency".to_owned(), caption: caption.to_owned(), svg }))
}

fn html(results: &Results, figures: &[Figure]) -> String {
    let mut page = String::new();
    let about = format!(
        "fanfare {}{}, {}{}",
        results.version,
        results.commit.as_ref().map(|commit| format!(" ({commit})")).unwrap_or_default(),
        results.date,
        if results.quick { ", a quick run: less exact" } else { "" }
    );
    let busy = format!(
        "<br><span class=\"bad\">Others used the machine ({:.1} cores of it at the beginning): rates and latencies are not its own.</span>",
        results.busy_cores
    );
    let busy = if results.busy_cores > IDLE { busy } else { String::new() };
    let machine = results.machine.to_string();
    add(&mut page, "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    add(&mut page, "<meta name=\"viewport\" content=\"width=device-width\">\n<title>Fanfare, measured</title>\n");
    add(&mut page, &format!("<style>\n{STYLE}\n</style>\n<h1>Fanfare, measured</h1>\n"));
    add(&mut page, &format!("<p class=\"where\">{}<br>{}{busy}</p>\n", escaped(&about), escaped(&machine)));
    add(
        &mut page,
        "<p>Daemon, mock push service and load generator are processes of this one machine and share its cores; CPU time is each \
         one's own. Everything goes through the daemon's socket, to disk, and over TLS 1.3 and HTTP/2 of loopback. Where it does not \
         say “checked” the mock takes everything and looks at nothing, so that the daemon has the machine; then the daemon's own \
         counts and the number of posts must agree.</p>\n",
    );
    table(&mut page, results);
    add(&mut page, "<h2>Plots</h2>\n");
    for figure in figures {
        add(&mut page, &format!("<figure>\n{}\n", figure.svg));
        if !figure.caption.is_empty() {
            add(&mut page, &format!("<figcaption>{}</figcaption>\n", escaped(&figure.caption)));
        }
        add(&mut page, "</figure>\n");
    }
    add(&mut page, "<h2>Every number</h2>\n");
    for run in &results.runs {
        add(
            &mut page,
            &format!(
                "<details><summary>{}</summary>\n<p><code>{}</code></p>\n<table>\n",
                escaped(&run.title),
                escaped(&run.command)
            ),
        );
        for (label, text) in run.rows.iter().filter(|(label, text)| !(label.is_empty() && text.is_empty())) {
            add(&mut page, &format!("<tr><td>{}<td>{}\n", escaped(label), escaped(text)));
        }
        add(&mut page, "</table></details>\n");
    }
    page
}

/// One row a measurement.
fn table(page: &mut String, results: &Results) {
    add(
        page,
        "<h2>Table</h2>\n<div class=\"wide\"><table>\n<tr><th><th>acknow-<br>ledged<br>a second<th>delivered<br>a second<th>daemon CPU<br>us a message<th>mock CPU<br>us a \
         message<th>generator CPU<br>us a message<th>latency<br>p50, ms<th>p99, ms<th>daemon peak<br>memory<th>bytes written<br>a message\n",
    );
    for run in &results.runs {
        let number = |value: Option<f64>, digits: usize| value.map_or(String::new(), |value| format!("{value:.digits$}"));
        // Of a measurement in sections, the section that says it: with the slow push service.
        let either = |name: &str, part: &str| run.inner(name, part).or_else(|| run.inner(&format!("mixed_{name}"), part));
        let rate = run.number("messages_per_second").or_else(|| run.number("mixed_messages_per_second"));
        let latent = run.group == Group::Latency;
        let of = |part: &str| if latent { either("delivery", part).map(|us| us / 1e3) } else { None };
        let written =
            run.number("daemon_written_bytes").zip(run.inner("daemon_cpu", "messages")).map(|(bytes, count)| bytes / count);
        let peak = run.number("daemon_peak_rss_bytes").or_else(|| run.number("mixed_daemon_peak_rss_bytes"));
        let bad = run.numbers.get("ok").and_then(serde_json::Value::as_bool) != Some(true);
        let acked = run.number("acks_per_second").or_else(|| run.number("mixed_acks_per_second"));
        let cells = [
            acked.map_or(String::new(), |rate| grouped(rate as u64)),
            rate.map_or(String::new(), |rate| grouped(rate as u64)),
            number(either("daemon_cpu", "us_per_message"), 1),
            number(either("mock_cpu", "us_per_message"), 1),
            number(either("generator_cpu", "us_per_message"), 1),
            number(of("p50_us"), 2),
            number(of("p99_us"), 2),
            peak.map_or(String::new(), |bytes| megabytes(bytes as u64)),
            written.map_or(String::new(), |bytes| grouped(bytes.round() as u64)),
        ];
        let title = escaped(&run.title);
        let title = if bad { format!("<span class=\"bad\">{title}: does not add up</span>") } else { title };
        add(page, &format!("<tr><td>{title}"));
        for cell in cells {
            add(page, &format!("<td>{}", escaped(&cell)));
        }
        add(page, "\n");
    }
    add(page, "</table></div>\n");
}

fn add(page: &mut String, text: &str) {
    page.write_str(text).expect("a String takes everything");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare_loadtest::machine::Machine;
    use serde_json::json;

    fn run(group: Group, title: &str, x: f64) -> Run {
        let stages = json!({"sockets": 12.0, "write": 3.0, "schedule": 0.5, "encrypt": 11.0, "outcome": 1.0, "sweep": 0.0,
            "tokens": 0.0, "rocksdb": 0.25, "rest": 0.0});
        let numbers = json!({"messages_per_second": 17_000.5, "ok": title != "bad", "daemon_stages_us": stages,
            "daemon_cpu": {"us_per_message": 28.75, "messages": 10}, "daemon_written_bytes": 1_230,
            "delivery": {"p50_us": 1_500, "p99_us": 2_750}, "delivery_curve": [{"at": 0.5, "us": 1_500}, {"at": 0.99, "us": 2_750}]});
        let serde_json::Value::Object(numbers) = numbers else { unreachable!() };
        let rows = vec![("daemon <CPU>".to_owned(), "28.8 us".to_owned())];
        Run { group, title: title.to_owned(), x, command: "fanfare-load x --sink".to_owned(), numbers, rows }
    }

    #[test]
    fn the_page_has_every_number_and_every_plot() {
        let runs = vec![
            run(Group::Work, "one-to-one", 0.0),
            run(Group::Work, "bad", 0.0),
            run(Group::Latency, "lone", 0.0),
            run(Group::Recipients, "to 1,000", 1e3),
            run(Group::Recipients, "to 10,000", 1e4),
            run(Group::Body, "of 250 bytes", 250.0),
        ];
        let commit = Some("abc123".to_owned());
        let results = Results {
            date: "today".to_owned(),
            version: "1.2".to_owned(),
            commit,
            quick: true,
            machine: Machine::here(),
            busy_cores: 1.75,
            runs,
        };
        let directory = tempfile::tempdir().unwrap();
        results.write(directory.path()).unwrap();
        let path = write(&Results::read(directory.path()).unwrap(), directory.path()).unwrap();
        let page = fs::read_to_string(path).unwrap();
        for text in [
            "abc123",
            "17,000",
            "28.8",
            "1.50",
            "2.75",
            "123",
            "bad: does not add up",
            "1.8 cores",
            "daemon &lt;CPU&gt;",
            "x --sink",
        ] {
            assert!(page.contains(text), "{text}");
        }
        for name in ["stages", "latency", "recipients-throughput", "recipients-cpu", "body-throughput", "body-cpu"] {
            let svg = fs::read_to_string(directory.path().join(format!("{name}.svg"))).unwrap();
            assert!(page.contains(&svg), "{name}");
        }
        assert!(!directory.path().join("threads-cpu.svg").exists(), "nothing was measured for it");
        let outside = page.matches("http").count() - page.matches("http://www.w3.org/2000/svg").count();
        assert_eq!(outside, 0, "nothing outside the page is needed");
    }
}
