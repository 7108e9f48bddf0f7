//! Latents: 16 channels at an eighth of the picture's size, and the tokens the transformer sees, 2×2 latents each.

use std::sync::Arc;

use tensor::{Backend, Tensor};

use crate::noise::Noise;

/// Unpacked, model-space latents on the host: planar `[channels, height, width]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Latents {
    /// 16 for FLUX.1.
    pub channels: usize,
    /// Picture height / 8, even.
    pub height: usize,
    /// Picture width / 8, even.
    pub width: usize,
    /// `channels · height · width` values.
    pub values: Vec<f32>,
}

impl Latents {
    /// Normal noise of a seed, drawn as PyTorch draws `[1, channels, height, width]`.
    pub fn noise(noise: Noise, seed: u64, [channels, height, width]: [usize; 3]) -> Self {
        Self { channels, height, width, values: noise.normal(seed, channels * height * width) }
    }

    /// How many tokens they make in each direction: rows, columns.
    pub fn grid(&self) -> [usize; 2] {
        [self.height / 2, self.width / 2]
    }

    /// Index in `values` of element `e` of the token at `row`, `column`; a token holds (channel, y, x) with x fastest.
    fn index(&self, row: usize, column: usize, e: usize) -> usize {
        let [c, y, x] = [e / 4, (e / 2) % 2, e % 2];
        (c * self.height + 2 * row + y) * self.width + 2 * column + x
    }

    /// Tokens row by row: `[rows · columns, 4 · channels]`.
    pub fn pack(&self, backend: &Arc<dyn Backend>) -> Tensor {
        let [rows, columns] = self.grid();
        let size = 4 * self.channels;
        let mut values = Vec::with_capacity(rows * columns * size);
        for row in 0..rows {
            for column in 0..columns {
                values.extend((0..size).map(|e| self.values[self.index(row, column, e)]));
            }
        }
        Tensor::from_vec(backend, [rows * columns, size], values)
    }

    /// The inverse of [`Latents::pack`]: `tokens [rows · columns, 4 · channels]`.
    pub fn unpack(tokens: &Tensor, [rows, columns]: [usize; 2]) -> Self {
        let size = tokens.shape()[1];
        let packed = tokens.to_vec();
        let mut latents =
            Self { channels: size / 4, height: 2 * rows, width: 2 * columns, values: vec![0.0; packed.len()] };
        for (token, values) in packed.chunks_exact(size).enumerate() {
            for (e, value) in values.iter().enumerate() {
                let index = latents.index(token / columns, token % columns, e);
                latents.values[index] = *value;
            }
        }
        latents
    }

    /// As the autoencoder takes them: `[height, width, channels]`.
    pub fn channels_last(&self, backend: &Arc<dyn Backend>) -> Tensor {
        Tensor::from_vec(backend, [self.channels, self.height, self.width], self.values.clone()).permute(&[1, 2, 0])
    }

    /// A safetensors file with the one tensor `latents`, f32 `[1, channels, height, width]`.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let bytes = 4 * self.values.len();
        let mut header = format!(
            r#"{{"latents":{{"dtype":"F32","shape":[1,{},{},{}],"data_offsets":[0,{bytes}]}}}}"#,
            self.channels, self.height, self.width
        );
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let mut file = Vec::with_capacity(8 + header.len() + bytes);
        file.extend_from_slice(&(header.len() as u64).to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        file.extend(self.values.iter().flat_map(|v| v.to_le_bytes()));
        file
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::safetensors::Header;

    fn counting() -> Latents {
        Latents { channels: 3, height: 4, width: 6, values: (0..72u8).map(f32::from).collect() }
    }

    #[test]
    fn a_token_holds_channel_then_row_then_column() {
        let tokens = counting().pack(&tensor::Device::Reference.open());
        assert_eq!(tokens.shape(), [6, 12].into());
        // Token (0, 1): columns 2, 3 of rows 0, 1 of each channel.
        assert_eq!(tokens.to_vec()[12..24], [2., 3., 8., 9., 26., 27., 32., 33., 50., 51., 56., 57.]);
    }

    #[test]
    fn unpacking_undoes_packing() {
        let latents = counting();
        assert_eq!(Latents::unpack(&latents.pack(&tensor::Device::Reference.open()), latents.grid()), latents);
    }

    #[test]
    fn the_file_can_be_read_back() {
        let file = counting().to_safetensors();
        let header = Header::parse(&file).unwrap();
        assert_eq!(header.tensors["latents"].shape, [1, 3, 4, 6]);
    }
}
