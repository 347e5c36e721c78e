//! Adapters merged into the weights of a model's directory, and taken out of them again: files to files, a tensor at a time.
//!
//! `base` is the directory that is read, `effect` what adapters would do to it, `change` what becomes of a tensor and how much of it survives rounding, `record`
//! what a merged directory keeps to be unmerged, `output` the directory that is written, whole or not at all. What an
//! adapter means is `peft`'s concern; nothing here knows a formula.

mod base;
mod change;
mod effect;
mod error;
mod output;
mod record;

pub use change::{MergedTensor, What};
pub use effect::{Effect, effects};
pub use error::MergeError;

use crate::peft::{BaseWeight, ComposedModule, Composition, PeftAdapter};
use crate::safetensors::{Entry, FloatType, Floats, SafetensorsFile, StoredTensor, Writer};
use base::BaseFiles;
use change::{Numbers, Tally, element_type};
use engraft_runtime::{Tensor, Weights};
use output::Output;
use record::Record;
use std::collections::BTreeMap;
use std::path::Path;

/// Of how much of the change must survive rounding by default: half. Below that, what rounding adds or takes away is more
/// than half as large as what the adapter does.
pub const LEAST_SURVIVAL: f64 = 0.5;

/// How many numbers of a replaced tensor are in memory at once.
const PART: usize = 4096;

/// How weights are merged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergeOptions {
    /// The type of the tensors that change; `None` for the one that each has.
    pub dtype: Option<FloatType>,
    /// How much of each tensor's change must survive, see [`MergedTensor::survival`].
    pub least_survival: f64,
    /// Whether to write what survives less.
    pub force: bool,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self { dtype: None, least_survival: LEAST_SURVIVAL, force: false }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeReport {
    /// The tensors that are not as they were, in the order of the files.
    pub changed: Vec<MergedTensor>,
    /// How many tensors are as they were, to the byte.
    pub kept: usize,
    /// The files beside the weights that were copied.
    pub copied: Vec<String>,
    /// Those that were not, since they may hold weights.
    pub left: Vec<String>,
}

impl MergeReport {
    /// The tensor of whose change the least survives.
    pub fn worst(&self) -> Option<&MergedTensor> {
        let rounded = self.changed.iter().filter(|tensor| tensor.survival.is_some());
        rounded.min_by(|a, b| a.survival.unwrap_or(1.0).total_cmp(&b.survival.unwrap_or(1.0)))
    }
}

/// Merges adapters, active together in this order, into the weights of a model's directory, and writes a directory that
/// holds the merged model: the tensors that they change, and all others to the byte, in the same files; the configs, the
/// tokenizer and the like beside them; and in `engraft/merged.safetensors` what [`unmerge`] needs. The output
/// must not exist, or be an empty directory; it is there whole or not at all.
///
/// What [`MergedTensor::survival`] says of a tensor must be [`MergeOptions::least_survival`] or more.
///
/// # Errors
/// The adapters do not fit the model or each other, have no merged weight, change a tensor that others share or that is no
/// part of the model that is known, are lost in rounding, or a file cannot be read or written.
pub fn merge(
    base: impl AsRef<Path>,
    adapters: &[&PeftAdapter],
    output: impl AsRef<Path>,
    options: MergeOptions,
) -> Result<MergeReport, MergeError> {
    let base = BaseFiles::open(base.as_ref())?;
    let composition = base.compose(adapters)?;
    let mut job = Job::new(&base, &composition, options, None);
    job.write(output.as_ref(), Some(&record::fingerprint(&composition)?))
}

/// Whether [`merge`] would begin: the adapters fit the model and each other, and each tensor that they change is there and
/// theirs alone. What rounding leaves of the change is not looked at.
///
/// # Errors
/// As [`merge`].
pub fn check(base: impl AsRef<Path>, adapters: &[&PeftAdapter]) -> Result<(), MergeError> {
    let base = BaseFiles::open(base.as_ref())?;
    let composition = base.compose(adapters)?;
    Job::new(&base, &composition, MergeOptions::default(), None).check()
}

/// Takes adapters out of the weights that [`merge`] put them into, and writes the base again, within rounding: with the
/// unit roundoffs u of the merged weights' type and v of the one that is written, each element of W is off by at most
/// about `|W + D| (u + 2⁻²⁴) + |W| v`, where D is what was added. The options' bounds on survival do not apply.
///
/// # Errors
/// As [`merge`]; also when the directory was merged with other adapters, does not say with which gains (under DoRA), or
/// when something was lost: a parameter that was replaced, a row whose gain is zero.
pub fn unmerge(
    merged: impl AsRef<Path>,
    adapters: &[&PeftAdapter],
    output: impl AsRef<Path>,
    options: MergeOptions,
) -> Result<MergeReport, MergeError> {
    let base = BaseFiles::open(merged.as_ref())?;
    let composition = base.compose(adapters)?;
    if !composition.replaced.is_empty() {
        let params = composition.replaced.iter().map(|(param, _)| param.to_owned()).collect();
        return Err(MergeError::Replaced { params });
    }
    let record = Record::read(&base.network, &record::fingerprint(&composition)?)?;
    let mut job = Job::new(&base, &composition, options, Some(record));
    job.write(output.as_ref(), None)
}

