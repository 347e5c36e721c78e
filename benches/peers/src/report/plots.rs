//! The results as plots: time against rows for each layer or model, and the roofline of layers. SVG files of moderate size.

use super::style::{
    BLACK, BLUE, DrawError, GREEN, GREY, GRID, INK, Look, ORANGE, PURPLE, SKY, VERMILION, decades, legend,
    range, short, text, titled,
};
use crate::contender::Who;
use crate::error::Error;
use crate::results::{Bounds, Point, Results, Suite};
use crate::workload::Workload;
use plotters::coord::combinators::BindKeyPoints;
use plotters::prelude::*;
use std::path::Path;

/// A plot in a file.
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// Its file's name.
    pub file: String,
}

/// Width of the legend in pixels.
const LEGEND: i32 = 190;
/// Size of one panel in pixels.
const PANEL: (i32, i32) = (440, 400);

/// A series: whose times, the least of which is shown, and how it looks.
struct Series {
    who: &'static [Who],
    look: Look,
}

const fn series(who: &'static [Who], title: &'static str, color: RGBColor, width: u32) -> Series {
    Series { who, look: Look { title, color, width } }
}

/// The lines of times, the first drawn first.
const TIMES: [Series; 15] = [
    series(&[Who::PeftMixedCompiled], "PEFT, torch.compile, 8 LoRA", PURPLE, 2),
    series(&[Who::PeftMixed], "PEFT, 8 LoRA", VERMILION, 2),
    series(&[Who::BankLora], "Engraft, 8 LoRA", GREEN, 2),
    series(&[Who::BankDora], "Engraft, 8 DoRA", SKY, 2),
    series(&[Who::BankBare], "Engraft, no row adapted", GREY, 2),
    series(&[Who::BankOwn], "Engraft, own DoRA", BLUE, 4),
    series(&[Who::PeftCompiled], "PEFT, torch.compile", PURPLE, 2),
    series(&[Who::Peft], "PEFT", VERMILION, 2),
    series(&[Who::PeftCached], "PEFT, cached norms", GREY, 2),
    series(&[Who::Torch, Who::TorchCompiled], "PyTorch, merged", ORANGE, 2),
    series(&[Who::OpenVino], "OpenVINO, merged", SKY, 2),
    series(&[Who::OnnxRuntime, Who::OnnxRuntimeFused], "ONNX Runtime, merged", GREEN, 2),
    series(&[Who::Live], "Engraft, live norms", INK, 1),
    series(&[Who::Dense], "Engraft, bare", BLACK, 2),
    series(&[Who::Dora], "Engraft, DoRA", BLUE, 4),
];

/// The points of the roofline.
const ROOFLINE: [Series; 4] = [
    series(&[Who::Torch, Who::TorchCompiled], "PyTorch, merged", ORANGE, 1),
    series(&[Who::OpenVino], "OpenVINO, merged", SKY, 1),
    series(&[Who::OnnxRuntime], "ONNX Runtime, merged", GREEN, 1),
    series(&[Who::Dora], "Engraft, DoRA", BLUE, 2),
];

/// The bounds that the machine sets.
const ROOF: Look = Look { title: "a read, a tile out of L1", color: BLACK, width: 2 };

/// Draws all plots.
///
/// # Errors
/// A file can't be written.
pub fn draw(results: &Results, directory: &Path) -> Result<Vec<Plot>, Error> {
    let mut plots = Vec::new();
    let mut plot = |title: String, file: String, draw: &dyn Fn(&Path, &str) -> Result<(), DrawError>| {
        let path = directory.join(&file);
        draw(&path, &title).map_err(|error| Error::Plot { path, message: error.to_string() })?;
        plots.push(Plot { title, file });
        Ok::<_, Error>(())
    };
    for points in results.points.chunk_by(Point::is_beside) {
        let workload = points[0].workload;
        let file = match workload {
            Workload::Layer { shape, .. } => format!("time-{}.svg", shape.slug()),
            Workload::Mixed { shape, .. } => format!("mixed-{}-r{}.svg", shape.slug(), shape.rank),
            Workload::Encode { model, .. } => format!("time-{model}.svg"),
            // One size, and nobody beside us.
            Workload::Decode { .. } => continue,
        };
        plot(format!("Time of a call: {}", workload.subject()), file, &|path, title| {
            times(path, title, points, &results.threads)
        })?;
    }
    if results.suite == Suite::Layers {
        plot("Roofline, one thread".to_owned(), "roofline.svg".to_owned(), &|path, title| {
            roofline(path, title, &results.points)
        })?;
    }
    Ok(plots)
}

/// How the axis of rows is called.
fn rows(workload: Workload) -> &'static str {
    if matches!(workload, Workload::Layer { .. } | Workload::Mixed { .. }) {
        "batch (rows)"
    } else {
        "tokens in all rows"
    }
}

