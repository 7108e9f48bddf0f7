//! Finding a model: where its parts are, in whichever layout people have them. Nothing is read yet but headers.
//!
//! | layout | is |
//! |---|---|
//! | diffusers folder | `model_index.json`, a folder for each part, sizes in `config.json` |
//! | ComfyUI tree | `diffusion_models` or `unet`, `text_encoders` or `clip`, `vae`, `vae_approx` |
//! | all in one | one file with all parts under prefixes |
//! | single files | the transformer, and the rest beside it or given one by one |
//! | Hugging Face cache | `models--org--name/snapshots/…`, which holds one of the above |

mod family;
mod files;
mod folder;
mod kind;
mod pocket;
mod search;
mod styles;

pub use family::{Defaults, Family, LEAST_SIDE};
pub(crate) use files::Tokenizer;
pub use files::{ModelFiles, Part, PartFiles};
use folder::Folder;
pub use kind::Kind;
pub use search::{ModelSpec, SearchPaths};
pub(crate) use styles::StyleFiles;
use styles::StyleSearch;
