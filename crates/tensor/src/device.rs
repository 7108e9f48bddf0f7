//! Where to compute, by name.

use std::{fmt, str::FromStr, sync::Arc};

use crate::{Backend, cpu::Cpu, dry_run::DryRun, reference::Reference};

/// A device that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// This computer's processor, with every vector extension it has.
    Cpu {
        /// How many threads; all cores if it is not said.
        threads: Option<usize>,
    },
    /// The plainest loops: slow, and right by being readable.
    Reference,
    /// Computes nothing, counts work and memory.
    DryRun,
}

/// A name that no device has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no device '{0}'; hint: use one of cpu, reference, dry-run")]
pub struct UnknownDevice(String);

impl Device {
    /// Starts its backend.
    pub fn open(self) -> Arc<dyn Backend> {
        match self {
            Self::Cpu { threads } => Cpu::new(threads),
            Self::Reference => Reference::new(),
            Self::DryRun => DryRun::new(),
        }
    }
}

impl Default for Device {
    fn default() -> Self {
        Self::Cpu { threads: None }
    }
}

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        match name {
            "cpu" => Ok(Self::Cpu { threads: None }),
            "reference" => Ok(Self::Reference),
            "dry-run" => Ok(Self::DryRun),
            _ => Err(UnknownDevice(name.to_owned())),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu { .. } => "cpu",
            Self::Reference => "reference",
            Self::DryRun => "dry-run",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Precision;

    #[test]
    fn names_go_both_ways() {
        for name in ["cpu", "reference", "dry-run"] {
            let device: Device = name.parse().unwrap();
            assert_eq!(device.to_string(), name);
        }
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        assert!("int4".parse::<Precision>().is_err());
    }

    #[test]
    fn an_unknown_name_is_told_what_exists() {
        let error = "gpu".parse::<Device>().unwrap_err();
        assert_eq!(error.to_string(), "there is no device 'gpu'; hint: use one of cpu, reference, dry-run");
    }
}
