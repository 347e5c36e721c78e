//! What was found out: numbers, some of them beside what they should be at most; as tables and as JSON. And what numbers are
//! made of many: quantiles, and the memory of the process. Knows nothing about what is measured.

use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// What belongs together.
#[derive(Serialize)]
pub struct Section {
    title: String,
    findings: Vec<Finding>,
}

/// A number.
#[derive(Serialize)]
struct Finding {
    what: String,
    value: f64,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_most: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

impl Section {
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), findings: Vec::new() }
    }

    /// A number that has no target.
    pub fn add(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.put(what, value, unit, None);
    }

    /// A number that should be no larger than `bound`.
    pub fn hold(&mut self, what: impl Into<String>, value: f64, unit: &'static str, bound: f64) {
        self.put(what, value, unit, Some(bound));
    }

    /// A number, and what it should be no larger than, if anything.
    pub fn put(&mut self, what: impl Into<String>, value: f64, unit: &'static str, at_most: Option<f64>) {
        let met = at_most.map(|bound| value <= bound);
        self.findings.push(Finding { what: what.into(), value, unit, at_most, met });
    }

    /// The median, the 99th hundredth and the largest of some times.
    pub fn times(&mut self, what: &str, times: &mut Times) {
        for (part, name) in [(0.5, "median"), (0.99, "p99"), (1.0, "max")] {
            self.add(format!("{what}, {name}"), times.quantile(part), "ms");
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for Finding { what, value, unit, at_most, met } in &self.findings {
            write!(f, "  {what:66} {value:10.3} {unit:5}")?;
            if let (Some(bound), Some(met)) = (at_most, met) {
                write!(f, " <= {bound} {}", if *met { "met" } else { "MISSED" })?;
            }
            writeln!(f)?;
        }
        writeln!(f)
    }
}

/// Times of something that was done many times, in milliseconds.
#[derive(Default)]
pub struct Times(Vec<f64>);

impl Times {
    pub fn push(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    pub fn extend(&mut self, other: Times) {
        self.0.extend(other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that this part of them do not exceed.
    pub fn quantile(&mut self, part: f64) -> f64 {
        self.0.sort_unstable_by(f64::total_cmp);
        self.0[(part * (self.0.len() - 1) as f64).round() as usize]
    }

    /// How many are beyond so many medians.
    pub fn beyond(&mut self, medians: f64) -> usize {
        let limit = medians * self.quantile(0.5);
        self.0.iter().filter(|&&time| time > limit).count()
    }
}

/// The bytes of memory that this process has, as Linux counts them.
pub fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
}

/// In units of 10^6 bytes.
pub fn megabytes(bytes: f64) -> f64 {
    bytes / 1e6
}
