//! bitsandbytes' four bits: every vector extension decodes what the plain formula says, from any row and any slice of rows.

use std::sync::Arc;

use tensor::{
    Backend, BlockScales, Bytes, DType, Precision, Rows, Scale, Scales, Tensor, Weight,
    cpu::{Cpu, Level},
};

/// A generator for tests: numbers below `n`.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    fn number(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
    }
}

fn f32s(values: &[f32]) -> Bytes {
    Bytes::from(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Arc<[u8]>>())
}

/// A weight of `[rows, row]` whose blocks of `size` run over the ends of its rows, and its elements by the formula.
fn weight(random: &mut Random, rows: usize, row: usize, size: usize, nested: bool) -> (Weight, Vec<f32>) {
    let count = rows * row;
    let blocks = count.div_ceil(size);
    let packed: Vec<u8> = (0..count / 2).map(|_| random.below(256) as u8).collect();
    let values: [f32; 16] = std::array::from_fn(|_| random.number());
    let (scales, factors): (Scales, Vec<f32>) = if nested {
        let codes: Vec<u8> = (0..blocks).map(|_| random.below(256) as u8).collect();
        let of_codes: [f32; 256] = std::array::from_fn(|_| random.number());
        let outer: Vec<f32> = (0..blocks.div_ceil(4)).map(|_| random.number()).collect();
        let offset = random.number();
        let factors = (0..blocks).map(|i| of_codes[usize::from(codes[i])] * outer[i / 4] + offset).collect();
        let codes = Bytes::from(Arc::<[u8]>::from(codes));
        (Scales::Nested { codes, values: of_codes.into(), scales: f32s(&outer), size: 4, offset }, factors)
    } else {
        let factors: Vec<f32> = (0..blocks).map(|_| random.number()).collect();
        (Scales::Plain(f32s(&factors)), factors)
    };
    let element = |i: usize| {
        let byte = packed[i / 2];
        let code = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        values[usize::from(code)] * factors[i / size]
    };
    let elements = (0..count).map(element).collect();
    let scale = Scale::PerBlock(Arc::new(BlockScales { values, size, scales, first: 0 }));
    let bytes = Bytes::from(Arc::<[u8]>::from(packed.as_slice()));
    let rows = Rows { count: rows, dtype: DType::NF4, scale, bytes };
    (Weight::new([rows.count, row], vec![rows], Precision::F32), elements)
}

#[test]
fn rows_are_what_the_formula_says() {
    let mut random = Random(3);
    for (rows, row, size, nested) in
        [(3, 64, 64, false), (7, 192, 128, false), (5, 1088, 64, true), (4, 320, 256, true), (2, 4096, 4096, true)]
    {
        let (weight, expected) = weight(&mut random, rows, row, size, nested);
        assert_eq!(weight.to_f32(), expected, "{rows}×{row}, blocks of {size}");
        let middle = weight.rows()[0].slice(1..rows);
        let part = Weight::new([rows - 1, row], vec![middle], Precision::F32);
        assert_eq!(part.to_f32(), expected[row..], "{rows}×{row}, blocks of {size}, from the second row on");
    }
}

/// A product with the rows of an identity gives back the weight as the kernels decode it, in few rows and in many.
#[test]
fn kernels_decode_the_same_numbers() {
    let mut random = Random(5);
    for (rows, row, size, nested) in [(9, 64, 64, false), (33, 192, 128, true), (5, 1280, 64, true)] {
        let (weight, expected) = weight(&mut random, rows, row, size, nested);
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let backend: Arc<dyn Backend> = Cpu::with_level(level, Some(2));
            for some in [1, row] {
                let identity = (0..some * row).map(|i| if i / row == i % row { 1.0 } else { 0.0 }).collect();
                let got = Tensor::from_vec(&backend, [some, row], identity).linear(&weight, None).to_vec();
                let turned: Vec<f32> =
                    (0..some).flat_map(|i| (0..rows).map(move |r| r * row + i)).map(|i| expected[i]).collect();
                assert_eq!(got, turned, "{rows}×{row}, blocks of {size}, {some} rows on {level:?}");
            }
        }
    }
}
