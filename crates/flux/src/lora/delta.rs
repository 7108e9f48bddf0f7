//! What a LoRA changes in one layer, read from its tensors and checked against the layer's size.
//!
//! With weight 1 the layer becomes `W + factor·Δ`, or with a magnitude (DoRA, Liu et al., arXiv 2402.09353) the rows or columns of
//! that, scaled to given lengths. Δ is `up·down`, `(w1_a·w1_b) ⊙ (w2_a·w2_b)` (LoHa), `w1 ⊗ w2` (LoKr) or whole. Factors as
//! `ComfyUI/comfy/weight_adapter` has them: `alpha / rank`; 1 where there is no alpha, and for LoKr of two whole factors.

use std::{collections::BTreeMap, ops::Range};

use tensor::{DType, Precision, Rows, Scale, Weight};

use super::{
    keys::Role,
    names::{Module, Target},
    peft::Peft,
};
use crate::weights::Checkpoint;

/// The tensors of one layer: their keys by what they are.
pub(super) type Group = BTreeMap<Role, String>;

/// What is changed in some rows of a layer.
#[derive(Clone, Debug)]
pub(super) struct Delta {
    pub(super) target: Target,
    pub(super) factor: f32,
    pub(super) change: Change,
    /// Lengths: one for each row, or for each column.
    pub(super) magnitude: Option<Magnitude>,
    /// Is added to the bias.
    pub(super) bias: Option<Vec<f32>>,
}

/// Δ.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Nothing,
    LowRank { down: Weight, up: Weight },
    Hada { first: [Weight; 2], second: [Weight; 2] },
    Kron { first: Factor, second: Factor },
    Whole(Weight),
}

/// A factor of a Kronecker product.
#[derive(Clone, Debug)]
pub(super) enum Factor {
    Whole(Weight),
    Product(Weight, Weight),
}

#[derive(Clone, Debug)]
pub(super) enum Magnitude {
    OfRows(Vec<f32>),
    OfColumns(Vec<f32>),
}

/// Why a layer's tensors are of no use.
#[derive(Debug)]
pub(super) enum Trouble {
    /// They say nothing that is understood: these keys are left out.
    Unclear(String),
    /// They are for another layer than the model has.
    Misfit(String),
    /// They cannot be read.
    Damaged(String),
}

type Result<T> = std::result::Result<T, Trouble>;

impl Delta {
    /// `name` is the layer's, as the file has it.
    pub(super) fn read(
        file: &Checkpoint,
        name: &str,
        group: &Group,
        peft: &Peft,
        module: &Module,
        target: &Target,
    ) -> Result<Self> {
        let reader = Reader { file, group };
        let (out, features) = (target.rows.len(), module.features);
        let fit = |what: &str, weight: &Weight, shape: [usize; 2]| reader.fit(what, weight, shape);
        let alpha = reader.number(Role::Alpha)?;
        let by_alpha = |rank: usize| alpha.map(|alpha| alpha / rank.max(1) as f32);
        let (change, factor) = if let Some([down, up]) = reader.pair(Role::Down, Role::Up)? {
            let rank = down.out_features();
            // A control LoRA gives `img_in` more channels than it has.
            let wide = module.name == "img_in" && down.row_len() > features;
            fit("the first factor", &down, [rank, if wide { down.row_len() } else { features }])?;
            fit("the second factor", &up, [out, rank])?;
            let factor = by_alpha(rank).unwrap_or_else(|| peft.factor(name, rank));
            (Change::LowRank { down, up }, factor)
        } else if let Some(first) = reader.pair(Role::Hada1A, Role::Hada1B)? {
            let Some(second) = reader.pair(Role::Hada2A, Role::Hada2B)? else {
                return Err(Trouble::Unclear("lacks 'hada_w2_a' and 'hada_w2_b'".into()));
            };
            let rank = first[1].out_features();
            for [a, b] in [&first, &second] {
                let rank = b.out_features();
                fit("a factor", a, [out, rank])?;
                fit("a factor", b, [rank, features])?;
            }
            (Change::Hada { first, second }, by_alpha(rank).unwrap_or(1.0))
        } else if let Some(first) = reader.factor([Role::Kron1, Role::Kron1A, Role::Kron1B])? {
            let Some(second) = reader.factor([Role::Kron2, Role::Kron2A, Role::Kron2B])? else {
                return Err(Trouble::Unclear("lacks 'lokr_w2'".into()));
            };
            let ([a, b], [c, d]) = (first.shape(), second.shape());
            if (a.checked_mul(c), b.checked_mul(d)) != (Some(out), Some(features)) {
                let problem = format!("is {a}×{b} ⊗ {c}×{d}; {out}×{features} was expected");
                return Err(Trouble::Misfit(problem));
            }
            let rank = second.rank().or(first.rank());
            let factor = rank.and_then(by_alpha).unwrap_or(1.0);
            (Change::Kron { first, second }, factor)
        } else if let Some(whole) = reader.matrix(Role::Diff)? {
            fit("the change", &whole, [out, features])?;
            (Change::Whole(whole), 1.0)
        } else {
            (Change::Nothing, 1.0)
        };
        if !factor.is_finite() {
            return Err(Trouble::Damaged(format!("has an alpha that gives the factor {factor}")));
        }
        let magnitude = match reader.numbers(Role::Magnitude)? {
            None => None,
            Some((shape, lengths)) => Some(Magnitude::new(&shape, lengths, [out, features])?),
        };
        let bias = match reader.numbers(Role::UpBias)?.or(reader.numbers(Role::DiffBias)?) {
            None => None,
            Some(_) if !module.bias => {
                return Err(Trouble::Unclear("changes a bias that the layer does not have".into()));
            }
            Some((shape, _)) if shape.iter().product::<usize>() != out => {
                return Err(Trouble::Misfit(format!("has a bias of {shape:?}; {out} numbers were expected")));
            }
            Some((_, values)) => Some(values),
        };
        if matches!(change, Change::Nothing) && bias.is_none() && magnitude.is_none() {
            let keys: Vec<&str> = group.values().map(String::as_str).collect();
            return Err(Trouble::Unclear(format!("is alone: {} give no change", keys.join(", "))));
        }
        Ok(Self { target: target.clone(), factor, change, magnitude, bias })
    }
}

