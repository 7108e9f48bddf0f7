//! Models by name: what is published of each, where, in which formats, and how large it was when this table was written.
//!
//! Names of repositories and files are from public documentation, workflows and other programs' lists; they were not looked up
//! at the hub itself. The hub decides: sizes and hashes are always its own, and a file that is not there any more is answered
//! with what is. One place to add a model or a variant.

use crate::{
    error::{Error, Result},
    licence::{APACHE, DEV, Licence},
    names::Repository,
    transfer::{Pick, Role, Wanted},
};

/// A model by its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// `krea`.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// The repository of whoever made it.
    pub home: &'static str,
    /// Its terms.
    pub licence: Licence,
    /// What is published, the most exact first.
    pub variants: Vec<Variant>,
}

/// A form in which a model is published.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// `bf16`, `q8_0`.
    pub name: &'static str,
    /// Format of the transformer's weights, by its usual name.
    pub format: &'static str,
    /// Format of T5's weights.
    pub t5_format: &'static str,
    /// What it is made of.
    pub sources: Vec<Source>,
}

/// Files of one repository.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// What for.
    pub role: Role,
    /// `org/name`.
    pub repository: &'static str,
    /// A file's path; `None` for a diffusers folder.
    pub file: Option<&'static str>,
    /// Bytes, rounded, when this was written.
    pub bytes: u64,
}

impl Variant {
    /// Bytes, as far as they were known when this was written.
    pub fn bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.bytes).sum()
    }

    /// What to ask the hub for.
    ///
    /// # Errors
    /// None for the table below.
    pub fn wanted(&self, revision: Option<&str>) -> Result<Vec<Wanted>> {
        let wanted = |(index, source): (usize, &Source)| {
            Ok(Wanted {
                repository: source.repository.parse::<Repository>()?,
                // A revision is one of the first repository's; companions have their own.
                revision: revision.filter(|_| index == 0).unwrap_or("main").to_owned(),
                role: source.role,
                pick: source.file.map_or(Pick::Diffusers, |file| Pick::File(file.to_owned())),
            })
        };
        self.sources.iter().enumerate().map(wanted).collect()
    }
}

const MB: u64 = 1_000_000;

/// CLIP-L, as ComfyUI has it.
const CLIP_L: Source = Source {
    role: Role::ClipL,
    repository: "comfyanonymous/flux_text_encoders",
    file: Some("clip_l.safetensors"),
    bytes: 246 * MB,
};

/// The autoencoder: the same bytes as in FLUX.1's repositories, where it is not gated.
const VAE: Source = Source {
    role: Role::Vae,
    repository: "Comfy-Org/Lumina_Image_2.0_Repackaged",
    file: Some("split_files/vae/ae.safetensors"),
    bytes: 335 * MB,
};

const T5_FP16: Source = Source {
    role: Role::T5,
    repository: "comfyanonymous/flux_text_encoders",
    file: Some("t5xxl_fp16.safetensors"),
    bytes: 9_788 * MB,
};

const T5_FP8: Source = Source {
    role: Role::T5,
    repository: "comfyanonymous/flux_text_encoders",
    file: Some("t5xxl_fp8_e4m3fn.safetensors"),
    bytes: 4_893 * MB,
};

const T5_Q8: Source = Source {
    role: Role::T5,
    repository: "city96/t5-v1_1-xxl-encoder-gguf",
    file: Some("t5-v1_1-xxl-encoder-Q8_0.gguf"),
    bytes: 5_060 * MB,
};

const T5_Q4: Source = Source {
    role: Role::T5,
    repository: "city96/t5-v1_1-xxl-encoder-gguf",
    file: Some("t5-v1_1-xxl-encoder-Q4_K_M.gguf"),
    bytes: 2_896 * MB,
};

/// A whole repository in diffusers' layout: 23.8 GB of transformer, 9.5 of T5, 0.25 of CLIP, 0.17 of autoencoder.
fn folder(repository: &'static str) -> Variant {
    let source = Source { role: Role::Folder, repository, file: None, bytes: 33_740 * MB };
    Variant { name: "bf16", format: "bf16", t5_format: "bf16", sources: vec![source] }
}

