"""Random weights for comparing engines: one set of files that all of them read. Made once, kept, and made again only if missing.

Widths are FLUX.1's own, depths are not: the transformer has 2 double and 4 single blocks (1.31 of 11.9 billion parameters), T5-XXL 2 of 24
layers, the autoencoder is whole. Everything is stored as bf16. Weights are N(0, 0.02) and norms' scales 1 + N(0, 0.05), so that
activations neither die nor explode and no bias or scale can be forgotten without being seen in the result.
"""

import json
import math
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file

TRANSFORMER = dict(patch_size=1, in_channels=64, num_layers=2, num_single_layers=4, attention_head_dim=128, num_attention_heads=24,
                   joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=(16, 56, 56))
VAE = dict(in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
           down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=32, sample_size=1024,
           scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
T5 = dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=2, num_heads=64, vocab_size=32128, relative_attention_num_buckets=32,
          relative_attention_max_distance=128, feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-6, dropout_rate=0.0)
TEXT_TOKENS = 512
# Exact in bf16 after the models' factor of 1000, so that no engine is blamed for rounding a question.
SIGMA, GUIDANCE = 0.5, 4.0


class Files:
    """Where everything lies in a work folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.transformer = self.folder / "transformer"  # diffusers' layout
        self.transformer_file = self.transformer / "diffusion_pytorch_model.safetensors"
        self.bfl = self.folder / "mid.safetensors"  # the same numbers under BFL's names
        self.vae = self.folder / "vae"
        self.vae_file = self.vae / "diffusion_pytorch_model.safetensors"
        self.t5 = self.folder / "t5"
        self.t5_file = self.t5 / "model.safetensors"
        self.clip = self.folder / "clip_l.safetensors"
        self.results = self.folder / "results"

    def inputs(self, side):
        return self.folder / f"inputs-{side}.safetensors"

    def latents(self, side):
        return self.folder / f"latents-{side}.safetensors"

    @property
    def t5_ids(self):
        return self.folder / "t5-ids.safetensors"


def _save(tensors, path):
    """Whole or not at all: a run that was stopped leaves nothing that looks finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.rename(path)


def _random(shapes, seed, std=0.02):
    """bf16 tensors of these shapes. One-dimensional `weight`s are scales of norms; all other tensors are N(0, std)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        values = 1 + 0.05 * values if len(shape) == 1 and name.endswith("weight") else std * values
        tensors[name] = values.to(torch.bfloat16)
    return tensors


def _shapes(build):
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build().state_dict().items()}


def to_bfl(tensors, double=TRANSFORMER["num_layers"], single=TRANSFORMER["num_single_layers"]):
    """diffusers' names → BFL's: q, k, v stacked, the last modulation's halves swapped."""
    out = {}

    def put(theirs, *ours):
        for kind in ("weight", "bias"):
            parts = [tensors[f"{name}.{kind}"] for name in ours if f"{name}.{kind}" in tensors]
            if parts:
                out[f"{theirs}.{kind}"] = torch.cat(parts) if len(parts) > 1 else parts[0]

    def scale(theirs, ours):
        out[f"{theirs}.scale"] = tensors[f"{ours}.weight"]

    put("img_in", "x_embedder")
    put("txt_in", "context_embedder")
    for theirs, ours in (("time_in", "timestep_embedder"), ("guidance_in", "guidance_embedder"), ("vector_in", "text_embedder")):
        put(f"{theirs}.in_layer", f"time_text_embed.{ours}.linear_1")
        put(f"{theirs}.out_layer", f"time_text_embed.{ours}.linear_2")
    for i in range(double):
        a, b = f"double_blocks.{i}", f"transformer_blocks.{i}"
        for stream, qkv, proj, norm, suffix, mlp in (
            ("img", ("to_q", "to_k", "to_v"), "to_out.0", "norm1", "", "ff"),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "norm1_context", "added_", "ff_context"),
        ):
            put(f"{a}.{stream}_mod.lin", f"{b}.{norm}.linear")
            put(f"{a}.{stream}_attn.qkv", *(f"{b}.attn.{name}" for name in qkv))
            put(f"{a}.{stream}_attn.proj", f"{b}.attn.{proj}")
            scale(f"{a}.{stream}_attn.norm.query_norm", f"{b}.attn.norm_{suffix}q")
            scale(f"{a}.{stream}_attn.norm.key_norm", f"{b}.attn.norm_{suffix}k")
            put(f"{a}.{stream}_mlp.0", f"{b}.{mlp}.net.0.proj")
            put(f"{a}.{stream}_mlp.2", f"{b}.{mlp}.net.2")
    for i in range(single):
        a, b = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        put(f"{a}.modulation.lin", f"{b}.norm.linear")
        put(f"{a}.linear1", *(f"{b}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")))
        put(f"{a}.linear2", f"{b}.proj_out")
        scale(f"{a}.norm.query_norm", f"{b}.attn.norm_q")
        scale(f"{a}.norm.key_norm", f"{b}.attn.norm_k")
    put("final_layer.linear", "proj_out")
    for kind in ("weight", "bias"):
        shift, factor = tensors[f"norm_out.linear.{kind}"].chunk(2)[::-1]
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, factor])
    assert sum(t.numel() for t in out.values()) == sum(t.numel() for t in tensors.values()), "a tensor was left out"
    return out


