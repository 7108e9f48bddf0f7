//! What adapters add to a layer while it runs, whatever format its weight is stored in.
//!
//! Changes of low rank stay two factors: `x·Aᵀ` of all adapters is one product, and each `(x·Aᵀ)·Bᵀ` is added to the layer's sums
//! before its function or gate ([`tensor::Backend::linear_sum`]). Matrices stay in their files; factors and weights of adapters
//! are scales of rows. Only LoHa needs numbers of its own: a product of ranks r and s is one of rank r·s.

use std::{ops::Range, sync::Arc};

use tensor::{Backend, Bytes, DType, End, Precision, Rows, Scale, Tensor, Term, Weight};

use super::{
    Error, Result,
    delta::{ByRows, Change, Delta, Factor, Move},
};
use crate::nn::Linear;

/// What is added to one layer.
#[derive(Debug, Default)]
pub(crate) struct Added {
    /// Takes the layer's place: rows scaled, or changes merged.
    weight: Option<Weight>,
    /// A factor for each of the layer's columns of the result, where its format cannot have scaled rows.
    rows: Option<Tensor>,
    bias: Option<Tensor>,
    /// Factors of x's columns.
    inputs: Vec<Tensor>,
    /// First factors of low-rank changes, stacked.
    down: Option<Weight>,
    products: Vec<Product>,
    krons: Vec<Kron>,
}

/// `input · weightᵀ`, with zeros in the rows that are not changed.
#[derive(Debug)]
struct Product {
    input: Input,
    /// `[out, k]`.
    weight: Weight,
    rows: Range<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Input {
    /// What `down` gives, from this column on.
    Down(usize),
    /// The layer's input.
    Whole,
    /// The same with its columns scaled.
    Scaled(usize),
}

/// `w1 ⊗ w2` on the layer's input, without ever being a matrix.
#[derive(Debug)]
struct Kron {
    /// `[a, b]`.
    first: Weight,
    /// `[c, d]`, as one matrix or as two, the one that comes first first.
    second: Vec<Weight>,
    /// Which of x's factors.
    input: Option<usize>,
    /// Factors of the result's rows.
    rows: Option<Tensor>,
    moves: Vec<Move>,
    out: usize,
}

impl Added {
    /// Elements of a row of the input, if they are more than the layer's weight takes.
    pub(crate) fn widened(&self) -> Option<usize> {
        self.down.as_ref().map(Weight::row_len)
    }

    /// Whether nothing but thin products is added, which take the input as it lies.
    fn is_low_rank(&self, layer: &Linear) -> bool {
        let thin = self.products.iter().all(|product| matches!(product.input, Input::Down(_)));
        let wide = self.widened().is_some_and(|width| width > layer.weight.row_len());
        thin && !wide && self.krons.is_empty() && self.rows.is_none()
    }

    /// Whether the layer's own numbers are not read any more.
    pub(super) fn replaces(&self, layer: &Linear) -> bool {
        let place = |weight: &Weight| weight.rows().first().map(|rows| rows.bytes.get().as_ptr());
        self.weight.as_ref().is_some_and(|weight| place(weight) != place(&layer.weight))
    }

