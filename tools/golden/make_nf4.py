"""Matrices quantised by bitsandbytes on a CPU, and what it makes of them again.

Writes crates/flux/tests/golden/nf4.safetensors: for each case the tensors as a checkpoint has them (`CASE.weight`,
`CASE.weight.absmax`, …) and `CASE.expected`, the dequantised matrix in f32. Cases: NF4 and FP4, plain and nested, blocks of
64 and 128 elements.

    make_nf4.py [--seed S] [--out FILE]
"""

import argparse
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=1)
    here = Path(__file__).resolve().parent
    arguments.add_argument("--out", type=Path, default=here / "../../crates/flux/tests/golden/nf4.safetensors")
    arguments = arguments.parse_args()
    generator = torch.Generator().manual_seed(arguments.seed)
    tensors = {}
    for kind in ["nf4", "fp4"]:
        for nested in [False, True]:
            for size in [64, 128]:
                rows, columns = (9, 192) if size == 64 else (6, 256)
                x = torch.randn(rows, columns, generator=generator) * 0.05
                packed, state = bnb.quantize_4bit(x, blocksize=size, compress_statistics=nested, quant_type=kind)
                name = f"{kind}_{'nested' if nested else 'plain'}_{size}"
                tensors[f"{name}.weight"] = packed
                for key, value in state.as_dict(packed=True).items():
                    tensors[f"{name}.weight.{key}"] = value.contiguous()
                tensors[f"{name}.expected"] = bnb.dequantize_4bit(packed, state)
    save_file(tensors, arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
