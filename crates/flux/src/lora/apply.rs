//! From files to layers: which tensor changes what, and what becomes of the rest.
//!
//! Everything is checked before anything is changed: a file for another model leaves this one as it was. DoRA's lengths are those of the
//! changed weight's rows or columns, as trainers compute them (ComfyUI takes those of the unchanged rows); they are computed once for
//! each layer, in a pass over its stored rows, and kept.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
};

use tensor::{Backend, Bytes, Tensor};

use super::{
    Lora, LoraReport, Loras, Unmatched,
    added::{Added, Builder, Change1, Dora},
    delta::{ByRows, Delta, Group, Magnitude, Move, Trouble, numbers},
    keys::{self, Role},
    names::Names,
};
use crate::{
    error::{Error, Result},
    memory::{Extent, Layout},
    nn::{Linear, Named, Parts},
    weights::Component,
};

/// A component that LoRAs change.
pub(crate) struct Model<'a> {
    pub(crate) component: Component,
    pub(crate) parts: Parts<'a>,
    pub(crate) layout: &'a mut Layout,
    pub(crate) adapted: &'a mut Adapted,
}

/// What LoRAs have changed in a component.
#[derive(Debug, Default)]
pub(crate) struct Adapted {
    /// Where its own weights lie.
    own: Option<Layout>,
    /// Norms' scales as they were.
    vectors: BTreeMap<String, Tensor>,
    /// DoRA's factors by file and layer.
    dora: HashMap<(u64, String), Arc<[f32]>>,
}

/// A LoRA's part for one component.
#[derive(Default)]
struct Bound {
    /// With what the file calls the layer.
    deltas: Vec<(String, Delta)>,
    /// Which vector becomes what.
    vectors: Vec<(usize, VectorChange)>,
    tensors: usize,
}

enum VectorChange {
    Set(Vec<f32>),
    Add(Vec<f32>),
}

/// What became of LoRAs.
pub(crate) struct Applied {
    pub(crate) reports: Vec<LoraReport>,
    /// Bytes that they keep in memory beside their files.
    pub(crate) own_bytes: u64,
}