/// What becomes of a tensor.
enum Fate<'a> {
    /// It stays.
    Kept,
    /// It is the weight of an adapted module.
    Weight(&'a ComposedModule),
    /// It is the bias of a module whose adapters have biases.
    Bias(&'a ComposedModule),
    /// Another takes its place.
    Replaced(&'a Tensor),
}

/// One directory made of another.
struct Job<'a> {
    base: &'a BaseFiles,
    /// The modules, by their weights' names in the graph.
    weights: BTreeMap<String, &'a ComposedModule>,
    /// Those whose adapters have biases, by the names of their own.
    biases: BTreeMap<String, &'a ComposedModule>,
    replaced: &'a Weights,
    options: MergeOptions,
    /// The gains to unmerge with; without, it is merging.
    record: Option<Record>,
    /// The gains that were merged with.
    gains: Record,
    changed: Vec<MergedTensor>,
    kept: usize,
}

impl<'a> Job<'a> {
    fn new(
        base: &'a BaseFiles,
        composition: &'a Composition,
        options: MergeOptions,
        record: Option<Record>,
    ) -> Self {
        let modules = || composition.modules.iter();
        let named = |end: &'static str| move |m: &'a ComposedModule| (format!("{}.{end}", m.module.name), m);
        let has_bias = |m: &&ComposedModule| m.parts.iter().any(|(_, part)| part.bias_of_b().is_some());
        Self {
            base,
            weights: modules().map(named("weight")).collect(),
            biases: modules().filter(has_bias).map(named("bias")).collect(),
            replaced: &composition.replaced,
            options,
            record,
            gains: Record::default(),
            changed: Vec::new(),
            kept: 0,
        }
    }

    fn fate(&self, param: &str) -> Fate<'a> {
        match (self.weights.get(param), self.biases.get(param), self.replaced.get(param)) {
            (Some(module), ..) => Fate::Weight(module),
            (_, Some(module), _) => Fate::Bias(module),
            (.., Some(tensor)) => Fate::Replaced(tensor),
            _ => Fate::Kept,
        }
    }

    /// Writes everything. With a `fingerprint`, the gains are kept under it.
    fn write(&mut self, output: &Path, fingerprint: Option<&str>) -> Result<MergeReport, MergeError> {
        self.check()?;
        let files = output::list(&self.base.directory, &self.base.network)?;
        let output = Output::begin(output)?;
        let network = output.path().join(self.base.inner());
        output::copy(&self.base.directory, &files.copied, &output.path())?;
        output::make(&network)?;
        let mut bytes = 0;
        for file in &self.base.files {
            bytes += self.write_file(file, &network)?;
        }
        if let (None, false, Some(worst)) = (&self.record, self.options.force, self.lossy()) {
            return Err(worst);
        }
        self.base.write_index(&network, bytes)?;
        if let Some(dtype) = self.options.dtype {
            self.base.write_config(&network, dtype)?;
        }
        if let Some(fingerprint) = fingerprint {
            self.gains.write(&network, fingerprint)?;
        }
        output.finish()?;
        let (changed, kept) = (std::mem::take(&mut self.changed), self.kept);
        Ok(MergeReport { changed, kept, copied: files.copied, left: files.left })
    }

    /// Whether each parameter that changes is there, once, and nobody else's.
    fn check(&self) -> Result<(), MergeError> {
        for module in self.weights.values() {
            if !module.module.tied.is_empty() {
                let (module, tied) = (module.module.name.clone(), module.module.tied.clone());
                return Err(MergeError::Tied { module, tied });
            }
        }
        for bias in self.biases.keys() {
            if self.base.find(bias)?.is_none() {
                return Err(MergeError::NoBias { param: bias.clone() });
            }
        }
        let replaced = self.replaced.iter().map(|(param, _)| param);
        for param in self.weights.keys().map(String::as_str).chain(replaced) {
            if self.base.find(param)?.is_none() {
                return Err(MergeError::Missing { param: param.to_owned() });
            }
        }
        Ok(())
    }

    /// Writes a file of tensors, and returns how many bytes these have.
    fn write_file(&mut self, file: &SafetensorsFile, network: &Path) -> Result<u64, MergeError> {
        let tensors: BTreeMap<&str, StoredTensor<'_>> = file.tensors().map(|t| (t.name, t)).collect();
        let mut entries = Vec::new();
        for tensor in tensors.values() {
            let dtype = match self.fate(&self.base.parameter(tensor.name)) {
                Fate::Kept => tensor.dtype,
                _ => self.options.dtype.map_or(element_type(tensor)?, |dtype| dtype).stored(),
            };
            entries.push(Entry { name: tensor.name.to_owned(), dtype, shape: tensor.shape.to_vec() });
        }
        let name = file.path().file_name().unwrap_or_default();
        let mut writer = Writer::create(&network.join(name), entries, file.metadata())?;
        let mut bytes = 0;
        for entry in writer.entries() {
            let Some(tensor) = tensors.get(entry.name.as_str()) else { continue };
            bytes += self.write_tensor(tensor, &mut writer)?;
            file.release(tensor.name);
        }
        writer.finish()?;
        Ok(bytes)
    }

    fn write_tensor(&mut self, tensor: &StoredTensor<'_>, writer: &mut Writer) -> Result<u64, MergeError> {
        let param = self.base.parameter(tensor.name);
        let fate = self.fate(&param);
        if let Fate::Kept = fate {
            writer.write(tensor.bytes)?;
            self.kept += 1;
            return Ok(tensor.bytes.len() as u64);
        }
        let stored = element_type(tensor)?;
        let dtype = self.options.dtype.unwrap_or(stored);
        let floats = Floats::Bytes(stored, tensor.bytes);
        // An embedding that the adapter saved along takes the base's place before it is adapted.
        let before = self.replaced.get(&param).map(|tensor| Floats::of(tensor)).transpose()?;
        let mut tally = Tally::new(tensor.name, dtype);
        let what = match fate {
            Fate::Weight(module) => {
                self.weight(module, (floats, before.unwrap_or(floats)), &mut tally, writer)?;
                What::Adapted
            }
            Fate::Bias(module) => {
                self.bias(module, (floats, before.unwrap_or(floats)), &mut tally, writer)?;
                What::Bias
            }
            Fate::Replaced(new) => {
                let (new, width) = (Floats::of(new)?, PART);
                let numbers = Numbers { stored: floats, expected: new.len(), width };
                numbers.write(&mut tally, writer, |part, numbers| new.read(part * width, numbers))?;
                What::Replaced
            }
            Fate::Kept => return Ok(0),
        };
        let elements = tensor.shape.iter().product::<usize>();
        self.changed.push(tally.finish(what, self.record.is_none()));
        Ok((elements * dtype.bytes()) as u64)
    }

    /// The gains of a module's parts: of the record, or computed on the base's weight.
    fn gains(
        &self,
        module: &ComposedModule,
        weight: Floats<'_>,
    ) -> Result<Vec<Option<Vec<f64>>>, MergeError> {
        match &self.record {
            Some(record) => record.gains(module),
            None => Ok(module.gains(&BaseWeight::new(&module.module, weight)?)?),
        }
    }

    fn weight(
        &mut self,
        module: &ComposedModule,
        (stored, base): (Floats<'_>, Floats<'_>),
        tally: &mut Tally,
        writer: &mut Writer,
    ) -> Result<(), MergeError> {
        let gains = self.gains(module, base)?;
        let form = module.form(&gains)?;
        let weight = BaseWeight::new(&module.module, base)?;
        let merger = form.merger(&weight)?;
        let (rows, columns) = weight.stored();
        let numbers = Numbers { stored, expected: rows * columns, width: columns };
        if self.record.is_some() {
            return numbers.write(tally, writer, |row, numbers| merger.unmerge(row, numbers));
        }
        self.gains.insert(module, gains)?;
        numbers.write(tally, writer, |row, numbers| {
            base.read(row * columns, numbers);
            merger.merge(row, numbers);
        })
    }

    fn bias(
        &self,
        module: &ComposedModule,
        (stored, base): (Floats<'_>, Floats<'_>),
        tally: &mut Tally,
        writer: &mut Writer,
    ) -> Result<(), MergeError> {
        let param = format!("{}.weight", module.module.name);
        let missing = || MergeError::Missing { param: param.clone() };
        let weight = self.base.find(&param)?.ok_or_else(missing)?;
        let floats = Floats::Bytes(element_type(&weight)?, weight.bytes);
        let floats =
            self.replaced.get(&param).map(|tensor| Floats::of(tensor)).transpose()?.unwrap_or(floats);
        let form = module.form(&self.gains(module, floats)?)?;
        let shift = form.shift().unwrap_or_default();
        let sign = if self.record.is_some() { -1.0 } else { 1.0 };
        let numbers = Numbers { stored, expected: shift.len(), width: shift.len() };
        numbers.write(tally, writer, |_, numbers| {
            base.read(0, numbers);
            numbers.iter_mut().zip(shift).for_each(|(x, shift)| *x += sign * shift);
        })
    }

    /// The error of the tensor of whose change the least survives, if that is too little.
    fn lossy(&self) -> Option<MergeError> {
        let least = self.options.least_survival;
        let survivals = self.changed.iter().filter_map(|tensor| Some((tensor, tensor.survival?)));
        let (worst, survival) = survivals.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let tensors = self.changed.iter().filter(|tensor| tensor.survival.is_some_and(|s| s < least)).count();
        let (tensor, dtype) = (worst.tensor.clone(), worst.dtype);
        (survival < least).then_some(MergeError::Lossy { tensor, dtype, survival, least, tensors })
    }
}
