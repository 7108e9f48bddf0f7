"""Blocks of every quantised GGUF format, and what PyPI `gguf`'s reference makes of them.

Writes crates/tensor/tests/golden/blocks.bin: for each format its name (8 bytes), the number of blocks (u32), the blocks, and
their elements as f32; little-endian. Some blocks are quantised normal numbers, where `gguf` can quantise, the others random
bytes whose f16 scales are ordinary, extreme, subnormal, zero, negative or infinite.

    make_blocks.py [--seed S] [--blocks N] [--out FILE]
"""

import argparse
import struct
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Q
from gguf.quants import dequantize, quantize

# Where the f16 numbers of a block are.
SCALES = {
    "Q8_0": [0], "Q5_1": [0, 2], "Q5_0": [0], "Q4_1": [0, 2], "Q4_0": [0], "Q6_K": [208], "Q5_K": [0, 2], "Q4_K": [0, 2],
    "Q3_K": [108], "Q2_K": [80, 82], "IQ4_NL": [0], "IQ4_XS": [0],
}
EXTREME = np.array([65504, -65504, 6e-8, -6.1e-5, 6.1e-5, 0.0, -0.0, np.inf, 1.0, 3e-6], np.float16)


def blocks_of(name, count, rng):
    elements, size = GGML_QUANT_SIZES[Q[name]]
    blocks = rng.integers(0, 256, (count, size), np.uint8)
    for at in SCALES[name]:
        scales = (rng.standard_normal(count) * 10.0 ** rng.uniform(-5, 1, count)).astype(np.float16)
        scales[: count // 4] = rng.choice(EXTREME, count // 4)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    try:
        made = count // 3
        numbers = (rng.standard_normal((made, elements)) * 0.03).astype(np.float32)
        blocks[count - made :] = quantize(numbers, Q[name])
    except NotImplementedError:
        pass
    return blocks


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--blocks", type=int, default=0, help="of each format (default: 6 of 256 elements, 16 of 32)")
    here = Path(__file__).resolve().parent
    arguments.add_argument("--out", type=Path, default=here / "../../crates/tensor/tests/golden/blocks.bin")
    arguments = arguments.parse_args()
    rng = np.random.default_rng(arguments.seed)
    out = b""
    for name in SCALES:
        elements, _ = GGML_QUANT_SIZES[Q[name]]
        blocks = blocks_of(name, arguments.blocks or (6 if elements == 256 else 16), rng)
        with np.errstate(all="ignore"):
            values = dequantize(blocks, Q[name]).astype("<f4")
        out += struct.pack("<8sI", name.encode(), len(blocks)) + blocks.tobytes() + values.tobytes()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(out)
    print(f"{arguments.out}: {len(out)} bytes")


if __name__ == "__main__":
    main()
