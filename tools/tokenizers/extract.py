#!/usr/bin/env python3
"""Makes crates/flux/assets/tokenizers from the vocabulary headers of the crate diffusion-rs-sys.

usage: extract.py UNPACKED_CRATE ASSETS

UNPACKED_CRATE is a folder of diffusion-rs-sys 0.1.20 as published (say `cargo vendor` in a project that depends on it).
What is written, and under which licence, is in the README.md beside the assets.
"""

import base64
import json
import pathlib
import re
import struct
import sys
import zlib


def byte_array(header: pathlib.Path) -> bytes:
    """The bytes of the one array in a C header."""
    return bytes(int(byte, 16) for byte in re.findall(r"0x([0-9a-f]{2})", header.read_text()))


def main(crate: pathlib.Path, assets: pathlib.Path) -> None:
    vocab = crate / "stable-diffusion.cpp/src/tokenizers/vocab"

    merges = byte_array(vocab / "clip_merges.hpp")
    lines = merges.decode().rstrip("\n").split("\n")
    assert lines[0] == "#version: 0.2" and len(lines) == 1 + 48_894

    t5 = json.loads(byte_array(vocab / "t5.hpp"))
    pieces, scores = zip(*t5["model"]["vocab"])
    assert t5["model"]["type"] == "Unigram" and t5["model"]["unk_id"] == 2 and len(pieces) == 32_100
    assert not any("\n" in piece for piece in pieces)
    packed_scores = struct.pack(f"<{len(scores)}f", *scores)
    assert struct.unpack(f"<{len(scores)}f", packed_scores) == scores, "the scores are float32"
    [charsmap] = [n for n in t5["normalizer"]["normalizers"] if n["type"] == "Precompiled"]

    for name, data in {
        "clip-merges.txt": merges,
        "t5-pieces.txt": "\n".join(pieces).encode(),
        "t5-scores.f32": packed_scores,
        "t5-charsmap.bin": base64.b64decode(charsmap["precompiled_charsmap"]),
    }.items():
        (assets / f"{name}.zlib").write_bytes(zlib.compress(data, 9))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*map(pathlib.Path, sys.argv[1:]))
