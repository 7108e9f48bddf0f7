"""Writes the fuzzers' seeds: small good headers of each kind that published files have, and each kind of lie."""

import json
import struct
from pathlib import Path

OUT = Path(__file__).parent / "seeds" / "safetensors_header"


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file(header, data=0, pad=0, length=None):
    text = (header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))) + " " * pad
    raw = text.encode("utf-8") if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)


SEEDS = {
    "empty_header": file({}),
    "all_weight_types": file(
        {
            "__metadata__": {"format": "pt", "config": '{"hidden_size":8}'},
            "a.weight": tensor("F32", [2, 3], 0, 24),
            "a.bias": tensor("F16", [2], 24, 28),
            "b": tensor("BF16", [1, 1, 1, 2], 28, 32),
            "c.weight": tensor("F8_E4M3", [3], 32, 35),
            "c.scale_weight": tensor("F32", [], 35, 39),
            "d": tensor("F8_E5M2", [1], 39, 40),
        },
        40,
        5,
    ),
    "other_types": file({n: tensor(n, [0], 0, 0) for n in ("BOOL", "U8", "I64", "F64", "C64", "F4", "F8_E8M0")}),
    "nested_metadata": file({"__metadata__": {"a": {"b": [1, 2]}}}),
    "escapes": file('{"\\u0061\\ud83e\\udd8a\\n":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4),
    "twice": file('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', 2),
    "overlap": file({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 2, 6)}, 8),
    "overflow": file({"a": tensor("F32", [2**63, 8], 0, 4)}, 4),
    "terabytes": file({"a": tensor("F32", [2**40], 0, 2**42)}, 4),
    "negative": file({"a": tensor("F32", [-1], 0, 4)}, 4),
    "reversed": file({"a": tensor("F32", [1], 4, 0)}, 4),
    "huge_length": file({}, length=2**64 - 1),
    "long_length": file({}, length=1000),
    "not_utf8": struct.pack("<Q", 5) + b'{"\xff"}',
    "deep": file("[" * 200 + "]" * 200),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(16),
    "extra_fields": file({"a": {**tensor("F32", [1], 0, 4), "x": None}}, 4),
}


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def value(kind, content):
    """A value of the metadata: its type's number and its bytes."""
    return struct.pack("<I", kind) + content


def array(kind, count, content):
    return value(9, struct.pack("<IQ", kind, count) + content)


def info(name, shape, ggml_type, offset):
    """A tensor, its extents innermost first."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, ggml_type, offset)


def gguf(metadata=None, tensors=(), data=0, version=3, counts=None, alignment=32):
    metadata = metadata or {}
    counts = counts or (len(tensors), len(metadata))
    out = b"GGUF" + struct.pack("<IQQ", version, *counts)
    out += b"".join(text(key) + content for key, content in metadata.items()) + b"".join(tensors)
    return out + bytes(-len(out) % alignment) + bytes(data)


FLUX = {"general.architecture": value(8, text("flux")), "general.quantization_version": value(4, struct.pack("<I", 2))}
EVERY = {
    f"k{kind}": value(kind, bytes(size))
    for kind, size in {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}.items()
}
TYPES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84), 11: (256, 110),
         12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136), 30: (1, 2)}  # fmt: skip

GGUF = {
    "empty": gguf(),
    "version_2": gguf(FLUX, [info("a", [2], 0, 0)], 8, version=2),
    "version_1": gguf(version=1),
    "big_endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "every_value": gguf(EVERY),
    "lists": gguf(
        {
            "tokens": array(8, 2, text("a") + text("bc")),
            "scores": array(6, 2, bytes(8)),
            "types": array(5, 2, bytes(8)),
            "map": array(0, 3, b"abc"),
            "of_lists": array(9, 1, struct.pack("<IQ", 0, 1) + b"x"),
        }
    ),
    **{
        f"type_{kind}": gguf(FLUX, [info("a.weight", [block, 2], kind, 0), info("b", [1], 0, -(-2 * size // 32) * 32)], 1024)
        for kind, (block, size) in TYPES.items()
    },
    "aligned_64": gguf({"general.alignment": value(4, struct.pack("<I", 64))}, [info("a", [3], 0, 64)], 128, alignment=64),
    "aligned_3": gguf({"general.alignment": value(4, struct.pack("<I", 3))}, [info("a", [3], 0, 0)], 64),
    "flattened": gguf(
        {"comfy.gguf.orig_shape.a": array(5, 2, struct.pack("<2i", 4, 2))}, [info("a", [8], 0, 0)], 64
    ),
    "twice": gguf(FLUX, [info("a", [1], 0, 0), info("a", [1], 0, 32)], 64),
    "overlap": gguf(FLUX, [info("a", [16], 0, 0), info("b", [16], 0, 32)], 128),
    "part_of_a_block": gguf(FLUX, [info("a", [33], 8, 0)], 128),
    "overflow": gguf(FLUX, [info("a", [2**63, 8], 0, 0)], 64),
    "terabytes": gguf(FLUX, [info("a", [2**40], 0, 0)], 64),
    "far_offset": gguf(FLUX, [info("a", [1], 0, 2**64 - 32)], 64),
    "odd_offset": gguf(FLUX, [info("a", [1], 0, 5)], 64),
    "many_tensors": gguf(FLUX, [], 64, counts=(2**64 - 1, 2)),
    "many_values": gguf(FLUX, [], 64, counts=(0, 2**63)),
    "long_list": gguf({"k": array(6, 2**62, b"")}),
    "deep_list": gguf({"k": array(9, 1, struct.pack("<IQ", 9, 1) * 40)}),
    "long_key": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60),
    "unknown_type": gguf(FLUX, [info("a", [1], 99, 0)], 64),
    "many_extents": gguf(FLUX, [info("a", [1] * 9, 0, 0)], 64),
}


def state(sizes, **changes):
    """Sizes of the tensors beside it (codes / 32, scales, scales of scales, nested), and the state."""
    good = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 64]}
    return bytes(sizes) + json.dumps({**good, **changes}).encode()


NESTED = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}
STATES = {
    "plain": state([4, 4, 0, 0]),
    "nested": state([4, 4, 1, 1], **NESTED),
    "fp4": state([4, 4, 0, 0], quant_type="fp4"),
    "blocks_of_128": state([4, 2, 0, 0], blocksize=128),
    "convolution": state([4, 4, 0, 0], shape=[1, 64, 2, 2]),
    "no_blocks": state([4, 4, 0, 0], blocksize=0),
    "overflow": state([4, 4, 0, 0], shape=[2**63, 2**63]),
    "empty": state([0, 0, 0, 0], shape=[0, 2**40]),
    "no_nested_blocks": state([4, 4, 1, 1], **{**NESTED, "nested_blocksize": 0}),
    "far_offset": state([4, 4, 1, 1], **{**NESTED, "nested_offset": 1e300}),
}

if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for name, content in SEEDS.items():
        (OUT / name).write_bytes(content)
        # The target also takes its input as the text of a header.
        if len(content) > 16:
            (OUT / f"{name}.json").write_bytes(content[8:].rstrip(b"\0"))
    for folder, seeds in {"gguf_header": GGUF, "four_bits_state": STATES}.items():
        out = OUT.parent / folder
        out.mkdir(exist_ok=True)
        for name, content in seeds.items():
            (out / name).write_bytes(content)
            # That target also takes its input as what follows magic and version.
            if folder == "gguf_header" and len(content) > 16:
                (out / f"{name}.rest").write_bytes(content[8:])
