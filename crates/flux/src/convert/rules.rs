//! Which tensor becomes what.
//!
//! As city96's converter and its patch of llama.cpp do for FLUX: matrices of the blocks are quantised, modulations too;
//! embedders and the final layer stay 16 bits wide, vectors and small tensors f32 in GGUF. In darkroom's int8 modulations stay
//! as well: they are computed in bf16. T5's table of tokens never gets fewer than six bits, its attention bias stays.

use tensor::DType;

use super::{Container, Wanted};
use crate::{
    error::{Error, Result},
    weights::Component,
};

/// Names that people give to formats, on the command line and in reports of it.
const TYPES: [(&str, DType); 12] = [
    ("f32", DType::F32),
    ("f16", DType::F16),
    ("bf16", DType::BF16),
    ("int8", DType::I8),
    ("q8_0", DType::Q8_0),
    ("q6_k", DType::Q6K),
    ("q5_k", DType::Q5K),
    ("q5_1", DType::Q5_1),
    ("q5_0", DType::Q5_0),
    ("q4_k", DType::Q4K),
    ("q4_1", DType::Q4_1),
    ("q4_0", DType::Q4_0),
];

/// Tensors of at most this many elements are not worth quantising.
const SMALL: usize = 1024;

/// The format of that name, upper or lower case.
///
/// # Errors
/// A sentence with all names there are.
pub fn parse_type(name: &str) -> std::result::Result<DType, String> {
    let found = TYPES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, dtype)| *dtype).ok_or_else(|| {
        let known: Vec<_> = TYPES.iter().map(|(name, _)| *name).collect();
        format!("'{name}' is not a format that can be written; these are: {}", known.join(", "))
    })
}

/// The name of a format that can be written.
pub fn type_name(dtype: DType) -> &'static str {
    TYPES.iter().find(|(_, known)| *known == dtype).map_or(dtype.name(), |(name, _)| name)
}

/// Tensors that get a format of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// A name in which `*` stands for anything.
    pub pattern: String,
    /// The format.
    pub to: DType,
}

impl std::str::FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (pattern, to) = text
            .rsplit_once('=')
            .filter(|(pattern, _)| !pattern.is_empty())
            .ok_or_else(|| format!("'{text}' is not PATTERN=TYPE, such as '*.img_attn.qkv.weight=q8_0'"))?;
        Ok(Self { pattern: pattern.to_owned(), to: parse_type(to)? })
    }
}

impl Keep {
    fn fits(&self, name: &str) -> bool {
        let mut pieces = self.pattern.split('*');
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = pieces.next_back() else { return rest.is_empty() };
        for piece in pieces {
            let Some(at) = rest.find(piece) else { return false };
            rest = &rest[at + piece.len()..];
        }
        rest.ends_with(last)
    }
}

/// Refuses what does not go together.
pub(super) fn check(component: Component, wanted: &Wanted) -> Result<()> {
    let quantises = |dtype: DType| !is_plain(dtype);
    for to in std::iter::once(wanted.to).chain(wanted.keep.iter().map(|keep| keep.to)) {
        let name = type_name(to);
        let problem = match (wanted.container, to) {
            (Container::Gguf, DType::I8) => {
                "int8 with a scale for each row has no form in GGUF; hint: name the output \
                                             '….safetensors', or take q8_0"
                    .to_owned()
            }
            (Container::Safetensors, to) if quantises(to) && to != DType::I8 => {
                format!("{name} has no form in safetensors; hint: name the output '….gguf', or take int8")
            }
            _ if quantises(to) && !matches!(component, Component::Transformer | Component::T5) => {
                format!("the {} is not quantised to {name}; f32, f16 and bf16 are possible", component.name())
            }
            _ => continue,
        };
        return Err(Error::asked("type", problem));
    }
    if wanted.container == Container::Gguf && !matches!(component, Component::Transformer | Component::T5) {
        let problem = format!("programs read the {} from safetensors, not from GGUF", component.name());
        return Err(Error::asked("output", problem));
    }
    Ok(())
}

