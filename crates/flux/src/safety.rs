//! The two gates: prompts reach a tokenizer only as [`Screened`], pictures are encoded only as [`Reviewed`].
//!
//! Both types have private fields and one constructor each, the methods of [`Safety`]; so "nothing passes unchecked" is a
//! fact the compiler keeps. A policy that is off still mints the types and says so in the picture's metadata.

use crate::error::Refused;

/// Something a person wrote that the prompt policy let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screened<T>(T);

impl<T> Screened<T> {
    /// What was screened.
    pub fn get(&self) -> &T {
        &self.0
    }
}

/// A picture that the picture policy let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reviewed<T>(T);

impl<T> Reviewed<T> {
    /// What was reviewed.
    pub fn get(&self) -> &T {
        &self.0
    }
}

/// What is done with prompts and pictures.
///
/// FLUX.1 Krea \[dev\]'s licence asks whoever deploys the model for a content filter or manual review. No filter is built
/// in yet: the only policy is [`Safety::off`], and every picture's metadata says so.
#[derive(Clone, Debug)]
pub struct Safety {
    policy: Policy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Off,
}

impl Safety {
    /// Everything passes.
    pub fn off() -> Self {
        Self { policy: Policy::Off }
    }

    /// The policy's name, for metadata: `off`.
    pub fn name(&self) -> &'static str {
        match self.policy {
            Policy::Off => "off",
        }
    }

    /// Decides about a prompt before any work is done.
    ///
    /// # Errors
    /// [`Refused`] with the reason.
    pub fn screen<'a>(&self, text: &'a str) -> Result<Screened<&'a str>, Refused> {
        match self.policy {
            Policy::Off => Ok(Screened(text)),
        }
    }

    /// Decides about a finished picture.
    ///
    /// # Errors
    /// [`Refused`] with the reason.
    pub fn review<T: AsRef<[u8]>>(&self, picture: T) -> Result<Reviewed<T>, Refused> {
        match self.policy {
            Policy::Off => Ok(Reviewed(picture)),
        }
    }
}