impl Magnitude {
    /// `[out]`, `[out, 1]` and `[out, 1, 1, 1]` are of rows; `[1, in]` of columns.
    fn new(shape: &[usize], lengths: Vec<f32>, [out, features]: [usize; 2]) -> Result<Self> {
        match shape {
            [rows, rest @ ..] if *rows == out && rest.iter().all(|&extent| extent == 1) => Ok(Self::OfRows(lengths)),
            [1, columns, rest @ ..] if *columns == features && rest.iter().all(|&extent| extent == 1) => {
                Ok(Self::OfColumns(lengths))
            }
            _ => {
                Err(Trouble::Misfit(format!("has magnitudes of {shape:?}; [{out}, 1] or [1, {features}] was expected")))
            }
        }
    }
}

impl Factor {
    pub(super) fn shape(&self) -> [usize; 2] {
        match self {
            Self::Whole(whole) => [whole.out_features(), whole.row_len()],
            Self::Product(a, b) => [a.out_features(), b.row_len()],
        }
    }

    fn rank(&self) -> Option<usize> {
        match self {
            Self::Whole(_) => None,
            Self::Product(_, b) => Some(b.out_features()),
        }
    }

    /// All of it, row-major.
    pub(super) fn values(&self) -> Vec<f32> {
        match self {
            Self::Whole(whole) => whole.to_f32(),
            Self::Product(a, b) => product(a, b),
        }
    }
}

/// `a · b`, row-major.
pub(super) fn product(a: &Weight, b: &Weight) -> Vec<f32> {
    let (rank, columns) = (a.row_len(), b.row_len());
    let mut values = vec![0.0; a.out_features() * columns];
    let (a, b) = (a.to_f32(), b.to_f32());
    if columns > 0 && rank > 0 {
        for (row, a) in values.chunks_exact_mut(columns).zip(a.chunks_exact(rank)) {
            combine(a, &b, columns, row);
        }
    }
    values
}

/// Adds the rows of `b`, `width` wide, each times its number of `a`, to `row`, which may be shorter.
fn combine(a: &[f32], b: &[f32], width: usize, row: &mut [f32]) {
    for (a, b) in a.iter().zip(b.chunks_exact(width.max(1))) {
        for (y, b) in row.iter_mut().zip(b) {
            *y += a * b;
        }
    }
}