fn is_plain(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// What a tensor becomes. `used` remembers which exceptions applied.
pub(super) fn target(
    component: Component,
    wanted: &Wanted,
    name: &str,
    shape: &[usize],
    from: DType,
    used: &mut [bool],
) -> Result<DType> {
    let row: usize = shape.iter().skip(1).product();
    let is_vector = shape.len() < 2;
    let fits = |to: DType| if is_vector { is_plain(to) } else { row.is_multiple_of(to.block()) };
    let mut kept = None;
    for (keep, used) in wanted.keep.iter().zip(used) {
        if keep.fits(name) {
            *used = true;
            kept = kept.or(Some(keep.to));
        }
    }
    if let Some(to) = kept {
        if fits(to) {
            return Ok(to);
        }
        let problem = format!("'{name}' of shape {shape:?} cannot be stored as {}", type_name(to));
        return Err(Error::asked("keep", problem));
    }
    let elements: usize = shape.iter().product();
    if wanted.container == Container::Gguf && (is_vector || elements <= SMALL) {
        return Ok(DType::F32);
    }
    if is_plain(wanted.to) {
        return Ok(wanted.to);
    }
    let wide = if is_plain(from) && (from != DType::F32 || is_vector) { from } else { DType::BF16 };
    let choices: &[DType] = match component {
        Component::T5 if name.contains("relative_attention_bias") => &[],
        Component::T5 if name.ends_with("shared.weight") || name.ends_with("embed_tokens.weight") => match wanted.to {
            DType::I8 => &[DType::I8],
            DType::Q8_0 => &[DType::Q8_0],
            _ => &[DType::Q6K, DType::Q8_0],
        },
        Component::Transformer if !(name.starts_with("double_blocks.") || name.starts_with("single_blocks.")) => &[],
        Component::Transformer
            if wanted.to == DType::I8 && (name.contains("_mod.") || name.contains(".modulation.")) =>
        {
            &[]
        }
        _ if shape.len() != 2 => &[],
        _ if wanted.to == DType::I8 => &[DType::I8],
        _ => &[wanted.to, DType::Q8_0],
    };
    Ok(choices.iter().copied().find(|to| fits(*to)).unwrap_or(wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let keep = |text: &str| text.parse::<Keep>().unwrap();
        assert!(keep("*.qkv.weight=bf16").fits("double_blocks.0.img_attn.qkv.weight"));
        assert!(keep("double_blocks.*.img_*weight=f16").fits("double_blocks.10.img_mlp.0.weight"));
        assert!(!keep("double_blocks.1.*=f16").fits("double_blocks.10.img_mlp.0.weight"));
        assert!(keep("img_in.weight=Q8_0").fits("img_in.weight") && !keep("img_in=q8_0").fits("img_in.weight"));
        assert_eq!(keep("a=b=q4_K"), Keep { pattern: "a=b".into(), to: DType::Q4K });
        for bad in ["q8_0", "=q8_0", "a=q9"] {
            assert!(bad.parse::<Keep>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_becomes_what() {
        let wanted = |container, to| Wanted { container, to, keep: Vec::new() };
        let gguf = |to, name: &str, shape: &[usize], from| {
            target(Component::Transformer, &wanted(Container::Gguf, to), name, shape, from, &mut []).unwrap()
        };
        let qkv = "double_blocks.0.img_attn.qkv.weight";
        assert_eq!(gguf(DType::Q4K, qkv, &[9216, 3072], DType::BF16), DType::Q4K);
        assert_eq!(gguf(DType::Q4K, qkv, &[384, 128], DType::BF16), DType::Q8_0);
        assert_eq!(gguf(DType::Q4_0, qkv, &[384, 24], DType::F16), DType::F16);
        assert_eq!(gguf(DType::Q4K, "double_blocks.0.img_mod.lin.weight", &[18432, 3072], DType::BF16), DType::Q4K);
        assert_eq!(gguf(DType::Q4K, "img_in.weight", &[3072, 64], DType::F32), DType::BF16);
        assert_eq!(gguf(DType::Q8_0, "img_in.bias", &[3072], DType::BF16), DType::F32);
        assert_eq!(gguf(DType::BF16, "img_in.bias", &[3072], DType::BF16), DType::F32);
        let int8 = |name: &str, shape: &[usize]| {
            let wanted = wanted(Container::Safetensors, DType::I8);
            target(Component::Transformer, &wanted, name, shape, DType::BF16, &mut []).unwrap()
        };
        assert_eq!(int8(qkv, &[9216, 3072]), DType::I8);
        assert_eq!(int8("single_blocks.7.modulation.lin.weight", &[9216, 3072]), DType::BF16);
        assert_eq!(int8("final_layer.linear.weight", &[64, 3072]), DType::BF16);
        let t5 = |name: &str, shape: &[usize]| {
            target(Component::T5, &wanted(Container::Gguf, DType::Q4K), name, shape, DType::F16, &mut []).unwrap()
        };
        assert_eq!(t5("shared.weight", &[32128, 4096]), DType::Q6K);
        assert_eq!(t5("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", &[32, 64]), DType::F16);
    }
}
