//! The results as a page: the machine, the targets, the times.

use super::plots::Plot;
use crate::agreement::TOLERANCE;
use crate::contender::Who;
use crate::results::{Point, Results, Suite};
use crate::targets::{self, Bound, Ratio};
use std::fmt::Write;

/// The page.
pub fn page(results: &Results, plots: &[Plot]) -> String {
    let mut page = format!("# {}\n\n", results.suite.title());
    page +=
        "Written by `benches/peers/run.sh`; its README says what is compared and how. Times are medians of\n";
    let _ =
        writeln!(page, "interleaved turns in one session, in f32. Before, all agreed within {TOLERANCE}.\n");
    machine(&mut page, results);
    targets(&mut page, results);
    page += "\n## Plots\n";
    for plot in plots {
        let _ = write!(page, "\n![{}]({})\n", plot.title, plot.file);
    }
    times(&mut page, results);
    every_ratio(&mut page, results);
    page
}

fn machine(page: &mut String, results: &Results) {
    let machine = &results.machine;
    let versions: Vec<_> =
        results.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let rows = [
        ("processor", machine.processor.clone()),
        ("cores", machine.cores.to_string()),
        ("flags", machine.flags.join(" ")),
        ("caches", machine.caches.join(", ")),
        ("our kernels", machine.kernels.to_owned()),
        ("peers", versions.join(", ")),
    ];
    *page += "## Machine\n\n| | |\n|---|---|\n";
    for (what, value) in rows {
        let _ = writeln!(page, "| {what} | {value} |");
    }
}

/// For each target and bound, the ratio that is furthest from it, and how many are within.
fn targets(page: &mut String, results: &Results) {
    *page +=
        "\n## Targets\n\n| measure | target | best | median | worst | met |\n|---|---|---|---|---|---|\n";
    for target in targets::all() {
        let of_target = || results.ratios.iter().filter(|ratio| ratio.measure == target.measure);
        let mut bounds: Vec<Bound> = Vec::new();
        for ratio in of_target() {
            if !bounds.contains(&ratio.target) {
                bounds.push(ratio.target);
            }
        }
        for bound in bounds {
            let mut ratios: Vec<&Ratio> = of_target().filter(|ratio| ratio.target == bound).collect();
            ratios.sort_by(|a, b| match bound {
                Bound::AtMost(_) => a.value.total_cmp(&b.value),
                Bound::AtLeast(_) => b.value.total_cmp(&a.value),
            });
            let met = ratios.iter().filter(|ratio| ratio.met).count();
            let beyond = match ratios.iter().filter(|ratio| ratio.is_beyond()).count() {
                0 => String::new(),
                beyond => format!("; {beyond} beyond the machine"),
            };
            let mut workloads: Vec<_> = ratios.iter().map(|ratio| ratio.workload).collect();
            workloads.sort_unstable_by_key(|workload| workload.rows());
            let mut sizes: Vec<_> = workloads.iter().map(|workload| workload.size()).collect();
            sizes.dedup();
            let unit = workloads[0].unit();
            let [best, median, worst] = [0, ratios.len() / 2, ratios.len() - 1].map(|i| ratios[i].value);
            let _ = writeln!(
                page,
                "| {}, {unit} {} | {bound} | {best:.3} | {median:.3} | {worst:.3} | {met} of {}{beyond} |",
                target.measure,
                sizes.join(", "),
                ratios.len()
            );
        }
    }
}

fn times(page: &mut String, results: &Results) {
    for &threads in &results.threads {
        let plural = if threads == 1 { "" } else { "s" };
        let _ = write!(page, "\n## Microseconds a call, {threads} thread{plural}\n");
        for points in results.points.chunk_by(Point::is_beside) {
            let _ = write!(page, "\n### {}\n\n|  |", points[0].workload.subject());
            for point in points {
                let (unit, size) = (point.workload.unit(), point.workload.size());
                let _ = write!(page, " {unit} {size} |");
            }
            let _ = writeln!(page, "\n|---|{}", "---:|".repeat(points.len()));
            let is_there = |who: &Who| points.iter().any(|point| point.median(*who, threads).is_some());
            for who in Who::ALL.into_iter().filter(is_there).filter(|&who| is_shown(results.suite, who)) {
                let cells: Vec<_> = points.iter().map(|point| cell(point, who, threads)).collect();
                let _ = writeln!(page, "| {} | {} |", who.title(), cells.join(" | "));
            }
        }
    }
}

/// The tile's time means nothing beside the others', nor does that of a read of more than a layer.
fn is_shown(suite: Suite, who: Who) -> bool {
    match who {
        Who::Tile | Who::Peak | Who::Weights => false,
        Who::Read => suite == Suite::Models,
        _ => true,
    }
}

fn cell(point: &Point, who: Who, threads: usize) -> String {
    point.median(who, threads).map_or("-".to_owned(), |time| match time {
        ..100.0 => format!("{time:.2}"),
        ..1000.0 => format!("{time:.1}"),
        _ => format!("{time:.0}"),
    })
}

fn every_ratio(page: &mut String, results: &Results) {
    *page += "\n## Every ratio that has a target\n\n";
    *page += "Limit: the ratio if ours took no longer than registers alone take for the products of the weights and of the\n";
    *page += "adapter, or than a plain read of the weights by all threads, whichever is longer, measured in the same rounds.\n\n";
    *page += "| measure | what | size | threads | ratio | target | met | limit |\n|---|---|---:|---|---:|---|---|---:|\n";
    for ratio in &results.ratios {
        let threads = ratio.threads.map_or("2 and 1".to_owned(), |threads| threads.to_string());
        let _ = writeln!(
            page,
            "| {} | {} | {} | {threads} | {:.3} | {} | {} | {} |",
            ratio.measure,
            ratio.workload.subject(),
            ratio.workload.size(),
            ratio.value,
            ratio.target,
            match ratio {
                Ratio { met: true, .. } => "yes",
                beyond if beyond.is_beyond() => "no: beyond the machine",
                _ => "no",
            },
            ratio.limit.map_or_else(String::new, |limit| format!("{limit:.3}")),
        );
    }
}
