//! What a merged directory keeps to be unmerged: which adapters were merged, and DoRA's gains, which depend on the weights
//! that are gone. A safetensors file of its own, in a directory of its own, where no other tool takes it for weights.

use super::error::MergeError;
use super::output::{RECORD_DIRECTORY, make};
use crate::peft::{ComposedModule, Composition, Factors};
use crate::safetensors::{SafetensorsFile, write_with_metadata};
use engraft_runtime::{Tensor, Weights};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FILE: &str = "merged.safetensors";
/// The metadata that tells the adapters.
const ADAPTERS: &str = "adapters";

/// The gains by adapter and module: `0.fc1` is f32 `[out]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    path: PathBuf,
    gains: Weights,
}

impl Record {
    /// Reads what a merged directory keeps. One that keeps nothing has no gains.
    pub(super) fn read(network: &Path, fingerprint: &str) -> Result<Self, MergeError> {
        let path = network.join(RECORD_DIRECTORY).join(FILE);
        if !path.exists() {
            return Ok(Self { path, gains: Weights::new() });
        }
        let file = SafetensorsFile::open(&path)?;
        if file.metadata().get(ADAPTERS).map(String::as_str) != Some(fingerprint) {
            return Err(MergeError::OtherAdapters { path });
        }
        Ok(Self { gains: file.weights()?, path })
    }

    /// Keeps the gains of a module's parts.
    pub(super) fn insert(
        &mut self,
        module: &ComposedModule,
        gains: Vec<Option<Vec<f64>>>,
    ) -> Result<(), MergeError> {
        for ((adapter, _), gain) in module.parts.iter().zip(gains) {
            let Some(gain) = gain else { continue };
            let rounded = gain.iter().map(|&g| g as f32).collect();
            self.gains.insert(key(*adapter, module), Tensor::f32(&[gain.len()], rounded)?);
        }
        Ok(())
    }

    /// The gains of a module's parts, none of them zero.
    pub(super) fn gains(&self, module: &ComposedModule) -> Result<Vec<Option<Vec<f64>>>, MergeError> {
        let name = || module.module.name.clone();
        let gain = |(adapter, factors): &(usize, Factors)| {
            if !factors.is_dora() {
                return Ok(None);
            }
            let tensor = key(*adapter, module);
            let gain = self.gains.get(&tensor);
            let gain = gain.filter(|gain| gain.shape() == [factors.outputs()]);
            let (path, adapter) = (self.path.clone(), adapter + 1);
            let gain = gain.ok_or_else(|| MergeError::NoGain { path, adapter, module: name() })?;
            let gain = gain.as_f32().map_err(|source| MergeError::Read { tensor, source })?;
            let gain: Vec<f64> = gain.iter().map(|&g| g.into()).collect();
            match gain.iter().position(|&g| g == 0.0 || !g.is_finite()) {
                Some(output) => Err(MergeError::Lost { module: name(), output }),
                None => Ok(Some(gain)),
            }
        };
        module.parts.iter().map(gain).collect()
    }

    /// Writes what is kept.
    pub(super) fn write(&self, network: &Path, fingerprint: &str) -> Result<(), MergeError> {
        let directory = network.join(RECORD_DIRECTORY);
        make(&directory)?;
        let tensors: Vec<_> = self.gains.iter().map(|(name, tensor)| (name, &**tensor)).collect();
        let metadata = BTreeMap::from([(ADAPTERS.to_owned(), fingerprint.to_owned())]);
        Ok(write_with_metadata(directory.join(FILE), &tensors, &metadata)?)
    }
}

fn key(adapter: usize, module: &ComposedModule) -> String {
    format!("{adapter}.{}", module.module.name)
}

/// Tells what adapters do, in their order, from what others do: FNV-1a (64 bits) over the numbers that they have for each
/// module. No proof against those who want to deceive, who could as well change the weights.
///
/// # Errors
/// What takes the place of a parameter cannot be read.
pub(super) fn fingerprint(composition: &Composition) -> Result<String, MergeError> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        // The length, too, so that what is beside each other does not run together.
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    for module in &composition.modules {
        add(module.module.name.as_bytes());
        for (adapter, factors) in &module.parts {
            add(&(*adapter as u64).to_le_bytes());
            add(&factors.scale().to_le_bytes());
            let rest = [factors.magnitude(), factors.bias_of_b()];
            for numbers in [factors.a(), factors.b()].into_iter().chain(rest.map(Option::unwrap_or_default)) {
                add(&bytes(numbers));
            }
        }
    }
    for (param, tensor) in composition.replaced.iter() {
        let read = |source| MergeError::Read { tensor: param.to_owned(), source };
        add(param.as_bytes());
        add(&bytes(tensor.as_f32().map_err(read)?));
    }
    Ok(format!("{hash:016x}"))
}

#[cfg(test)]
mod tests {
    use super::{Composition, Tensor, Weights, fingerprint};
    use engraft_runtime::Source;

    struct Ones;

    impl Source for Ones {
        fn read(&self, _: usize, to: &mut [f32]) {
            to.fill(1.0);
        }
    }

    fn replaced(tensor: Tensor) -> Composition {
        Composition { modules: Vec::new(), replaced: Weights::from_iter([("head.bias", tensor)]) }
    }

    /// Numbers that are still to be made tell as much as those that are there, and those that cannot be made are an error.
    #[test]
    fn a_fingerprint_is_of_all_numbers_or_there_is_none() {
        let ones = fingerprint(&replaced(Tensor::f32(&[2], vec![1.0; 2]).unwrap())).unwrap();
        assert_eq!(fingerprint(&replaced(Tensor::stored(&[2], Ones).unwrap())).unwrap(), ones);
        assert_ne!(fingerprint(&replaced(Tensor::f32(&[0], vec![]).unwrap())).unwrap(), ones);
        let message =
            fingerprint(&replaced(Tensor::stored(&[1 << 60], Ones).unwrap())).unwrap_err().to_string();
        assert!(message.starts_with("tensor `head.bias`: there is no memory for the"), "{message}");
    }
}
