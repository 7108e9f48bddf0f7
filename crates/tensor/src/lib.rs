//! Tensors and the operations an image transformer is made of.
//!
//! A [`Tensor`] is a contiguous, row-major block of f32 activations that lives on a [`Backend`]. A [`Weight`] is a matrix
//! (or a convolution kernel) in the format of its file, usually still inside the memory-mapped file; it is decoded panel
//! by panel while it is used. Models call the methods of `Tensor`, which check every shape in one place and then ask the
//! backend.
//!
//! | module | is |
//! |---|---|
//! | [`tensor`](Tensor) | shapes and the only public face of an operation |
//! | [`Backend`] | the operations; a fused one has a default body that is its definition |
//! | [`DType`] | storage formats of weights |
//! | [`Weight`] | rows in a storage format, from one or several places |
//! | [`Kept`] | a weight in the form that kernels read, for as long as there is room |
//! | [`MappedFile`] | a weights file mapped into memory |
//! | [`reference`] | every operation in the plainest loops: the specification that runs |
//! | [`cpu`] | the fast backend |
//! | [`dry_run`] | computes nothing, counts work and memory |
//! | [`observed`] | another backend, with somebody told of every operation |

mod backend;
pub mod cpu;
mod device;
pub mod dry_run;
mod dtype;
mod file;
mod formats;
mod host;
mod int8;
mod kept;
pub mod observed;
pub mod reference;
mod shape;
mod tensor;
mod weight;

pub use backend::{Backend, Binary, End, GroupNorm, Mask, Padding, Qkv, Term, Unary};
pub use device::{Device, UnknownDevice};
pub use dtype::DType;
pub use file::MappedFile;
pub use formats::nf4::{BlockScales, Scales};
pub use kept::{Kept, Taken};
pub use shape::Shape;
pub use tensor::{Buffer, Tensor};
pub use weight::{Bytes, Precision, Rows, Scale, StoredRow, StoredRows, UnknownPrecision, Weight};
