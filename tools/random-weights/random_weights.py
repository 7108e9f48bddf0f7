"""A FLUX.1 [dev] of full size with random weights: for tests of memory and speed where the real weights cannot be.

Writes a folder with

    flux1-dev-TYPE.gguf     the transformer, 11.9 billion parameters, names and metadata as city96's files have them
    t5xxl-TYPE.gguf         T5-XXL's encoder, 4.8 billion, as llama.cpp's, with T5's tokenizer inside
    clip_l.safetensors      CLIP-L's text tower, bf16
    ae.safetensors          the autoencoder, bf16

Numbers are random codes of the format itself: one tile of a few megabytes, written again and again from changing offsets
with scales that keep activations near 1. So writing takes as long as the disk does, and little memory. A picture of it is noise.

    random_weights.py OUT [--transformer q8_0|q4_k|bf16] [--t5 q8_0|q4_k|bf16] [--depth 19] [--single-depth 38] [--t5-layers 24]
    darkroom generate --transformer OUT/flux1-dev-q8_0.gguf --vae OUT/ae.safetensors --clip-l OUT/clip_l.safetensors \\
        --t5xxl OUT/t5xxl-q8_0.gguf --size 256x256 --steps 2 --guidance 3.5 "noise"

The whole set takes 18.2 GB in Q8_0. Needs numpy, nothing else.
"""

import argparse
import json
import shutil
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# ggml's number, elements and bytes of a block, llama.cpp's number of a file that mostly has it.
TYPES = {"f32": (0, 1, 4, 0), "bf16": (30, 1, 2, 32), "q8_0": (8, 32, 34, 7), "q4_k": (12, 256, 144, 14)}
TILE = 1 << 22  # elements