/// Δ, ready to be read row by row.
pub(super) enum ByRows<'a> {
    Nothing,
    LowRank { down: Vec<f32>, width: usize, up: &'a Weight },
    Hada { first: (Vec<f32>, &'a Weight), second: (Vec<f32>, &'a Weight) },
    Kron { first: Vec<f32>, second: Vec<f32>, rows: usize, columns: [usize; 2] },
    Whole(&'a Weight),
}

impl<'a> ByRows<'a> {
    pub(super) fn new(change: &'a Change) -> Self {
        match change {
            Change::Nothing => Self::Nothing,
            Change::LowRank { down, up } => Self::LowRank { down: down.to_f32(), width: down.row_len(), up },
            Change::Hada { first: [a, b], second: [c, d] } => {
                Self::Hada { first: (b.to_f32(), a), second: (d.to_f32(), c) }
            }
            Change::Kron { first, second } => Self::Kron {
                first: first.values(),
                second: second.values(),
                rows: second.shape()[0],
                columns: [first.shape()[1], second.shape()[1]],
            },
            Change::Whole(whole) => Self::Whole(whole),
        }
    }

    /// Row `index` as the file counts, without the factor. Of a change that is wider than the layer, its first columns.
    pub(super) fn row(&self, index: usize, out: &mut [f32]) {
        out.fill(0.0);
        match self {
            Self::Nothing => {}
            Self::LowRank { down, width, up } => {
                let mut factors = vec![0.0; up.row_len()];
                up.decode_row(index, &mut factors);
                combine(&factors, down, *width, out);
            }
            Self::Hada { first, second } => {
                let mut other = vec![0.0; out.len()];
                for ((b, a), out) in [(first, &mut *out), (second, &mut other)] {
                    let mut factors = vec![0.0; a.row_len()];
                    a.decode_row(index, &mut factors);
                    combine(&factors, b, out.len(), out);
                }
                for (y, other) in out.iter_mut().zip(other) {
                    *y *= other;
                }
            }
            Self::Kron { first, second, rows, columns: [many, each] } => {
                let first = &first[index / rows * many..][..*many];
                let second = &second[index % rows * each..][..*each];
                for (out, a) in out.chunks_exact_mut((*each).max(1)).zip(first) {
                    for (y, b) in out.iter_mut().zip(second) {
                        *y = a * b;
                    }
                }
            }
            Self::Whole(whole) => whole.decode_row(index, out),
        }
    }
}

/// Rows of a delta that are rows of a layer, or of a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    /// The first, as the file counts.
    pub(super) from: usize,
    /// The first, as the layer counts.
    pub(super) to: usize,
    pub(super) len: usize,
}

impl Target {
    /// Where the file's rows are in a layer that has the rows `own` of the module; sorted by `to`.
    pub(super) fn moves(&self, own: Range<usize>) -> Vec<Move> {
        let (start, len) = (self.rows.start, self.rows.len());
        let half = if self.swapped { len / 2 } else { 0 };
        let whole =
            [Move { from: half, to: start, len: len - half }, Move { from: 0, to: start + len - half, len: half }];
        let within = whole.into_iter().filter_map(|Move { from, to, len }| {
            let (first, end) = (to.max(own.start), (to + len).min(own.end));
            (first < end).then(|| Move { from: from + first - to, to: first - own.start, len: end - first })
        });
        within.collect()
    }
}

/// The tensors of a group.
struct Reader<'a> {
    file: &'a Checkpoint,
    group: &'a Group,
}

impl Reader<'_> {
    fn matrix(&self, role: Role) -> Result<Option<Weight>> {
        let Some(key) = self.group.get(&role) else { return Ok(None) };
        weight(self.file, key).map(Some).map_err(Trouble::Damaged)
    }

    /// Two that go together.
    fn pair(&self, first: Role, second: Role) -> Result<Option<[Weight; 2]>> {
        match (self.matrix(first)?, self.matrix(second)?) {
            (Some(first), Some(second)) => Ok(Some([first, second])),
            (None, None) => Ok(None),
            (one, _) => {
                let there = if one.is_some() { first } else { second };
                let key = self.group.get(&there).map_or("", String::as_str);
                Err(Trouble::Unclear(format!("'{key}' lacks the factor that goes with it")))
            }
        }
    }

    fn factor(&self, [whole, a, b]: [Role; 3]) -> Result<Option<Factor>> {
        if let Some(whole) = self.matrix(whole)? {
            return Ok(Some(Factor::Whole(whole)));
        }
        let Some([a, b]) = self.pair(a, b)? else { return Ok(None) };
        self.fit("a factor", &a, [a.out_features(), b.out_features()])?;
        Ok(Some(Factor::Product(a, b)))
    }

    fn numbers(&self, role: Role) -> Result<Option<(Vec<usize>, Vec<f32>)>> {
        let Some(key) = self.group.get(&role) else { return Ok(None) };
        numbers(self.file, key).map(Some).map_err(Trouble::Damaged)
    }

    fn number(&self, role: Role) -> Result<Option<f32>> {
        match self.numbers(role)? {
            None => Ok(None),
            Some((_, values)) if values.len() == 1 => Ok(Some(values[0])),
            Some((shape, _)) => {
                Err(Trouble::Damaged(format!("has an alpha of shape {shape:?}; one number was expected")))
            }
        }
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence where it is called")]
    fn fit(&self, what: &str, weight: &Weight, [out, features]: [usize; 2]) -> Result<()> {
        let have = [weight.out_features(), weight.row_len()];
        if have == [out, features] {
            return Ok(());
        }
        Err(Trouble::Misfit(format!("has {what} of {have:?}; [{out}, {features}] was expected")))
    }
}

