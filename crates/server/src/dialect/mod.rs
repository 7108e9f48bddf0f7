//! Vendors' words: their JSON to an [`crate::ask::Ask`], and what became of it back to their JSON. Pure functions, one module for
//! each vendor; the HTTP around them is in `crate::http`.

pub mod native;
pub mod openai;
pub mod sdapi;

/// What an error says about asking again, for the answer's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    /// Worth it after so many seconds.
    pub after: Option<u32>,
    /// Not worth it: clients that ask again by themselves are told not to.
    pub never: bool,
}