    /// `end(layer(x) + what is added)`; the columns of x lie in several tensors, side by side, or in one.
    #[track_caller]
    pub(crate) fn forward(&self, layer: &Linear, parts: &[&Tensor], end: End<'_>) -> Tensor {
        let weight = self.weight.as_ref().unwrap_or(&layer.weight);
        let bias = self.bias.as_ref().or(layer.bias.as_ref());
        let down = self.down.as_ref().map(|down| Tensor::linear_sum(parts, down, None, &[], End::Nothing));
        if self.is_low_rank(layer) {
            let terms: Vec<Term<'_>> =
                (down.iter()).flat_map(|down| self.products.iter().map(move |product| product.term(down))).collect();
            return Tensor::linear_sum(parts, weight, bias, &terms, end);
        }
        let x = &Tensor::concat(parts, parts[0].shape().rank() - 1);
        // The columns that the model itself has; a control LoRA's picture comes behind them.
        let own = &x.slice(x.shape().rank() - 1, 0, weight.row_len());
        let inputs: Vec<Tensor> = self.inputs.iter().map(|factors| own.mul(factors)).collect();
        let terms: Vec<Term<'_>> = (self.products.iter())
            .map(|product| {
                product.term(match (product.input, &down) {
                    (Input::Down(_), Some(down)) => down,
                    (Input::Scaled(index), _) => &inputs[index],
                    (Input::Whole | Input::Down(_), _) => own,
                })
            })
            .collect();
        if self.krons.is_empty() && self.rows.is_none() {
            return Tensor::linear_sum(&[own], weight, bias, &terms, end);
        }
        let mut y = match &self.rows {
            None => Tensor::linear_sum(&[own], weight, bias, &terms, End::Nothing),
            Some(rows) => {
                let mut y = own.linear(weight, None).mul(rows);
                if let Some(bias) = bias {
                    y = y.add(bias);
                }
                for Term { x, start, weight, .. } in terms {
                    y = y.add(&x.slice(x.shape().rank() - 1, start, weight.row_len()).linear(weight, None));
                }
                y
            }
        };
        for kron in &self.krons {
            y = y.add(&kron.of(kron.input.map_or(own, |index| &inputs[index])));
        }
        end.of(y)
    }
}

impl Product {
    /// With what [`Input`] says.
    fn term<'a>(&'a self, x: &'a Tensor) -> Term<'a> {
        let start = if let Input::Down(start) = self.input { start } else { 0 };
        Term { x, start, weight: &self.weight, rows: self.rows.clone() }
    }
}

impl Kron {
    /// `[L, b·d]` → `[L, out]`: element (j, l) of a row of x meets `w2[k, l]`, then `w1[i, j]`, and becomes element (i, k).
    fn of(&self, x: &Tensor) -> Tensor {
        let [a, b] = [self.first.out_features(), self.first.row_len()];
        let tokens = x.shape().rows();
        let mut y = x.reshape([tokens * b, x.shape().last() / b]);
        for factor in &self.second {
            y = y.linear(factor, None);
        }
        let c = y.shape().last();
        let y = y.reshape([tokens, b, c]).permute(&[0, 2, 1]).reshape([tokens * c, b]);
        let y = y.linear(&self.first, None).reshape([tokens, c, a]).permute(&[0, 2, 1]).reshape([tokens, a * c]);
        let y = self.rows.as_ref().map_or_else(|| y.clone(), |rows| y.mul(rows));
        let zeros = |columns: usize| Tensor::from_vec(x.backend(), [tokens, columns], vec![0.0; tokens * columns]);
        let mut parts = Vec::new();
        let mut at = 0;
        for &Move { from, to, len } in &self.moves {
            if to > at {
                parts.push(zeros(to - at));
            }
            parts.push(y.slice(1, from, len));
            at = to + len;
        }
        if at < self.out {
            parts.push(zeros(self.out - at));
        }
        Tensor::concat(&parts.iter().collect::<Vec<_>>(), 1).reshape(x.shape().with_last(self.out))
    }
}

/// A delta on its way into a layer.
#[derive(Clone, Copy)]
pub(super) struct Change1<'a> {
    pub(super) delta: &'a Delta,
    /// The adapter's weight.
    pub(super) weight: f32,
    /// With a magnitude: the factors of rows, as the file counts, or of columns.
    pub(super) dora: Option<Dora<'a>>,
}

