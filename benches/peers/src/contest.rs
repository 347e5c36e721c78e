//! A contest at one point: everybody has to agree, and then everybody is timed. Knows nothing about what is computed.

use crate::agreement::Agreement;
use crate::bounds::{self, Least};
use crate::contender::{Entry, Meaning, Turn, Who};
use crate::error::Error;
use crate::results::Point;
use crate::rounds;
use crate::workload::Workload;
use engraft::runtime::Context;
use std::sync::Arc;
use std::time::Duration;

/// What some rows of the output should be.
pub struct Truth {
    /// Who says so.
    pub said_by: &'static str,
    /// Elements of a row.
    pub width: usize,
    /// Which rows.
    pub rows: Vec<usize>,
    /// These rows, for each meaning that somebody computes.
    pub expected: Vec<(Meaning, Vec<f64>)>,
}

/// Who competes in what.
pub struct Contest<'a> {
    /// In what.
    pub workload: Workload,
    /// Rows of the output.
    pub rows: usize,
    /// Who.
    pub entries: Vec<Entry<'a>>,
    /// What they must agree with.
    pub truth: Truth,
    /// How many bytes the plain read beside them reads.
    pub read: usize,
    /// What nobody can do without.
    pub least: Least,
}

impl Truth {
    fn of(&self, wanted: Meaning) -> Option<&[f64]> {
        self.expected.iter().find(|(meaning, _)| *meaning == wanted).map(|(_, rows)| rows.as_slice())
    }
}

impl<'a> Contest<'a> {
    /// Compares everybody, and times them beside what the machine can do at most. The rounds take about as long as
    /// `budget`, if the slowest allow it.
    ///
    /// # Errors
    /// Somebody fails, or computes something else.
    pub fn hold(mut self, contexts: &'a [Arc<Context>], budget: Duration) -> Result<Point, Error> {
        self.check()?;
        let is_used =
            |context: &&Context| self.entries.iter().any(|entry| entry.threads == context.workers.threads());
        let contexts: Vec<&Context> = contexts.iter().map(Arc::as_ref).filter(is_used).collect();
        let (work, bounds) = bounds::entries(&contexts, self.read, self.least)?;
        self.entries.extend(bounds);
        let times = rounds::times(&mut self.entries, budget)?;
        let bounds = work.bounds(&times);
        let point = Point { workload: self.workload, times, bounds };
        let first = |who| point.median(who, 1).map(|time| format!("; {} {time:.1} us", who.title()));
        let times: String = [Who::Dense, Who::Dora, Who::BankOwn].into_iter().filter_map(first).collect();
        eprintln!("{}: all agree{times}", self.workload);
        Ok(point)
    }

    /// Everybody has to compute the same: some rows as the truth has them, and all rows as the first who computes it.
    fn check(&mut self) -> Result<(), Error> {
        let Truth { said_by, width, ref rows, .. } = self.truth;
        let mut firsts: Vec<(Meaning, Vec<f64>)> = Vec::new();
        for entry in &mut self.entries {
            let Some(meaning) = entry.who.meaning() else { continue };
            entry.contender.turn(Turn { untimed: 0, timed: 1 })?;
            let output = entry.contender.output()?;
            let who = || format!("{} with {} threads, {}", entry.who.title(), entry.threads, self.workload);
            let (found, expected) = (output.len(), self.rows * width);
            if found != expected {
                return Err(Error::OutputSize { who: who(), found, expected });
            }
            let agree = |found: &[f32], expected: &[f64], with| {
                let agreement = Agreement::of(found, expected);
                if agreement.holds() { Ok(()) } else { Err(Error::Disagree { who: who(), with, agreement }) }
            };
            let checked: Vec<f32> =
                rows.iter().flat_map(|row| &output[row * width..][..width]).copied().collect();
            let truth = self.truth.of(meaning).ok_or_else(|| Error::NoTruth { who: who(), said_by })?;
            agree(&checked, truth, said_by)?;
            match firsts.iter().find(|(known, _)| *known == meaning) {
                Some((_, first)) => agree(&output, first, "Engraft")?,
                None => firsts.push((meaning, output.into_iter().map(f64::from).collect())),
            }
        }
        Ok(())
    }
}
