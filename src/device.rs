//! Where tensors are computed: the CPU, or a GPU in builds with the feature `cuda`.

use tallow_policies::gpu::{Device, Precision};

use crate::error::Error;

/// A device as it was named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// The first GPU if this build computes on one and there is one; else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of that number.
    Cuda(usize),
}

impl DeviceName {
    /// Reads `auto`, `cpu`, `cuda` or `cuda:N`.
    ///
    /// # Errors
    /// If it is something else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => return Ok(Self::Cuda(0)),
            _ => {}
        }
        let ordinal = text.strip_prefix("cuda:").and_then(|it| it.parse().ok());
        ordinal.map(Self::Cuda).ok_or_else(|| {
            Error::usage(
                format!("--device {text} is not a device"),
                "use auto, cpu, cuda or cuda:N",
            )
        })
    }

    /// Opens the device; none is the CPU. Without a precision a GPU stores bf16, and the CPU f32.
    ///
    /// # Errors
    /// If a GPU was asked for and this build has no `cuda`, or it cannot be opened; if the CPU is
    /// to store bf16.
    pub fn open(self, precision: Option<Precision>) -> Result<Option<Device>, Error> {
        match self {
            Self::Cpu => {}
            Self::Cuda(ordinal) => return open_card(ordinal, precision).map(Some),
            Self::Auto if sees_card() => return open_card(0, precision).map(Some),
            Self::Auto => {}
        }
        if precision == Some(Precision::Bf16) {
            return Err(Error::usage(
                "--dtype bf16: the CPU computes in f32",
                "leave --dtype out, or use --device cuda in a build with the feature cuda",
            ));
        }
        Ok(None)
    }
}

#[cfg(feature = "cuda")]
fn open_card(ordinal: usize, precision: Option<Precision>) -> Result<Device, Error> {
    let precision = precision.unwrap_or(Precision::Bf16);
    tallow_policies::gpu::cuda::open(ordinal, precision)
        .map_err(|error| Error::usage(error.to_string(), "mend that, or use --device cpu"))
}

#[cfg(feature = "cuda")]
fn sees_card() -> bool {
    tallow_policies::gpu::cuda::is_present()
}

#[cfg(not(feature = "cuda"))]
fn sees_card() -> bool {
    false
}

#[cfg(not(feature = "cuda"))]
fn open_card(ordinal: usize, _precision: Option<Precision>) -> Result<Device, Error> {
    Err(Error::usage(
        format!("--device cuda:{ordinal}: this build computes on the CPU only"),
        "use --device cpu, or build with `cargo build --release --features cuda`",
    ))
}

/// What a device is called in records.
pub fn name_of(device: Option<&Device>) -> String {
    match device {
        None => "cpu".to_owned(),
        Some(device) => format!("{} ({})", device.name(), device.precision().name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!(DeviceName::parse("auto").expect("a device"), DeviceName::Auto);
        assert_eq!(DeviceName::parse("cuda").expect("a device"), DeviceName::Cuda(0));
        assert_eq!(DeviceName::parse("cuda:3").expect("a device"), DeviceName::Cuda(3));
        for wrong in ["gpu", "cuda:", "cuda:x", "CPU"] {
            assert!(DeviceName::parse(wrong).is_err(), "{wrong}");
        }
        assert!(DeviceName::Cpu.open(None).expect("the CPU").is_none());
        assert!(DeviceName::Cpu.open(Some(Precision::Bf16)).is_err());
    }
}
