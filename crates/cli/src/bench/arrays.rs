//! Arrays of numbers in safetensors files: what a run is given, and what it gives.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use flux::weights::safetensors::{Entry, Header};

use super::problem;
use crate::output;

/// The arrays of a file.
pub(super) struct Arrays {
    path: PathBuf,
    bytes: Vec<u8>,
    header: Header,
}

/// An array that was read, row-major.
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

impl Arrays {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| problem(path, e))?;
        let header = Header::parse(&bytes).map_err(|e| problem(path, e))?;
        Ok(Self { path: path.to_owned(), bytes, header })
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.header.tensors.get(name).ok_or_else(|| {
            let names: Vec<String> = self.header.tensors.keys().take(12).map(|name| format!("'{name}'")).collect();
            let held = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            problem(&self.path, format!("lacks the tensor '{name}' (it holds {held})"))
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// Numbers of any kind as f32.
    pub(super) fn read(&self, name: &str) -> Result<Array> {
        let entry = self.entry(name)?;
        let bytes = &self.bytes[entry.bytes.clone()];
        let values = match entry.dtype.as_str() {
            "F64" => wide(bytes, f64::from_le_bytes, |v| v as f32),
            "I64" => wide(bytes, i64::from_le_bytes, |v| v as f32),
            "I32" => wide(bytes, i32::from_le_bytes, |v| v as f32),
            other => {
                let dtype = entry.weight_dtype().ok_or_else(|| {
                    problem(&self.path, format!("stores '{name}' as {other}; floating-point numbers were expected"))
                })?;
                let mut values = vec![0.0; entry.shape.iter().product()];
                dtype.decode(bytes, &mut values);
                values
            }
        };
        Ok(Array { shape: entry.shape.clone(), values })
    }

    /// Whole numbers from 0.
    pub(super) fn read_ids(&self, name: &str) -> Result<(Vec<usize>, Vec<u32>)> {
        let entry = self.entry(name)?;
        let bytes = &self.bytes[entry.bytes.clone()];
        let ids: Vec<Option<u32>> = match entry.dtype.as_str() {
            "I64" => wide(bytes, i64::from_le_bytes, |v| u32::try_from(v).ok()),
            "I32" => wide(bytes, i32::from_le_bytes, |v| u32::try_from(v).ok()),
            "U32" => wide(bytes, u32::from_le_bytes, Some),
            other => {
                let what = format!("stores '{name}' as {other}; I32, I64 or U32 was expected");
                return Err(problem(&self.path, what));
            }
        };
        let ids: Option<Vec<u32>> = ids.into_iter().collect();
        let ids =
            ids.ok_or_else(|| problem(&self.path, format!("has '{name}' with numbers that belong to no token")))?;
        Ok((entry.shape.clone(), ids))
    }

    /// An array `[1, rows, columns]` or `[rows, columns]`, where `None` is any extent that is not 0: its rows and columns.
    pub(super) fn matrix(&self, name: &str, expected: [Option<usize>; 2]) -> Result<([usize; 2], Vec<f32>)> {
        let Array { shape, values } = self.read(name)?;
        let ([1, rows, columns] | [rows, columns]) = shape[..] else {
            return Err(self.wrong_shape(name, &shape, expected));
        };
        let fits = |have: usize, expected: Option<usize>| expected.map_or(have > 0, |n| n == have);
        if !fits(rows, expected[0]) || !fits(columns, expected[1]) {
            return Err(self.wrong_shape(name, &shape, expected));
        }
        Ok(([rows, columns], values))
    }

    /// An array of one number, of whatever shape.
    pub(super) fn number(&self, name: &str) -> Result<f32> {
        let Array { shape, values } = self.read(name)?;
        match values[..] {
            [value] => Ok(value),
            _ => Err(problem(
                &self.path,
                format!("has '{name}' of shape {shape:?}; one number was expected: one picture"),
            )),
        }
    }

    pub(super) fn wrong_shape(&self, name: &str, shape: &[usize], expected: [Option<usize>; 2]) -> anyhow::Error {
        let [rows, columns] = expected.map(|n| n.map_or("any".into(), |n| n.to_string()));
        problem(
            &self.path,
            format!("has '{name}' of shape {shape:?}; [1, {rows}, {columns}] was expected: one picture"),
        )
    }
}

fn wide<const N: usize, V, T>(bytes: &[u8], read: impl Fn([u8; N]) -> V, to: impl Fn(V) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| to(read(*chunk))).collect()
}

/// Writes one array as `out`, f32, whole or not at all.
pub(super) fn save(path: &Path, shape: &[usize], values: &[f32]) -> Result<()> {
    let bytes = 4 * values.len();
    let mut header = format!(r#"{{"out":{{"dtype":"F32","shape":{shape:?},"data_offsets":[0,{bytes}]}}}}"#);
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = Vec::with_capacity(8 + header.len() + bytes);
    file.extend_from_slice(&(header.len() as u64).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    output::write(path, &file).map_err(|e| anyhow!("--save {}: {e}", path.display()))
}

/// `count` numbers from N(0, 1), the same for each seed.
pub(super) fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        // SplitMix64, of which 24 bits make a number in (0, 1).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    };
    let mut next = || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos();
    std::iter::repeat_with(&mut next).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        save(&path, &[1, 2, 3], &[1.0, -2.0, 3.0, 4.0, 5.5, 6.0]).unwrap();
        let arrays = Arrays::open(&path).unwrap();
        let (extents, values) = arrays.matrix("out", [None, Some(3)]).unwrap();
        assert_eq!((extents, values), ([2, 3], vec![1.0, -2.0, 3.0, 4.0, 5.5, 6.0]));
        let told = arrays.matrix("out", [None, Some(4)]).unwrap_err().to_string();
        assert!(told.contains("'out' of shape [1, 2, 3]") && told.contains("[1, any, 4]"), "{told}");
    }

    #[test]
    fn normal_numbers_are_normal() {
        let values = normal(100_000, 1);
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