/// Formats that LoRAs are stored in.
fn dtype(file: &Checkpoint, key: &str) -> std::result::Result<DType, String> {
    let entry = file.entry(key).ok_or_else(|| format!("lacks '{key}'"))?;
    let plain = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];
    entry
        .weight_dtype()
        .filter(|dtype| plain.contains(dtype))
        .ok_or_else(|| format!("stores '{key}' as {}; F32, F16, BF16, F8_E4M3 or F8_E5M2 was expected", entry.dtype))
}

/// A matrix `[out, in]`, also where it is the kernel `[out, in, 1, 1]`.
fn weight(file: &Checkpoint, key: &str) -> std::result::Result<Weight, String> {
    let dtype = dtype(file, key)?;
    let Some((bytes, entry)) = file.bytes(key) else { return Err(format!("lacks '{key}'")) };
    match entry.shape[..] {
        [out, features, ref rest @ ..] if rest.iter().all(|&extent| extent == 1) => {
            let rows = Rows { count: out, dtype, scale: Scale::NONE, bytes };
            Ok(Weight::new([out, features], vec![rows], Precision::F32))
        }
        ref shape => Err(format!("has '{key}' of shape {shape:?}; a matrix was expected")),
    }
}

/// A small tensor and its shape.
pub(super) fn numbers(file: &Checkpoint, key: &str) -> std::result::Result<(Vec<usize>, Vec<f32>), String> {
    let dtype = dtype(file, key)?;
    let Some((bytes, entry)) = file.bytes(key) else { return Err(format!("lacks '{key}'")) };
    let mut values = vec![0.0; entry.shape.iter().product()];
    dtype.decode(bytes.get(), &mut values);
    Ok((entry.shape.clone(), values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_find_their_places() {
        let target = |rows, swapped| Target { module: 0, rows, swapped };
        assert_eq!(target(4..8, false).moves(0..12), [Move { from: 0, to: 4, len: 4 }]);
        assert_eq!(target(4..8, false).moves(6..12), [Move { from: 2, to: 0, len: 2 }]);
        assert_eq!(target(4..8, false).moves(8..12), []);
        let halves = [Move { from: 3, to: 0, len: 3 }, Move { from: 0, to: 3, len: 3 }];
        assert_eq!(target(0..6, true).moves(0..6), halves);
    }

    #[test]
    fn rows_are_those_of_the_whole_product() {
        let matrix = |rows: usize, columns: usize, seed: f32| {
            let values: Vec<f32> = (0..rows * columns).map(|i| (seed + i as f32 * 0.37).sin()).collect();
            Weight::from_f32([rows, columns], &values)
        };
        let check = |change: &Change, out: usize, features: usize, expected: &dyn Fn(usize, usize) -> f32| {
            let rows = ByRows::new(change);
            let mut row = vec![7.0; features];
            for i in 0..out {
                rows.row(i, &mut row);
                for (j, value) in row.iter().enumerate() {
                    assert!((value - expected(i, j)).abs() < 1e-5, "{i}, {j}: {value} and {}", expected(i, j));
                }
            }
        };
        let times = |a: &Weight, b: &Weight, i: usize, j: usize| {
            let (a, b, rank, n) = (a.to_f32(), b.to_f32(), a.row_len(), b.row_len());
            (0..rank).map(|r| a[i * rank + r] * b[r * n + j]).sum::<f32>()
        };
        let [a, b, c, d] = [matrix(6, 2, 1.0), matrix(2, 8, 2.0), matrix(6, 3, 3.0), matrix(3, 8, 4.0)];
        check(&Change::LowRank { down: b.clone(), up: a.clone() }, 6, 8, &|i, j| times(&a, &b, i, j));
        let hada = Change::Hada { first: [a.clone(), b.clone()], second: [c.clone(), d.clone()] };
        check(&hada, 6, 8, &|i, j| times(&a, &b, i, j) * times(&c, &d, i, j));
        let [w1, w2a, w2b] = [matrix(3, 2, 5.0), matrix(2, 1, 6.0), matrix(1, 4, 7.0)];
        let kron = Change::Kron { first: Factor::Whole(w1.clone()), second: Factor::Product(w2a.clone(), w2b.clone()) };
        let w1 = w1.to_f32();
        check(&kron, 6, 8, &|i, j| w1[i / 2 * 2 + j / 4] * times(&w2a, &w2b, i % 2, j % 4));
    }
}