/// Applies LoRAs in the place of those before. If one cannot be used, nothing changes.
pub(crate) fn apply(models: &mut [Model<'_>], loras: &Loras, backend: &Arc<dyn Backend>) -> Result<Applied> {
    loras.check()?;
    let names: Vec<Names> = models.iter().map(|model| Names::new(model.component, &model.parts)).collect();
    let mut reports = Vec::new();
    let mut bound = Vec::new();
    for (lora, weight) in &loras.used {
        let (parts, report) = bind(lora, *weight, &names, models)?;
        reports.push(report);
        if *weight != 0.0 {
            bound.push((&**lora, *weight, parts));
        }
    }
    let mut built = Vec::new();
    for (index, (model, names)) in models.iter_mut().zip(&names).enumerate() {
        let parts: Vec<_> = bound.iter().map(|(lora, weight, parts)| (*lora, *weight, &parts[index])).collect();
        built.push(build(model, names, &parts, loras.merge, backend)?);
    }
    let mut own_bytes = 0;
    for (index, (model, layers)) in models.iter_mut().zip(built).enumerate() {
        let vectors = bound.iter().flat_map(|(_, weight, parts)| {
            parts[index].vectors.iter().map(|(vector, change)| (*vector, *weight, change))
        });
        own_bytes += model.change(layers, &vectors.collect::<Vec<_>>(), backend);
    }
    Ok(Applied { reports, own_bytes })
}

/// Finds the place of each of a LoRA's tensors.
fn bind(lora: &Lora, weight: f32, names: &[Names], models: &[Model<'_>]) -> Result<(Vec<Bound>, LoraReport)> {
    let mut bound: Vec<Bound> = names.iter().map(|_| Bound::default()).collect();
    let mut unmatched = Vec::new();
    let file = &lora.checkpoint;
    let damaged = |key: &str, problem: String| Error::file(&lora.path, format!("has '{key}', which {problem}"));
    for (key, group) in &lora.groups {
        let found = names.iter().enumerate().find_map(|(i, names)| Some((i, names.find(key)?)));
        let Some((index, target)) = found else {
            let vector = names.iter().enumerate().find_map(|(i, names)| Some((i, names.find_vector(key)?)));
            let diff = group.get(&Role::Diff).filter(|_| group.len() == 1);
            if let (Some((index, vector)), Some(diff)) = (vector, diff) {
                let change = vector_change(lora, diff, &models[index], vector, VectorChange::Add)?;
                bound[index].vectors.push((vector, change));
                bound[index].tensors += 1;
                continue;
            }
            let why = "no such layer in this model";
            unmatched.extend(group.values().map(|key| Unmatched { key: key.clone(), why: why.into() }));
            continue;
        };
        let module = &names[index].modules[target.module];
        match Delta::read(file, key, group, &lora.peft, module, target) {
            Ok(delta) => {
                bound[index].tensors += group.len();
                bound[index].deltas.push((key.clone(), delta));
            }
            Err(Trouble::Unclear(why)) => {
                unmatched.extend(group.values().map(|key| Unmatched { key: key.clone(), why: why.clone() }));
            }
            Err(Trouble::Misfit(problem)) => {
                let hint = format!("in '{}'; hint: this LoRA was made for another model", module.name);
                return Err(damaged(first_key(group), format!("{problem} {hint}")));
            }
            Err(Trouble::Damaged(problem)) => return Err(damaged(first_key(group), problem)),
        }
    }
    for key in &lora.others {
        let vector = names.iter().enumerate().find_map(|(i, names)| Some((i, names.find_vector(key)?)));
        match vector {
            Some((index, vector)) => {
                let change = vector_change(lora, key, &models[index], vector, VectorChange::Set)?;
                bound[index].vectors.push((vector, change));
                bound[index].tensors += 1;
            }
            None => unmatched.push(Unmatched { key: key.clone(), why: "not a LoRA's name".into() }),
        }
    }
    let matched = names.iter().zip(&bound).filter(|(_, bound)| bound.tensors > 0);
    let matched: Vec<_> = matched.map(|(names, bound)| (names.component, bound.tensors)).collect();
    if matched.is_empty() {
        let known = unmatched.iter().find_map(|left| Some((keys::other_model(&left.key)?, left)));
        let problem = match (known, unmatched.first()) {
            (Some((model, left)), _) => format!("is a LoRA for {model}, not for FLUX.1: it has '{}'", left.key),
            (None, Some(left)) => format!(
                "is a LoRA for another model: none of its {} tensors has a place in this one, such as '{}' ({})",
                unmatched.len(),
                left.key,
                left.why
            ),
            (None, None) => "holds nothing".to_owned(),
        };
        return Err(Error::file(&lora.path, problem));
    }
    Ok((bound, LoraReport { name: lora.name(), weight, matched, unmatched }))
}

fn first_key(group: &Group) -> &str {
    group.values().next().map_or("", String::as_str)
}

fn vector_change(
    lora: &Lora,
    key: &str,
    model: &Model<'_>,
    vector: usize,
    change: fn(Vec<f32>) -> VectorChange,
) -> Result<VectorChange> {
    let len = model.parts.vectors[vector].it.shape().count();
    let (shape, values) = numbers(&lora.checkpoint, key).map_err(|problem| Error::file(&lora.path, problem))?;
    if values.len() != len {
        let problem =
            format!("has '{key}' of {shape:?}; {len} numbers were expected; hint: it was made for another model");
        return Err(Error::file(&lora.path, problem));
    }
    Ok(change(values))
}

/// A delta with its LoRA's weight and, with a magnitude, DoRA's factors.
type Weighted<'a> = (&'a Delta, f32, Option<Arc<[f32]>>);

/// What is added to each of a model's layers, and where it lies.
type Layers = Vec<Option<(Added, Vec<Bytes>)>>;

fn build(
    model: &mut Model<'_>,
    names: &Names,
    loras: &[(&Lora, f32, &Bound)],
    merge: bool,
    backend: &Arc<dyn Backend>,
) -> Result<Layers> {
    // Deltas by module, in the order of the LoRAs, with DoRA's factors.
    let mut by_module: HashMap<usize, Vec<Weighted<'_>>> = HashMap::new();
    for (lora, weight, bound) in loras {
        for (key, delta) in &bound.deltas {
            let module = delta.target.module;
            let dora = match &delta.magnitude {
                None => None,
                Some(magnitude) => {
                    let known = (lora.id, key.clone());
                    let linears = &model.parts.linears;
                    let compute = || Arc::from(dora(delta, magnitude, linears, &names.modules[module].name, backend));
                    Some(model.adapted.dora.entry(known).or_insert_with(compute).clone())
                }
            };
            by_module.entry(module).or_default().push((delta, *weight, dora));
        }
    }
    let index_of = |layer: &Named<&mut Linear>| names.modules.iter().position(|module| module.name == layer.name);
    let mut layers = Vec::new();
    for layer in &model.parts.linears {
        let deltas = index_of(layer).and_then(|module| by_module.get(&module)).map_or(&[][..], Vec::as_slice);
        let own = own_rows(layer);
        let changes: Vec<(Change1<'_>, Vec<Move>)> = (deltas.iter())
            .map(|(delta, weight, dora)| {
                let dora = dora.as_deref().map(|factors| match &delta.magnitude {
                    Some(Magnitude::OfColumns(_)) => Dora::Columns(factors),
                    _ => Dora::Rows(factors),
                });
                (Change1 { delta, weight: *weight, dora }, delta.target.moves(own.clone()))
            })
            .filter(|(_, moves)| !moves.is_empty())
            .collect();
        if changes.is_empty() {
            layers.push(None);
            continue;
        }
        let mut builder = Builder::new(layer.it, backend);
        if merge {
            layers.push(Some(builder.merge(&changes)?));
        } else {
            for (change, moves) in &changes {
                builder.add(*change, moves);
            }
            layers.push(Some(builder.finish()));
        }
    }
    Ok(layers)
}

/// The rows of its module that a layer has.
fn own_rows(layer: &Named<&mut Linear>) -> Range<usize> {
    layer.first_row..layer.first_row + layer.it.weight.out_features()
}

/// A magnitude divided by the lengths of the rows (or columns) of `W + factor·Δ`.
fn dora(
    delta: &Delta,
    magnitude: &Magnitude,
    linears: &[Named<&mut Linear>],
    module: &str,
    backend: &Arc<dyn Backend>,
) -> Vec<f32> {
    let (lengths, of_rows) = match magnitude {
        Magnitude::OfRows(lengths) => (lengths, true),
        Magnitude::OfColumns(lengths) => (lengths, false),
    };
    if !backend.computes() {
        return vec![1.0; lengths.len()];
    }
    let mut squares = vec![0.0_f64; lengths.len()];
    let changes = ByRows::new(&delta.change);
    for layer in linears.iter().filter(|layer| layer.name == module) {
        let width = layer.it.weight.row_len();
        let [mut own, mut change] = [(); 2].map(|()| vec![0.0; width]);
        for Move { from, to, len } in delta.target.moves(own_rows(layer)) {
            for i in 0..len {
                layer.it.weight.decode_row(to + i, &mut own);
                changes.row(from + i, &mut change);
                for (j, (own, change)) in own.iter().zip(&change).enumerate() {
                    let value = f64::from(own + delta.factor * change);
                    squares[if of_rows { from + i } else { j }] += value * value;
                }
            }
        }
    }
    let factor = |(length, square): (&f32, f64)| length / (square.sqrt() as f32 + f32::EPSILON);
    lengths.iter().zip(squares).map(factor).collect()
}

impl Model<'_> {
    /// Lets the weights of blocks be kept in the form that kernels read, if they have one.
    pub(crate) fn may_keep(&mut self) {
        for Named { block, it, .. } in &mut self.parts.linears {
            if let (Some(kept), Some(block)) =
                (it.weight.keep(), block.and_then(|block| self.layout.blocks.get_mut(block)))
            {
                block.may_keep(kept);
            }
        }
    }

    /// Gives the bytes that are kept in memory beside the files.
    fn change(&mut self, layers: Layers, vectors: &[(usize, f32, &VectorChange)], backend: &Arc<dyn Backend>) -> u64 {
        let mut own_bytes = 0;
        let own = self.adapted.own.get_or_insert_with(|| self.layout.clone()).clone();
        *self.layout = own;
        for (layer, added) in self.parts.linears.iter_mut().zip(layers) {
            let Some((added, bytes)) = added else {
                layer.it.added = None;
                continue;
            };
            let extent = match layer.block {
                Some(block) => self.layout.blocks.get_mut(block),
                None => Some(&mut self.layout.fixed),
            };
            if let Some(extent) = extent {
                if added.replaces(layer.it) {
                    extent.remove(layer.it.weight.rows().iter().map(|rows| &rows.bytes));
                }
                let bytes = Extent::new(bytes);
                own_bytes += bytes.pinned_bytes();
                *extent += bytes;
            }
            layer.it.added = Some(Arc::new(added));
        }
        for vector in &mut self.parts.vectors {
            if let Some(was) = self.adapted.vectors.remove(&vector.name) {
                *vector.it = was;
            }
        }
        for (index, weight, change) in vectors {
            let vector = &mut self.parts.vectors[*index];
            self.adapted.vectors.entry(vector.name.clone()).or_insert_with(|| vector.it.clone());
            let values = match change {
                VectorChange::Set(values) => values.clone(),
                VectorChange::Add(values) => {
                    vector.it.to_vec().iter().zip(values).map(|(own, change)| own + weight * change).collect()
                }
            };
            *vector.it = Tensor::from_vec(backend, [values.len()], values);
        }
        own_bytes
    }
}