class Tile:
    """A tile of random blocks of one format; `take` gives bytes whose decoded numbers have a standard deviation."""

    def __init__(self, kind, rng):
        self.kind, (_, self.block, self.size, _) = kind, TYPES[kind]
        self.rng = rng
        count = TILE // self.block
        if kind in ("bf16", "f32"):
            self.numbers = rng.standard_normal(TILE, dtype=np.float32)
        elif kind == "q8_0":
            self.blocks = np.empty((count, 34), np.uint8)
            codes = np.clip(np.rint(rng.standard_normal((count, 32), dtype=np.float32) * 40), -127, 127)
            self.blocks[:, 2:] = codes.astype(np.int8).view(np.uint8)
        else:
            self.blocks = np.empty((count, 144), np.uint8)
            # A group's scale and minimum are one random number of six bits; with dmin = 7.5·d it is centred.
            s = rng.integers(32, 64, (count, 8), np.uint8)
            self.blocks[:, 4:8] = self.blocks[:, 8:12] = s[:, :4] | (s[:, 4:] >> 4 << 6)
            self.blocks[:, 12:16] = s[:, 4:] & 15 | s[:, 4:] << 4
            self.blocks[:, 16:] = rng.integers(0, 256, (count, 128), np.uint8)
        self.std = None

    def scaled(self, std):
        if self.std != std:
            self.std = std
            if self.kind == "f32":
                self.bytes = (self.numbers * np.float32(std)).astype("<f4").tobytes()
            elif self.kind == "bf16":
                self.bytes = bf16(self.numbers * np.float32(std))
            elif self.kind == "q8_0":
                self.blocks[:, :2] = np.frombuffer(np.float16(std / 40).tobytes(), np.uint8)
                self.bytes = self.blocks.tobytes()
            else:
                d = std / (48.4 * 4.61)
                self.blocks[:, :2] = np.frombuffer(np.float16(d).tobytes(), np.uint8)
                self.blocks[:, 2:4] = np.frombuffer(np.float16(7.5 * d).tobytes(), np.uint8)
                self.bytes = self.blocks.tobytes()
        return memoryview(self.bytes)

    def write(self, out, elements, std):
        tile, left = self.scaled(std), elements // self.block * self.size
        at = int(self.rng.integers(0, TILE // self.block)) * self.size
        while left:
            piece = tile[at : at + left]
            out.write(piece)
            left -= len(piece)
            at = 0


def bf16(numbers):
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(path, metadata, tensors, kind, rng):
    """`tensors`: name, shape (outermost first), format, standard deviation or None for ones or zeros."""
    tiles = {}
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, (number, value) in metadata.items():
        out += [text(key), struct.pack("<I", number), value]
    offset, places = 0, []
    for name, shape, kind, _, _ in tensors:
        number, block, size, _ = TYPES[kind]
        length = int(np.prod(shape)) // block * size
        out += [text(name), struct.pack("<I", len(shape)), struct.pack(f"<{len(shape)}Q", *reversed(shape))]
        out += [struct.pack("<IQ", number, offset)]
        places.append(length)
        offset += -(-length // 32) * 32
    header = b"".join(out)
    header += bytes(-len(header) % 32)
    room(path, len(header) + offset)
    start = time.monotonic()
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(header)
        for (_, shape, kind, std, constant), length in zip(tensors, places):
            if std is None:
                file.write(np.full(shape, constant, "<f4").tobytes())
            else:
                tiles.setdefault(kind, None)
                tiles[kind] = tiles[kind] or Tile(kind, rng)
                tiles[kind].write(file, int(np.prod(shape)), std)
            file.write(bytes(-length % 32))
    temporary.rename(path)
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB in {time.monotonic() - start:.0f} s")


def room(path, needed):
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        sys.exit(f"{path}: takes {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free")


def u32(value):
    return 4, struct.pack("<I", value)


def f32(value):
    return 6, struct.pack("<f", value)


def boolean(value):
    return 7, bytes([value])


def string(value):
    return 8, text(value)


def array(number, count, values):
    return 9, struct.pack("<IQ", number, count) + values


def linear(name, out, features, kind, gain=1.0, bias=True):
    weights = [(f"{name}.weight", [out, features], kind, gain * features**-0.5, 0.0)]
    return weights + ([(f"{name}.bias", [out], "f32", None, 0.0)] if bias else [])


def transformer(kind, depth, single_depth):
    d, wide = 3072, "bf16"
    t = linear("img_in", d, 64, wide) + linear("txt_in", d, 4096, wide)
    for name, features in [("time_in", 256), ("vector_in", 768), ("guidance_in", 256)]:
        t += linear(f"{name}.in_layer", d, features, wide) + linear(f"{name}.out_layer", d, d, wide)
    for block in range(depth):
        for stream in ["img", "txt"]:
            at = f"double_blocks.{block}.{stream}"
            # Small gates and shifts: the residual stream stays near where it was.
            t += linear(f"{at}_mod.lin", 6 * d, d, kind, 0.2)
            t += linear(f"{at}_attn.qkv", 3 * d, d, kind) + linear(f"{at}_attn.proj", d, d, kind)
            t += linear(f"{at}_mlp.0", 4 * d, d, kind) + linear(f"{at}_mlp.2", d, 4 * d, kind)
            t += [(f"{at}_attn.norm.{n}_norm.scale", [128], "f32", None, 1.0) for n in ["query", "key"]]
    for block in range(single_depth):
        at = f"single_blocks.{block}"
        t += linear(f"{at}.modulation.lin", 3 * d, d, kind, 0.2)
        t += linear(f"{at}.linear1", 7 * d, d, kind) + linear(f"{at}.linear2", d, 5 * d, kind)
        t += [(f"{at}.norm.{n}_norm.scale", [128], "f32", None, 1.0) for n in ["query", "key"]]
    return t + linear("final_layer.linear", 64, d, wide) + linear("final_layer.adaLN_modulation.1", 2 * d, d, wide, 0.2)


def t5(kind, layers):
    d, ff = 4096, 10240
    t = [("token_embd.weight", [32128, d], kind, 1.0, 0.0)]
    for block in range(layers):
        at = f"enc.blk.{block}"
        # Attention has no 1/√d: queries carry it.
        for part, gain in [("q", 0.125), ("k", 1.0), ("v", 1.0), ("o", 1.0)]:
            t += linear(f"{at}.attn_{part}", d, d, kind, gain, False)
        if block == 0:
            t += [(f"{at}.attn_rel_b.weight", [32, 64], "bf16", 1.0, 0.0)]
        t += linear(f"{at}.ffn_gate", ff, d, kind, 1.0, False) + linear(f"{at}.ffn_up", ff, d, kind, 1.0, False)
        t += linear(f"{at}.ffn_down", d, ff, kind, 1.0, False)
        t += [(f"{at}.{norm}.weight", [d], "f32", None, 1.0) for norm in ["attn_norm", "ffn_norm"]]
    return t + [("enc.output_norm.weight", [d], "f32", None, 0.2)]


def t5_metadata(layers, file_type):
    assets = ROOT / "crates/flux/assets/tokenizers"
    asset = lambda name: zlib.decompress((assets / f"{name}.zlib").read_bytes())
    pieces = asset("t5-pieces.txt").decode().split("\n")
    scores = np.frombuffer(asset("t5-scores.f32"), "<f4")
    special = {"<unk>": 2, "<pad>": 3, "</s>": 3}
    kinds = [special.get(p, 4 if p.startswith("<extra_id_") else 1) for p in pieces]
    unused = 32128 - len(pieces)
    pieces += [f"[PAD{i}]" for i in range(len(pieces), 32128)]
    scores = np.concatenate([scores, np.full(unused, -1000, "<f4")])
    kinds += [5] * unused
    charsmap = asset("t5-charsmap.bin")
    sizes = {
        "context_length": 512, "embedding_length": 4096, "feed_forward_length": 10240, "block_count": layers,
        "attention.head_count": 64, "attention.key_length": 64, "attention.value_length": 64,
        "attention.relative_buckets_count": 32,
    }
    return {
        "general.architecture": string("t5encoder"),
        "general.file_type": u32(file_type),
        "general.quantization_version": u32(2),
        **{f"t5encoder.{key}": u32(value) for key, value in sizes.items()},
        "t5encoder.attention.layer_norm_epsilon": f32(1e-6),
        "t5encoder.attention.layer_norm_rms_epsilon": f32(1e-6),
        "tokenizer.ggml.model": string("t5"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": array(8, len(pieces), b"".join(map(text, pieces))),
        "tokenizer.ggml.scores": array(6, len(scores), scores.astype("<f4").tobytes()),
        "tokenizer.ggml.token_type": array(5, len(kinds), np.array(kinds, "<i4").tobytes()),
        "tokenizer.ggml.precompiled_charsmap": array(0, len(charsmap), charsmap),
        "tokenizer.ggml.add_space_prefix": boolean(True),
        "tokenizer.ggml.remove_extra_whitespaces": boolean(True),
        "tokenizer.ggml.padding_token_id": u32(0),
        "tokenizer.ggml.eos_token_id": u32(1),
        "tokenizer.ggml.unknown_token_id": u32(2),
        "tokenizer.ggml.add_bos_token": boolean(False),
        "tokenizer.ggml.add_eos_token": boolean(True),
    }


def clip_l():
    t = {
        "text_model.embeddings.token_embedding.weight": [49408, 768],
        "text_model.embeddings.position_embedding.weight": [77, 768],
    }
    for layer in range(12):
        at = f"text_model.encoder.layers.{layer}"
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"]:
            t |= {f"{at}.self_attn.{part}.weight": [768, 768], f"{at}.self_attn.{part}.bias": [768]}
        for part, out, features in [("fc1", 3072, 768), ("fc2", 768, 3072)]:
            t |= {f"{at}.mlp.{part}.weight": [out, features], f"{at}.mlp.{part}.bias": [out]}
        for norm in ["layer_norm1", "layer_norm2"]:
            t |= {f"{at}.{norm}.weight": [768], f"{at}.{norm}.bias": [768]}
    return t | {"text_model.final_layer_norm.weight": [768], "text_model.final_layer_norm.bias": [768]}


def autoencoder():
    lines = (ROOT / "crates/flux/tests/golden/bfl_shapes.txt").read_text().splitlines()
    shapes = (line.rsplit(" [", 1) for line in lines if line.startswith(("encoder.", "decoder.")))
    return {name: json.loads(f"[{shape}") for name, shape in shapes}


def safetensors(path, shapes, rng):
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    room(path, end)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name, shape in shapes.items():
            if len(shape) > 1:
                fan_in = shape[1] if "embedding" in name else int(np.prod(shape[1:]))
                file.write(bf16(rng.standard_normal(shape, dtype=np.float32) * np.float32(fan_in**-0.5)))
            else:
                file.write(bf16(np.full(shape, 1.0 if name.endswith("weight") else 0.0, np.float32)))
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--transformer", choices=["q8_0", "q4_k", "bf16", "none"], default="q8_0")
    arguments.add_argument("--t5", choices=["q8_0", "q4_k", "bf16", "none"], default="q8_0")
    arguments.add_argument("--depth", type=int, default=19)
    arguments.add_argument("--single-depth", type=int, default=38)
    arguments.add_argument("--t5-layers", type=int, default=24)
    arguments.add_argument("--seed", type=int, default=1)
    arguments = arguments.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    if arguments.transformer != "none":
        kind = arguments.transformer
        metadata = {
            "general.architecture": string("flux"),
            "general.quantization_version": u32(2),
            "general.file_type": u32(TYPES[kind][3]),
        }
        tensors = transformer(kind, arguments.depth, arguments.single_depth)
        gguf(arguments.out / f"flux1-dev-{kind}.gguf", metadata, tensors, kind, rng)
    if arguments.t5 != "none":
        kind = arguments.t5
        metadata = t5_metadata(arguments.t5_layers, TYPES[kind][3])
        gguf(arguments.out / f"t5xxl-{kind}.gguf", metadata, t5(kind, arguments.t5_layers), kind, rng)
    safetensors(arguments.out / "clip_l.safetensors", clip_l(), rng)
    safetensors(arguments.out / "ae.safetensors", autoencoder(), rng)


if __name__ == "__main__":
    main()