/// A panel for each number of threads, over the same range of times.
fn times(path: &Path, title: &str, points: &[Point], threads: &[usize]) -> Result<(), DrawError> {
    let panels = threads.len() as i32;
    let size = ((PANEL.0 * panels + LEGEND) as u32, (PANEL.1 + 48) as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    let below = titled(&root, title)?;
    let (panels_area, legend_area) = below.split_horizontally(PANEL.0 * panels);
    let time = |series: &Series, point: &Point, threads| point.best(series.who, threads);
    let is_there = |series: &&Series| points.iter().any(|point| time(series, point, threads[0]).is_some());
    let shown: Vec<&Series> = TIMES.iter().filter(is_there).collect();
    let all = shown.iter().flat_map(|series| {
        points.iter().flat_map(move |point| threads.iter().filter_map(move |&n| time(series, point, n)))
    });
    let (least, largest) = range(all);
    let batches: Vec<f64> = points.iter().map(|point| point.workload.rows() as f64).collect();
    let (first, last) = range(batches.iter().copied());
    for (area, &threads) in panels_area.split_evenly((1, threads.len())).iter().zip(threads) {
        let caption = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        let x = (first..last).log_scale().with_key_points(batches.clone());
        let y = (least..largest).log_scale().with_key_points(decades(least, largest));
        let mut chart = ChartBuilder::on(area)
            .caption(caption, text(16))
            .margin_left(12)
            .margin_right(12)
            .x_label_area_size(46)
            .y_label_area_size(60)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(text(13))
            .axis_desc_style(text(14))
            .x_desc(rows(points[0].workload))
            .y_desc("microseconds a call")
            .x_label_formatter(&|batch| format!("{batch}"))
            .y_label_formatter(&|time| short(*time))
            .draw()?;
        for series in &shown {
            let line: Vec<_> = points
                .iter()
                .filter_map(|point| Some((point.workload.rows() as f64, time(series, point, threads)?)))
                .collect();
            chart.draw_series(LineSeries::new(line, series.look.line().filled()).point_size(3))?;
        }
    }
    let looks: Vec<_> = shown.iter().rev().map(|series| series.look).collect();
    legend(&legend_area, &looks)?;
    root.present()
}

/// Work per second against work per byte: each line is a shape, from batch 1 on the left.
fn roofline(path: &Path, title: &str, points: &[Point]) -> Result<(), DrawError> {
    let size = ((2 * PANEL.0 + LEGEND) as u32, (PANEL.1 + 48) as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    let below = titled(&root, title)?;
    let (area, legend_area) = below.split_horizontally(2 * PANEL.0);
    let place = |series: &Series, point: &Point| {
        let Workload::Layer { shape, batch } = point.workload else { return None };
        let flops = shape.flops(batch);
        // Flops a microsecond are megaflops a second.
        Some((flops / shape.bytes(batch), flops / point.best(series.who, 1)? / 1e3))
    };
    let all = ROOFLINE.iter().flat_map(|series| points.iter().filter_map(move |point| place(series, point)));
    let flops_per_second = typical(points, |bounds| bounds.flops_per_second);
    let bytes_per_second = typical(points, |bounds| bounds.bytes_per_second);
    let (left, right) = range(all.clone().map(|(x, _)| x));
    let (bottom, top) = range(all.map(|(_, y)| y).chain([flops_per_second / 1e9]));
    let mut chart = ChartBuilder::on(&area)
        .margin_left(12)
        .margin_right(12)
        .x_label_area_size(46)
        .y_label_area_size(60)
        .build_cartesian_2d(
            (left..right).log_scale().with_key_points(ticks(left, right)),
            (bottom..top).log_scale().with_key_points(ticks(bottom, top)),
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(text(13))
        .axis_desc_style(text(14))
        .x_desc("flops per byte that has to move at least")
        .y_desc("Gflop/s")
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| short(*y))
        .draw()?;
    // No more than memory delivers work for, and no more than a core can do: equal where the lines meet.
    let knee = flops_per_second / bytes_per_second;
    let roof = |x: f64| (x, x.min(knee) * bytes_per_second / 1e9);
    let first = left.max(bottom * 1e9 / bytes_per_second);
    let line = [first, knee.clamp(first, right), right].map(roof);
    chart.draw_series(LineSeries::new(line, ROOF.line()))?;
    for series in &ROOFLINE {
        for points in points.chunk_by(Point::is_beside) {
            let line: Vec<_> = points.iter().filter_map(|point| place(series, point)).collect();
            chart.draw_series(LineSeries::new(line, series.look.line().filled()).point_size(3))?;
        }
    }
    let looks: Vec<_> = [ROOF].into_iter().chain(ROOFLINE.iter().rev().map(|series| series.look)).collect();
    legend(&legend_area, &looks)?;
    root.present()
}

/// The median of a bound that was measured beside each point.
fn typical(points: &[Point], bound: fn(&Bounds) -> f64) -> f64 {
    let mut measured: Vec<_> = points.iter().map(|point| bound(&point.bounds)).collect();
    measured.sort_unstable_by(f64::total_cmp);
    measured.get(measured.len() / 2).copied().unwrap_or(f64::NAN)
}

/// 1, 2, 5, 10, 20, ... within the range.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    let steps =
        decades(from / 10.0, to).into_iter().flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * decade));
    steps.filter(|x| (from..=to).contains(x)).collect()
}