#[derive(Clone, Copy)]
pub(super) enum Dora<'a> {
    Rows(&'a [f32]),
    Columns(&'a [f32]),
}

/// Puts together what is added to one layer, and tells what of it lies in files or in memory.
pub(super) struct Builder<'a> {
    layer: &'a Linear,
    backend: &'a Arc<dyn Backend>,
    /// Of what is added: int8 would hurt it.
    precision: Precision,
    added: Added,
    downs: Vec<Weight>,
    down_rows: usize,
    row_factors: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    bytes: Vec<Bytes>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(layer: &'a Linear, backend: &'a Arc<dyn Backend>) -> Self {
        Self {
            layer,
            backend,
            precision: layer.weight.precision().without_int8(),
            added: Added::default(),
            downs: Vec::new(),
            down_rows: 0,
            row_factors: None,
            bias: None,
            bytes: Vec::new(),
        }
    }

    fn out(&self) -> usize {
        self.layer.weight.out_features()
    }

    /// `moves` are those of the delta's rows into the layer.
    pub(super) fn add(&mut self, change: Change1<'_>, moves: &[Move]) {
        let Change1 { delta, weight, dora } = change;
        self.add_bias(delta, weight, moves);
        let factor = weight * delta.factor;
        let own_rows = match dora {
            Some(Dora::Rows(rows)) => {
                let out = self.out();
                let factors = self.row_factors.get_or_insert_with(|| vec![1.0; out]);
                for (to, from) in pairs(moves) {
                    factors[to] += weight * (rows[from] - 1.0);
                }
                Some(rows.iter().map(|row| factor * row).collect::<Vec<f32>>())
            }
            _ => None,
        };
        let columns = if let Some(Dora::Columns(columns)) = dora { Some(columns) } else { None };
        if let Some(columns) = columns {
            // W + w·(W·D − W) = W + W·w(D − 1): the layer's own weight once more, on scaled columns.
            let input = self.scaled(columns.iter().map(|column| weight * (column - 1.0)).collect());
            let rows: Vec<Move> = moves.iter().map(|&Move { to, len, .. }| Move { from: to, to, len }).collect();
            let own = self.layer.weight.clone();
            self.product(input, own, &rows);
        }
        let scaled = |weight: &Weight| match &own_rows {
            Some(rows) => weight.scaled_rows(rows),
            None => weight.scaled(factor),
        };
        match &delta.change {
            Change::Nothing => {}
            Change::LowRank { down, up } => self.low_rank(down, scaled(up), columns, moves),
            Change::Hada { first, second } => {
                let [rank, width] =
                    [first[1].out_features().saturating_mul(second[1].out_features()), first[1].row_len()];
                // Where the factors would be as large as the change, the change itself.
                if rank.saturating_mul(first[0].out_features() + width) < first[0].out_features() * width {
                    let down = self.owned([rank, width], || khatri_rao(&first[1], &second[1], false));
                    let up = self.owned([first[0].out_features(), rank], || khatri_rao(&first[0], &second[0], true));
                    self.low_rank(&down, scaled(&up), columns, moves);
                } else {
                    let whole = self.whole(&delta.change, first[0].out_features(), width);
                    self.dense(scaled(&whole), columns, moves);
                }
            }
            Change::Whole(whole) => self.dense(scaled(whole), columns, moves),
            Change::Kron { first, second } => {
                let [a, b] = first.shape();
                let first_values = || {
                    let plain = if own_rows.is_some() { 1.0 } else { factor };
                    first.values().into_iter().map(|value| plain * value).collect()
                };
                let first = self.owned([a, b], first_values);
                let second = match second {
                    Factor::Whole(whole) => vec![whole.clone()],
                    Factor::Product(up, down) => vec![down.clone(), up.clone()],
                };
                let second: Vec<Weight> =
                    second.into_iter().map(|weight| weight.with_precision(self.precision)).collect();
                for weight in &second {
                    self.keep(weight);
                }
                let input = columns.map(|columns| match self.scaled(columns.to_vec()) {
                    Input::Scaled(index) => index,
                    Input::Down(_) | Input::Whole => 0,
                });
                let rows = own_rows.map(|rows| Tensor::from_vec(self.backend, [rows.len()], rows));
                let out = self.out();
                self.added.krons.push(Kron { first, second, input, rows, moves: moves.to_vec(), out });
            }
        }
    }

    fn add_bias(&mut self, delta: &Delta, weight: f32, moves: &[Move]) {
        if let (Some(change), Some(own)) = (&delta.bias, &self.layer.bias) {
            let bias = self.bias.get_or_insert_with(|| own.to_vec());
            for (to, from) in pairs(moves) {
                bias[to] += weight * change[from];
            }
        }
    }

    /// `columns` are factors of `down`'s columns.
    fn low_rank(&mut self, down: &Weight, up: Option<Weight>, columns: Option<&[f32]>, moves: &[Move]) {
        let Some(up) = up else { return };
        let rank = down.out_features();
        if rank == 0 {
            return;
        }
        let down = match columns {
            None => down.clone(),
            Some(columns) => self.owned([rank, down.row_len()], || {
                let values = down.to_f32();
                values.iter().zip(columns.iter().cycle()).map(|(value, column)| value * column).collect()
            }),
        };
        self.keep(&down);
        self.downs.push(down.with_precision(self.precision));
        let input = Input::Down(self.down_rows);
        self.down_rows += rank;
        self.product(input, up, moves);
    }

    fn dense(&mut self, whole: Option<Weight>, columns: Option<&[f32]>, moves: &[Move]) {
        let Some(whole) = whole else { return };
        let input = columns.map_or(Input::Whole, |columns| self.scaled(columns.to_vec()));
        self.product(input, whole, moves);
    }

    /// The input with scaled columns.
    fn scaled(&mut self, factors: Vec<f32>) -> Input {
        self.added.inputs.push(Tensor::from_vec(self.backend, [factors.len()], factors));
        Input::Scaled(self.added.inputs.len() - 1)
    }

    /// The rows of `weight` in their places, zeros elsewhere.
    fn product(&mut self, input: Input, weight: Weight, moves: &[Move]) {
        let (Some(first), Some(last)) = (moves.first(), moves.last()) else { return };
        self.keep(&weight);
        let weight = weight.with_precision(self.precision);
        let zeros = |rows: usize| Weight::zeros(rows, weight.row_len(), self.precision);
        let mut parts = Vec::new();
        let mut at = 0;
        for &Move { from, to, len } in moves {
            if to > at {
                parts.push(zeros(to - at));
            }
            parts.push(weight.slice_rows(from..from + len));
            at = to + len;
        }
        if at < self.out() {
            parts.push(zeros(self.out() - at));
        }
        let rows = first.to..last.to + last.len;
        self.added.products.push(Product { input, weight: Weight::stacked(parts), rows });
    }

    /// A matrix in memory of its own, in the layer's arithmetic; nothing is computed where nothing is to be.
    fn owned(&self, shape: [usize; 2], values: impl FnOnce() -> Vec<f32>) -> Weight {
        let dtype = if self.precision == Precision::F32 { DType::F32 } else { DType::BF16 };
        let bytes = if self.backend.computes() {
            stored(dtype, &values())
        } else {
            Bytes::Absent(dtype.bytes(shape[0] * shape[1]))
        };
        Weight::new(shape, vec![Rows { count: shape[0], dtype, scale: Scale::NONE, bytes }], self.precision)
    }

    /// The change as a matrix.
    fn whole(&self, change: &Change, out: usize, width: usize) -> Weight {
        self.owned([out, width], || {
            let rows = ByRows::new(change);
            let mut values = vec![0.0; out * width];
            for (index, row) in values.chunks_exact_mut(width.max(1)).enumerate() {
                rows.row(index, row);
            }
            values
        })
    }

    /// With columns of zeros behind its own: beside a control LoRA, others are narrower.
    fn widened(&self, weight: &Weight, width: usize) -> Weight {
        let own = weight.row_len();
        if own == width {
            return weight.clone();
        }
        self.owned([weight.out_features(), width], || {
            let values = weight.to_f32();
            let row =
                |row: &[f32]| row.iter().copied().chain(std::iter::repeat_n(0.0, width - own)).collect::<Vec<_>>();
            values.chunks_exact(own.max(1)).flat_map(row).collect()
        })
    }

    /// Remembers where a weight lies.
    fn keep(&mut self, weight: &Weight) {
        self.bytes.extend(weight.rows().iter().map(|rows| rows.bytes.clone()));
    }

    /// Puts side by side what changes the same rows (of several files with q, k and v apart, say): their second factors are one
    /// product then.
    fn sort(&mut self) {
        self.added.products.sort_by_key(|product| (product.rows.start, product.rows.end));
        let mut downs: Vec<(usize, Weight)> = Vec::new();
        let mut at = 0;
        for down in self.downs.drain(..) {
            let rows = down.out_features();
            downs.push((at, down));
            at += rows;
        }
        let mut end = 0;
        for product in &mut self.added.products {
            let Input::Down(start) = &mut product.input else { continue };
            let Some(place) = downs.iter().position(|(from, _)| from == start) else { continue };
            let (_, down) = downs.remove(place);
            *start = end;
            end += down.out_features();
            self.downs.push(down);
        }
    }

    /// What is added, and where it lies: in files, or in memory of its own.
    pub(super) fn finish(mut self) -> (Added, Vec<Bytes>) {
        self.sort();
        let width = self.downs.iter().map(Weight::row_len).max().unwrap_or(0);
        let downs: Vec<Weight> = self.downs.iter().map(|down| self.widened(down, width)).collect();
        self.added.down = (!downs.is_empty()).then(|| Weight::stacked(downs));
        if let Some(factors) = &self.row_factors {
            match self.layer.weight.scaled_rows(factors) {
                Some(weight) => self.added.weight = Some(weight),
                None => self.added.rows = Some(Tensor::from_vec(self.backend, [factors.len()], factors.clone())),
            }
        }
        self.added.bias = self.bias.take().map(|bias| Tensor::from_vec(self.backend, [bias.len()], bias));
        let own: Vec<*const u8> = self.layer.weight.rows().iter().map(|rows| rows.bytes.get().as_ptr()).collect();
        let lies = |bytes: &Bytes| {
            matches!(bytes, Bytes::Mapped(..) | Bytes::Owned(..)) && !own.contains(&bytes.get().as_ptr())
        };
        self.bytes.retain(lies);
        (self.added, self.bytes)
    }

    /// The layer with all changes in a weight of its own, in the format of the layer's. `changes` with their moves.
    pub(super) fn merge(mut self, changes: &[(Change1<'_>, Vec<Move>)]) -> Result<(Added, Vec<Bytes>)> {
        let base = &self.layer.weight;
        let float = |rows: &Rows| {
            matches!(rows.dtype, DType::F32 | DType::F16 | DType::BF16) && matches!(rows.scale, Scale::All(1.0))
        };
        if let Some(rows) = base.rows().iter().find(|rows| !float(rows)) {
            let problem = format!(
                "is for weights stored as F32, F16 or BF16; this model has layers in {:?}, which would lose what is merged; \
                 hint: leave it out, the LoRA is applied all the same",
                rows.dtype
            );
            return Err(Error::asked("lora_merge", problem));
        }
        for (change, moves) in changes {
            if let Change::LowRank { down, .. } = &change.delta.change
                && down.row_len() > base.row_len()
            {
                let problem = "cannot merge a control LoRA, which gives the model another input; hint: leave it out";
                return Err(Error::asked("lora_merge", problem));
            }
            self.add_bias(change.delta, change.weight, moves);
        }
        self.added.bias = self.bias.take().map(|bias| Tensor::from_vec(self.backend, [bias.len()], bias));
        let width = base.row_len();
        let compute = self.backend.computes();
        let rows_of: Vec<ByRows<'_>> = if compute {
            changes.iter().map(|(change, _)| ByRows::new(&change.delta.change)).collect()
        } else {
            Vec::new()
        };
        let [mut own, mut row, mut delta] = [(); 3].map(|()| vec![0.0; if compute { width } else { 0 }]);
        let mut first = 0;
        let mut pieces = Vec::new();
        for piece in base.rows() {
            let bytes = if compute {
                let mut bytes = Vec::with_capacity(piece.bytes.len());
                for index in first..first + piece.count {
                    base.decode_row(index, &mut own);
                    row.copy_from_slice(&own);
                    for ((change, moves), rows) in changes.iter().zip(&rows_of) {
                        for (_, from) in pairs(moves).filter(|(to, _)| *to == index) {
                            rows.row(from, &mut delta);
                            change.add_row(from, &own, &delta, &mut row);
                        }
                    }
                    store(piece.dtype, &row, &mut bytes);
                }
                Bytes::from(Arc::<[u8]>::from(bytes))
            } else {
                Bytes::Absent(piece.bytes.len())
            };
            pieces.push(Rows { bytes, ..piece.clone() });
            first += piece.count;
        }
        let bytes = if compute { pieces.iter().map(|piece| piece.bytes.clone()).collect() } else { Vec::new() };
        self.added.weight = Some(Weight::new(base.shape(), pieces, base.precision()));
        Ok((self.added, bytes))
    }
}

impl Change1<'_> {
    /// Adds what changes in one row, `from` as the file counts: `w·(D·(W + factor·Δ) − W)`.
    fn add_row(&self, from: usize, own: &[f32], delta: &[f32], row: &mut [f32]) {
        let factor = self.delta.factor;
        for (j, ((y, own), delta)) in row.iter_mut().zip(own).zip(delta).enumerate() {
            let changed = own + factor * delta;
            *y += self.weight
                * match self.dora {
                    None => factor * delta,
                    Some(Dora::Rows(rows)) => rows[from] * changed - own,
                    Some(Dora::Columns(columns)) => columns[j] * changed - own,
                };
        }
    }
}