def make_transformer(files):
    if files.transformer_file.exists() and files.bfl.exists():
        return
    from diffusers import FluxTransformer2DModel

    tensors = _random(_shapes(lambda: FluxTransformer2DModel(**TRANSFORMER)), seed=1)
    config = {"_class_name": "FluxTransformer2DModel", **TRANSFORMER}
    files.transformer.mkdir(parents=True, exist_ok=True)
    (files.transformer / "config.json").write_text(json.dumps(config, indent=1))
    _save(tensors, files.transformer_file)
    _save({name: t.contiguous() for name, t in to_bfl(tensors).items()}, files.bfl)


def make_vae(files):
    if files.vae_file.exists():
        return
    from diffusers import AutoencoderKL

    # As PyTorch begins training: convolutions keep the size of what passes through them.
    torch.manual_seed(2)
    vae = AutoencoderKL(**VAE)
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in vae.state_dict().items()}
    files.vae.mkdir(parents=True, exist_ok=True)
    (files.vae / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **VAE}, indent=1))
    _save(tensors, files.vae_file)


def make_t5(files):
    if files.t5_file.exists():
        return
    from transformers import T5Config, T5EncoderModel

    shapes = _shapes(lambda: T5EncoderModel(T5Config(**T5)))
    shapes.pop("encoder.embed_tokens.weight", None)  # the same as shared.weight
    tensors = _random(shapes, seed=3)
    for name, t in tensors.items():
        # T5's own beginning: no 1/√d in its attention, so queries are small; the table's rows are N(0, 1).
        if name == "shared.weight":
            t *= 1 / 0.02
        elif name.endswith("SelfAttention.q.weight"):
            t *= 1 / math.sqrt(T5["d_kv"])
    files.t5.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["T5EncoderModel"], "model_type": "t5", **T5}
    (files.t5 / "config.json").write_text(json.dumps(config, indent=1))
    _save(tensors, files.t5_file)


def make_clip(files):
    """CLIP-L's text tower: an engine that has no call for a step alone wants a whole pipeline's text encoder."""
    if files.clip.exists():
        return
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    shapes = _shapes(lambda: CLIPTextModel(config))
    shapes = {name if name.startswith("text_model.") else f"text_model.{name}": shape for name, shape in shapes.items()}
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith("position_ids")}
    _save(_random(shapes, seed=5), files.clip)


def make_inputs(files, side):
    """What one step at `side`×`side` pixels is asked, named as BFL names it."""
    path = files.inputs(side)
    if path.exists():
        return
    rows = side // 16
    generator = torch.Generator().manual_seed(side)
    ids = torch.zeros(rows, rows, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(rows)[None, :]
    # Rounded to bf16: all engines see the same numbers, whatever they compute in.
    normal = lambda *shape: torch.randn(shape, generator=generator).to(torch.bfloat16).float()
    _save({
        "img": normal(1, rows * rows, 64),
        "txt": 0.2 * normal(1, TEXT_TOKENS, 4096).to(torch.bfloat16).float(),
        "y": normal(1, 768),
        "timesteps": torch.tensor([SIGMA]),
        "guidance": torch.tensor([GUIDANCE]),
        "img_ids": ids.reshape(1, rows * rows, 3).contiguous(),
        "txt_ids": torch.zeros(1, TEXT_TOKENS, 3),
    }, path)


def make_latents(files, side):
    """Latents as the transformer leaves them, `[1, 16, side/8, side/8]`."""
    path = files.latents(side)
    if not path.exists():
        generator = torch.Generator().manual_seed(side + 1)
        _save({"latents": torch.randn((1, 16, side // 8, side // 8), generator=generator).to(torch.bfloat16).float()}, path)


def make_t5_ids(files):
    if not files.t5_ids.exists():
        generator = torch.Generator().manual_seed(4)
        ids = torch.randint(0, T5["vocab_size"], (TEXT_TOKENS,), generator=generator, dtype=torch.int32)
        _save({"ids": ids}, files.t5_ids)


def make_all(files):
    make_transformer(files)
    make_vae(files)
    make_t5(files)
    make_clip(files)
    for side in (256, 512, 1024):
        make_inputs(files, side)
    for side in (512, 1024):
        make_latents(files, side)
    make_t5_ids(files)
    describe(files)


def describe(files):
    """Writes the list of the files beside them."""
    lines = [
        "Random weights for comparing engines, made by bench/files.py. bf16 unless said otherwise.",
        "",
        f"transformer/  FLUX.1's widths, {TRANSFORMER['num_layers']} double + {TRANSFORMER['num_single_layers']} single blocks, diffusers' layout",
        "mid.safetensors  the same numbers under BFL's names",
        "vae/  FLUX.1's autoencoder, whole, diffusers' layout",
        f"t5/  T5-XXL's encoder, {T5['num_layers']} layers, transformers' layout",
        f"inputs-SIDE.safetensors  img, txt, y, timesteps ({SIGMA}), guidance ({GUIDANCE}), img_ids, txt_ids; f32",
        "latents-SIDE.safetensors  latents [1, 16, SIDE/8, SIDE/8]; f32",
        "t5-ids.safetensors  ids [512], int32",
    ]
    (files.folder / "README").write_text("\n".join(lines) + "\n")


def header(path):
    """Names → entries of a safetensors file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return {name: entry for name, entry in json.loads(file.read(length)).items() if name != "__metadata__"}


def parameters(path):
    return sum(math.prod(entry["shape"]) for entry in header(path).values())
