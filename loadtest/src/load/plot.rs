//! Two kinds of plots as SVG: lines over something that was varied, and bars that are stacked.

use std::error::Error;
use std::io;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: u32 = 760;
const LINES_HEIGHT: u32 = 400;
/// Of bars: each, and what stands above and below them all.
const BAR_HEIGHT: u32 = 34;
const AROUND_BARS: u32 = 118;
const FONT: &str = "sans-serif";
const TITLE: u32 = 17;
const TEXT: u32 = 13;
/// The width of a letter of [`TEXT`], nearly: the fonts of who looks at it are not known here.
const LETTER: i32 = 7;
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// Told apart by those who see few colours, too (Paul Tol's "bright" and some darker ones).
const COLOURS: [RGBColor; 9] = [
    RGBColor(0x44, 0x77, 0xaa),
    RGBColor(0xee, 0x66, 0x77),
    RGBColor(0xcc, 0xbb, 0x44),
    RGBColor(0x22, 0x88, 0x33),
    RGBColor(0x66, 0xcc, 0xee),
    RGBColor(0xaa, 0x33, 0x77),
    RGBColor(0x99, 0x77, 0x00),
    RGBColor(0x33, 0x22, 0x88),
    RGBColor(0xbb, 0xbb, 0xbb),
];

/// Lines, and the names of their axes.
pub struct Lines<'a> {
    pub title: &'a str,
    pub x_name: &'a str,
    pub y_name: &'a str,
    /// Where something was measured, and how that is written.
    pub ticks: Vec<(f64, String)>,
    /// Of y; otherwise it begins at zero.
    pub logarithmic: bool,
    pub series: Vec<Series>,
}

/// One line.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// Bars that lie, each of the same parts.
pub struct Bars<'a> {
    pub title: &'a str,
    pub x_name: &'a str,
    pub parts: Vec<&'a str>,
    pub bars: Vec<(String, Vec<f64>)>,
}

/// Draws lines.
pub fn lines(plot: &Lines<'_>) -> io::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, LINES_HEIGHT)).into_drawing_area();
        draw_lines(plot, &root).map_err(|problem| io::Error::other(problem.to_string()))?;
    }
    Ok(svg)
}

/// Draws bars.
pub fn bars(plot: &Bars<'_>) -> io::Result<String> {
    let mut svg = String::new();
    {
        let height = AROUND_BARS + BAR_HEIGHT * plot.bars.len().max(1) as u32;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        draw_bars(plot, &root).map_err(|problem| io::Error::other(problem.to_string()))?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

fn draw_lines(plot: &Lines<'_>, root: &Area<'_>) -> Drawn {
    let names: Vec<&str> = plot.series.iter().map(|series| series.name.as_str()).collect();
    // A single line is named by its axis.
    let below = head(root, plot.title, if names.len() > 1 { &names } else { &[] })?;
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (left, right) = ends(&mut points().map(|(x, _)| *x).chain(plot.ticks.iter().map(|(at, _)| *at)));
    let (low, high) = ends(&mut points().map(|(_, y)| *y));
    if !(left.is_finite() && low.is_finite()) {
        return Ok(());
    }
    let margin = ((right - left) * 0.03).max(1e-9);
    let x = Axis { from: left - margin, to: right + margin, ticks: plot.ticks.iter().map(|(at, _)| *at).collect() };
    let label = |at: &f64| {
        let tick = plot.ticks.iter().min_by(|a, b| (a.0 - at).abs().total_cmp(&(b.0 - at).abs()));
        tick.map_or_else(String::new, |(_, text)| text.clone())
    };
    // A logarithmic scale is a linear one of logarithms.
    let (y, place): (_, fn(f64) -> f64) = if plot.logarithmic {
        let ticks: Vec<f64> = scale(low, high).into_iter().map(f64::log10).collect();
        (Axis { from: ticks[0], to: ticks[ticks.len() - 1], ticks }, f64::log10)
    } else {
        (Axis::from_zero(high * 1.15), |value| value)
    };
    let told = |at: &f64| short(if plot.logarithmic { 10f64.powf(*at) } else { *at });
    let mut chart = ChartBuilder::on(&below)
        .margin(12)
        .margin_right(24)
        .x_label_area_size(46)
        .y_label_area_size(72)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_desc(plot.x_name)
        .y_desc(plot.y_name)
        .axis_desc_style((FONT, TEXT).into_font().color(&INK))
        .label_style((FONT, TEXT).into_font().color(&INK))
        .x_label_formatter(&label)
        .y_label_formatter(&told)
        .draw()?;
    for (number, series) in plot.series.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points: Vec<(f64, f64)> = series.points.iter().map(|(x, y)| (*x, place(*y))).collect();
        chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    root.present()?;
    Ok(())
}

/// A linear axis with the ticks told, which may run backwards.
struct Axis {
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// Some six ticks at round values.
    fn from_zero(to: f64) -> Axis {
        let to = to.max(1e-9);
        let step = step(to / 6.0);
        Axis { from: 0.0, to, ticks: (0..=(to / step) as u32).map(|tick| f64::from(tick) * step).collect() }
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (begin, end): (i32, i32)) -> i32 {
        let part = (value - self.from) / (self.to - self.from);
        begin + (part * f64::from(end - begin)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.from..self.to
    }
}

/// 1, 2 and 5 of each power of ten, from below the one to above the other.
fn scale(low: f64, high: f64) -> Vec<f64> {
    let steps: Vec<f64> = (-6..12).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power))).collect();
    let from = steps.iter().rposition(|step| *step <= low).unwrap_or(0);
    let to = steps.iter().position(|step| *step >= high).unwrap_or(steps.len() - 1).max(from + 1);
    steps[from..=to].to_vec()
}