/// A transformer's file with its companions.
fn parts(
    name: &'static str,
    repository: &'static str,
    file: &'static str,
    bytes: u64,
    (t5, t5_format): (Source, &'static str),
) -> Variant {
    let transformer = Source { role: Role::Transformer, repository, file: Some(file), bytes: bytes * MB };
    Variant { name, format: name, t5_format, sources: vec![transformer, t5, CLIP_L, VAE] }
}

const Q8: (Source, &str) = (T5_Q8, "q8_0");
const Q4: (Source, &str) = (T5_Q4, "q4_k");
const FP8: (Source, &str) = (T5_FP8, "fp8");

/// All models, the project's own first.
pub fn models() -> Vec<Model> {
    let krea = "QuantStack/FLUX.1-Krea-dev-GGUF";
    let dev = "city96/FLUX.1-dev-gguf";
    let schnell = "city96/FLUX.1-schnell-gguf";
    let kontext = "QuantStack/FLUX.1-Kontext-dev-GGUF";
    let fill = "YarvixPA/FLUX.1-Fill-dev-GGUF";
    vec![
        Model {
            name: "krea",
            title: "FLUX.1 Krea [dev]",
            home: "black-forest-labs/FLUX.1-Krea-dev",
            licence: DEV,
            variants: vec![
                folder("black-forest-labs/FLUX.1-Krea-dev"),
                parts("q8_0", krea, "flux1-krea-dev-Q8_0.gguf", 12_714, Q8),
                parts(
                    "fp8",
                    "Comfy-Org/FLUX.1-Krea-dev_ComfyUI",
                    "split_files/diffusion_models/flux1-krea-dev_fp8_scaled.safetensors",
                    11_905,
                    FP8,
                ),
                parts("q6_k", krea, "flux1-krea-dev-Q6_K.gguf", 9_848, Q8),
                parts("q5_k", krea, "flux1-krea-dev-Q5_K_S.gguf", 8_285, Q8),
                parts("q4_k", krea, "flux1-krea-dev-Q4_K_S.gguf", 6_800, Q8),
                parts("q3_k", krea, "flux1-krea-dev-Q3_K_S.gguf", 5_210, Q4),
            ],
        },
        Model {
            name: "dev",
            title: "FLUX.1 [dev]",
            home: "black-forest-labs/FLUX.1-dev",
            licence: DEV,
            variants: vec![
                folder("black-forest-labs/FLUX.1-dev"),
                parts("q8_0", dev, "flux1-dev-Q8_0.gguf", 12_708, Q8),
                parts("fp8", "Kijai/flux-fp8", "flux1-dev-fp8.safetensors", 11_906, FP8),
                parts("q6_k", dev, "flux1-dev-Q6_K.gguf", 9_857, Q8),
                parts("q5_k", dev, "flux1-dev-Q5_K_S.gguf", 8_285, Q8),
                parts("q4_k", dev, "flux1-dev-Q4_K_S.gguf", 6_806, Q8),
                parts("q3_k", dev, "flux1-dev-Q3_K_S.gguf", 5_210, Q4),
            ],
        },
        Model {
            name: "schnell",
            title: "FLUX.1 [schnell]",
            home: "black-forest-labs/FLUX.1-schnell",
            licence: APACHE,
            variants: vec![
                folder("black-forest-labs/FLUX.1-schnell"),
                parts("q8_0", schnell, "flux1-schnell-Q8_0.gguf", 12_688, Q8),
                parts("q6_k", schnell, "flux1-schnell-Q6_K.gguf", 9_835, Q8),
                parts("q5_k", schnell, "flux1-schnell-Q5_K_S.gguf", 8_260, Q8),
                parts("q4_k", schnell, "flux1-schnell-Q4_K_S.gguf", 6_780, Q8),
                parts("q3_k", schnell, "flux1-schnell-Q3_K_S.gguf", 5_190, Q4),
            ],
        },
        Model {
            name: "kontext",
            title: "FLUX.1 Kontext [dev]",
            home: "black-forest-labs/FLUX.1-Kontext-dev",
            licence: DEV,
            variants: vec![
                folder("black-forest-labs/FLUX.1-Kontext-dev"),
                parts("q8_0", kontext, "flux1-kontext-dev-Q8_0.gguf", 12_700, Q8),
                parts(
                    "fp8",
                    "Comfy-Org/flux1-kontext-dev_ComfyUI",
                    "split_files/diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors",
                    11_905,
                    FP8,
                ),
                parts("q6_k", kontext, "flux1-kontext-dev-Q6_K.gguf", 9_850, Q8),
                parts("q5_k", kontext, "flux1-kontext-dev-Q5_K_M.gguf", 8_420, Q8),
                parts("q4_k", kontext, "flux1-kontext-dev-Q4_K_M.gguf", 6_932, Q8),
                parts("q3_k", kontext, "flux1-kontext-dev-Q3_K_M.gguf", 5_370, Q4),
            ],
        },
        Model {
            name: "fill",
            title: "FLUX.1 Fill [dev]",
            home: "black-forest-labs/FLUX.1-Fill-dev",
            licence: DEV,
            variants: vec![
                folder("black-forest-labs/FLUX.1-Fill-dev"),
                parts("q8_0", fill, "flux1-fill-dev-Q8_0.gguf", 12_700, Q8),
                parts("q6_k", fill, "flux1-fill-dev-Q6_K.gguf", 9_850, Q8),
                parts("q5_k", fill, "flux1-fill-dev-Q5_K_S.gguf", 8_285, Q8),
                parts("q4_k", fill, "flux1-fill-dev-Q4_K_S.gguf", 6_806, Q8),
                parts("q3_k", fill, "flux1-fill-dev-Q3_K_S.gguf", 5_210, Q4),
            ],
        },
        Model {
            name: "canny",
            title: "FLUX.1 Canny [dev]",
            home: "black-forest-labs/FLUX.1-Canny-dev",
            licence: DEV,
            variants: vec![folder("black-forest-labs/FLUX.1-Canny-dev")],
        },
        Model {
            name: "depth",
            title: "FLUX.1 Depth [dev]",
            home: "black-forest-labs/FLUX.1-Depth-dev",
            licence: DEV,
            variants: vec![folder("black-forest-labs/FLUX.1-Depth-dev")],
        },
        Model {
            name: "redux",
            title: "FLUX.1 Redux [dev]: SigLIP and a projector, beside another model",
            home: "black-forest-labs/FLUX.1-Redux-dev",
            licence: DEV,
            variants: vec![Variant {
                name: "bf16",
                format: "bf16",
                t5_format: "bf16",
                sources: vec![Source {
                    role: Role::Folder,
                    repository: "black-forest-labs/FLUX.1-Redux-dev",
                    file: None,
                    bytes: 986 * MB,
                }],
            }],
        },
        Model {
            name: "encoders",
            title: "T5, CLIP-L and the autoencoder, for a transformer's file of your own",
            home: "comfyanonymous/flux_text_encoders",
            licence: APACHE,
            variants: [
                ("fp16", T5_FP16, "f16"),
                ("q8_0", T5_Q8, "q8_0"),
                ("fp8", T5_FP8, "fp8"),
                ("q4_k", T5_Q4, "q4_k"),
            ]
            .map(|(name, t5, format)| Variant { name, format, t5_format: format, sources: vec![t5, CLIP_L, VAE] })
            .to_vec(),
        },
    ]
}

/// A model by its name or its home.
pub fn find(name: &str) -> Option<Model> {
    models().into_iter().find(|model| model.name == name || model.home == name)
}

/// The stricter one of two opinions about a repository's terms: whoever repacks a model cannot make it free.
pub fn licence_of(repository: &Repository) -> Option<Licence> {
    let name = repository.as_str().to_lowercase();
    let of_table = models().into_iter().find(|model| {
        let is_source = |source: &Source| {
            [Role::Transformer, Role::Folder].contains(&source.role) && source.repository.eq_ignore_ascii_case(&name)
        };
        model.home.eq_ignore_ascii_case(&name) || model.variants.iter().any(|v| v.sources.iter().any(is_source))
    });
    let says_dev =
        ["flux.1-dev", "flux1-dev", "krea-dev", "kontext-dev", "fill-dev", "canny-dev", "depth-dev", "redux-dev"];
    match of_table {
        Some(model) => Some(model.licence),
        None if name.contains("flux") && says_dev.iter().any(|says| name.contains(says)) => Some(DEV),
        None => None,
    }
}

impl Model {
    /// A variant by its name; `q4_k_s` and `Q4_K` are `q4_k`.
    ///
    /// # Errors
    /// [`Error::Asked`] with those that there are.
    pub fn variant(&self, name: &str) -> Result<&Variant> {
        let plain = name.to_lowercase();
        let stem = plain.trim_end_matches("_s").trim_end_matches("_m");
        let same = |variant: &&Variant| variant.name == plain || variant.name == stem;
        self.variants.iter().find(same).ok_or_else(|| {
            let names: Vec<&str> = self.variants.iter().map(|variant| variant.name).collect();
            Error::asked(
                "variant",
                format!("there is no '{}' of {}; there are {}", crate::names::shown(name), self.name, names.join(", ")),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_can_be_asked_for() {
        for model in models() {
            assert!(model.home.parse::<Repository>().is_ok());
            for variant in &model.variants {
                assert_eq!(model.variant(variant.name).unwrap(), variant);
                let wanted = variant.wanted(Some("v1")).unwrap();
                assert_eq!((wanted[0].revision.as_str(), wanted.len()), ("v1", variant.sources.len()));
                assert!(wanted.iter().skip(1).all(|other| other.revision == "main"));
                assert!(variant.bytes() > 900 * MB);
            }
            let sizes: Vec<u64> = model.variants.iter().map(Variant::bytes).collect();
            assert!(sizes.is_sorted_by(|a, b| a > b), "{}: the most exact first", model.name);
        }
        assert!(find("krea").unwrap().variant("Q4_K_S").unwrap().name == "q4_k");
        let told = find("krea").unwrap().variant("q9").unwrap_err().to_string();
        assert!(told.contains("bf16, q8_0, fp8"), "{told}");
    }

    #[test]
    fn whoever_repacks_a_model_cannot_make_it_free() {
        let of = |name: &str| licence_of(&name.parse().unwrap()).map(|licence| licence.id);
        assert_eq!(of("QuantStack/FLUX.1-Krea-dev-GGUF"), Some(DEV.id));
        assert_eq!(of("somebody/flux.1-dev-free-for-all"), Some(DEV.id));
        assert_eq!(of("city96/FLUX.1-schnell-gguf"), Some(APACHE.id));
        assert_eq!((of("city96/t5-v1_1-xxl-encoder-gguf"), of("a/b")), (None, None));
    }
}
