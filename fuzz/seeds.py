"""Writes the fuzzer's seeds: small good headers of each kind that published files have, and each kind of lie."""

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

if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for name, content in SEEDS.items():
        (OUT / name).write_bytes(content)
        # The target also takes its input as the text of a header.
        if len(content) > 16:
            (OUT / f"{name}.json").write_bytes(content[8:].rstrip(b"\0"))