/// The least of 1, 2 and 5 of a power of ten that is not below this.
fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= least).unwrap_or(10.0 * power)
}

fn draw_bars(plot: &Bars<'_>, root: &Area<'_>) -> Drawn {
    // What nobody would see needs no name.
    let whole = plot.bars.iter().map(|(_, parts)| parts.iter().sum::<f64>()).fold(1e-9, f64::max);
    let seen = |part: usize| plot.bars.iter().any(|(_, parts)| parts[part] > whole / 500.0);
    let names: Vec<&str> = plot.parts.iter().enumerate().map(|(part, name)| if seen(part) { *name } else { "" }).collect();
    let below = head(root, plot.title, &names)?;
    let widest = plot.bars.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0) as i32;
    let count = plot.bars.len();
    let mut chart = ChartBuilder::on(&below)
        .margin(8)
        .margin_right(24)
        .x_label_area_size(46)
        .y_label_area_size(widest * LETTER + 14)
        // The first bar lies on top.
        .build_cartesian_2d(Axis::from_zero(whole * 1.12), Axis { from: count as f64, to: 0.0, ticks: Vec::new() })?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_desc(plot.x_name)
        .axis_desc_style((FONT, TEXT).into_font().color(&INK))
        .label_style((FONT, TEXT).into_font().color(&INK))
        .x_label_formatter(&|value| short(*value))
        .draw()?;
    for (place, (_, parts)) in plot.bars.iter().enumerate() {
        let (top, bottom) = (place as f64 + 0.18, place as f64 + 0.82);
        let mut from = 0.0;
        for (part, value) in parts.iter().enumerate() {
            let corners = [(from, top), (from + value, bottom)];
            chart.draw_series([Rectangle::new(corners, COLOURS[part % COLOURS.len()].filled())])?;
            from += value;
        }
        let style = (FONT, TEXT).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        let text = EmptyElement::at((from, place as f64 + 0.5)) + Text::new(format!("{from:.1}"), (6, 0), style);
        chart.draw_series([text])?;
    }
    // Names stand left of the axis, where the chart's own labels would be numbers.
    let style = (FONT, TEXT).into_font().color(&INK).pos(Pos::new(HPos::Right, VPos::Center));
    let plotting = chart.plotting_area();
    for (place, (name, _)) in plot.bars.iter().enumerate() {
        let (x, y) = plotting.map_coordinate(&(0.0, place as f64 + 0.5));
        root.draw(&Text::new(name.as_str(), (x - 8, y), style.clone()))?;
    }
    root.present()?;
    Ok(())
}

/// Title, and what the colours mean; what is below them. A name that is empty is left out, and keeps its colour.
fn head<'a>(root: &Area<'a>, title: &str, names: &[&str]) -> Result<Area<'a>, Box<dyn Error>> {
    root.fill(&WHITE)?;
    let centre = Pos::new(HPos::Left, VPos::Center);
    root.draw(&Text::new(title, (14, 20), (FONT, TITLE).into_font().color(&INK).pos(centre)))?;
    let (mut x, mut y) = (14, 46);
    for (place, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        let width = 22 + LETTER * name.chars().count() as i32 + 14;
        if x + width > WIDTH as i32 {
            (x, y) = (14, y + 20);
        }
        root.draw(&Rectangle::new([(x, y - 6), (x + 14, y + 6)], COLOURS[place % COLOURS.len()].filled()))?;
        root.draw(&Text::new(*name, (x + 20, y), (FONT, TEXT).into_font().color(&INK).pos(centre)))?;
        x += width;
    }
    let (_, below) = root.split_vertically(if names.is_empty() { 34 } else { y + 14 });
    Ok(below)
}

/// 12000 as 12,000; 0.25 as 0.25.
fn short(value: f64) -> String {
    if value >= 1_000.0 {
        return super::report::grouped(value.round() as u64);
    }
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_show_what_they_are_given() {
        let series = |name: &str, points: &[(f64, f64)]| Series { name: name.to_owned(), points: points.to_vec() };
        for logarithmic in [false, true] {
            let svg = lines(&Lines {
                title: "A & B",
                x_name: "recipients",
                y_name: "ms",
                ticks: vec![(1.0, "ten".to_owned()), (2.0, "hundred".to_owned())],
                logarithmic,
                series: vec![series("first", &[(1.0, 3.0), (2.0, 4_700.0)]), series("second", &[(1.0, 40.0)])],
            })
            .unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            for text in ["A &amp; B", "recipients", "ten", "hundred", "first", "second"] {
                assert!(svg.contains(text), "{text} is not in {svg}");
            }
            assert_eq!((svg.matches("<polyline").count() >= 2, svg.matches("<circle").count()), (true, 3));
        }
        let svg = bars(&Bars {
            title: "CPU",
            x_name: "us",
            parts: vec!["seal", "post", "nothing"],
            bars: vec![("one".to_owned(), vec![10.0, 5.25, 0.0])],
        })
        .unwrap();
        assert!(svg.contains("seal") && svg.contains("post") && !svg.contains("nothing") && svg.contains("15.2"), "{svg}");
        let nothing = Lines { title: "", x_name: "", y_name: "", ticks: Vec::new(), logarithmic: true, series: Vec::new() };
        assert!(lines(&nothing).is_ok());
    }

    #[test]
    fn scales_enclose_their_values() {
        assert_eq!(scale(0.7, 33.0), [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(scale(2.0, 2.0), [2.0, 5.0]);
        assert_eq!([0.3, 1.0, 17.0].map(step), [0.5, 1.0, 20.0]);
        assert_eq!([12_345.6, 0.25, 3.0].map(short), ["12,346", "0.25", "3"]);
    }
}
