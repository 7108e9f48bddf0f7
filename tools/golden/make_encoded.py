"""Numbers in blocks of 32, and what PyPI `gguf`'s reference writes for them in the formats it can quantise.

Writes crates/tensor/tests/golden/encoded.bin: the number of blocks (u32), their elements as f32, and the blocks' bytes in
Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, in this order; little-endian. Beside normal numbers there are zeros, constants, two extremes of one
size, one sign only, ties between codes, numbers whose scale is a subnormal f16, and large ones.

    make_encoded.py [--seed S] [--blocks N] [--out FILE]
"""

import argparse
import struct
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType as Q
from gguf.quants import quantize

FORMATS = ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


def numbers(count, rng):
    x = rng.standard_normal((count, 32)) * 10.0 ** rng.uniform(-4, 2, (count, 1))
    special = [
        np.zeros(32),
        np.full(32, -0.375),
        np.r_[3.0, -3.0, rng.uniform(-1, 1, 30)],
        np.r_[-3.0, 3.0, rng.uniform(-1, 1, 30)],
        rng.uniform(1, 2, 32),
        -rng.uniform(1, 2, 32),
        np.arange(32) * 0.5 - 8.0,
        np.r_[127.0, rng.integers(-126, 126, 31) + 0.5],
        rng.uniform(-1e-5, 1e-5, 32),
        rng.uniform(-1e-8, 1e-8, 32),
        np.r_[np.zeros(31), 1e-3],
        rng.uniform(-30000, 30000, 32),
    ]
    return np.concatenate([np.stack(special), x]).astype("<f4")


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--blocks", type=int, default=20, help="of normal numbers")
    here = Path(__file__).resolve().parent
    arguments.add_argument("--out", type=Path, default=here / "../../crates/tensor/tests/golden/encoded.bin")
    arguments = arguments.parse_args()
    x = numbers(arguments.blocks, np.random.default_rng(arguments.seed))
    out = struct.pack("<I", len(x)) + x.tobytes()
    with np.errstate(all="ignore"):
        out += b"".join(quantize(x, Q[name]).tobytes() for name in FORMATS)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(out)
    print(f"{arguments.out}: {len(out)} bytes")


if __name__ == "__main__":
    main()