/// Rows of the layer and of the file that belong together.
fn pairs(moves: &[Move]) -> impl Iterator<Item = (usize, usize)> {
    moves.iter().flat_map(|&Move { from, to, len }| (0..len).map(move |i| (to + i, from + i)))
}

/// Products of all pairs of rows (or, `by_columns`, of columns), element by element: `(a·b) ⊙ (c·d)` is their product.
fn khatri_rao(first: &Weight, second: &Weight, by_columns: bool) -> Vec<f32> {
    let [m, n] = [first.row_len(), second.row_len()];
    let (first, second) = (first.to_f32(), second.to_f32());
    let (first_rows, second_rows) = (first.chunks_exact(m.max(1)), second.chunks_exact(n.max(1)));
    if by_columns {
        let rows = first_rows.zip(second_rows);
        rows.flat_map(|(a, c)| a.iter().flat_map(move |a| c.iter().map(move |c| a * c))).collect()
    } else {
        let pairs = first_rows.flat_map(|b| second_rows.clone().map(move |d| (b, d)));
        pairs.flat_map(|(b, d)| b.iter().zip(d).map(|(b, d)| b * d)).collect()
    }
}

/// Numbers in a format of floats.
fn stored(dtype: DType, values: &[f32]) -> Bytes {
    let mut bytes = Vec::with_capacity(dtype.bytes(values.len()));
    store(dtype, values, &mut bytes);
    Bytes::from(Arc::<[u8]>::from(bytes))
}

fn store(dtype: DType, values: &[f32], to: &mut Vec<u8>) {
    match dtype {
        DType::BF16 => to.extend(values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())),
        DType::F16 => to.extend(values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes())),
        _ => to.extend(values.iter().flat_map(|v| v.to_le_bytes())),
    }
}
