"""Writes the weights of a saved diffusers folder in the other layouts that FLUX models come in.

Library use: `write_layouts(folder, out)`; command: `layouts.py FOLDER OUT [LAYOUT ...]`. All layouts but the fp8 ones
hold exactly the same float32 values. The fp8 ones are compared with a diffusers folder of the dequantised weights,
which is written beside each of them (`reference/`).
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import common  # noqa: F401  (thread and logging settings)

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def load_part(folder):
    """All tensors of one component in float32, sharded or not."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(str(file)))
    return {k: v.float() for k, v in tensors.items()}


# --- names -----------------------------------------------------------------------------------------------------------

TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder": "time_in",
    "time_text_embed.guidance_embedder": "guidance_in",
    "time_text_embed.text_embedder": "vector_in",
    "proj_out": "final_layer.linear",
}
DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}
FUSED_DOUBLE = {
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
}
FUSED_SINGLE = {"linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]}


def rename(name, table):
    for old, new in table.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return None


def flux_to_bfl(tensors):
    """diffusers transformer names to the original single-file names: fused projections, shift before scale."""
    out = {}
    kinds = {
        "transformer_blocks": ("double_blocks", DOUBLE, FUSED_DOUBLE),
        "single_transformer_blocks": ("single_blocks", SINGLE, FUSED_SINGLE),
    }
    for name, t in tensors.items():
        block = re.match(r"((?:single_)?transformer_blocks)\.(\d+)\.(.+)", name)
        if not block:
            if name.startswith("norm_out.linear"):
                scale, shift = t.chunk(2)
                out["final_layer.adaLN_modulation.1" + name[len("norm_out.linear") :]] = torch.cat([shift, scale])
            else:
                new = rename(name, TOP)
                new = re.sub(r"^(time_in|guidance_in|vector_in)\.linear_1", r"\1.in_layer", new)
                out[re.sub(r"^(time_in|guidance_in|vector_in)\.linear_2", r"\1.out_layer", new)] = t
            continue
        kind, index, rest = block.groups()
        prefix, table, fused = kinds[kind]
        new = rename(rest, table)
        if new:
            out[f"{prefix}.{index}.{new}"] = t
            continue
        stem, leaf = rest.rpartition(".")[::2]
        target, parts = next((k, v) for k, v in fused.items() if stem in v)
        if stem == parts[0]:
            rows = [tensors[f"{kind}.{index}.{part}.{leaf}"] for part in parts]
            out[f"{prefix}.{index}.{target}.{leaf}"] = torch.cat(rows)
    return out


def vae_to_bfl(tensors):
    """diffusers VAE names to the original ones; attention projections become 1x1 convolutions."""
    levels = 1 + max(int(m.group(1)) for k in tensors if (m := re.match(r"encoder\.down_blocks\.(\d+)\.", k)))
    out = {}
    for name, t in tensors.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        attention = re.search(r"mid\.attn_1\.(to_q|to_k|to_v|to_out\.0)\.(weight|bias)$", new)
        if attention:
            short = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}[attention[1]]
            new = new[: attention.start()] + f"mid.attn_1.{short}.{attention[2]}"
            t = t[:, :, None, None] if attention[2] == "weight" else t
        out[new] = t
    return out


def clip_to_original(tensors):
    """The names of the published CLIP files: everything under `text_model.`."""
    return {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in tensors.items()}


# --- fp8 -------------------------------------------------------------------------------------------------------------


def to_fp8(t, dtype):
    top = torch.finfo(dtype).max
    return t.clamp(-top, top).to(dtype)


def is_block_matrix(name, t):
    """What fp8 files quantise: the matrices of the transformer blocks."""
    return t.ndim == 2 and re.match(r"(double|single)_blocks\.", name) is not None


def quantise(tensors, dtype, spelling):
    """fp8 weights as (stored tensors, metadata, dequantised float32 tensors).

    spelling None: every tensor cast, no scales; 'old': `scaled_fp8` marker and `scale_weight`; 'metadata':
    `weight_scale` with `_quantization_metadata`; 'comfy_quant': `weight_scale` with a JSON tensor per layer.
    """
    stored, plain, layers = {}, {}, {}
    form = {E4M3: "float8_e4m3fn", E5M2: "float8_e5m2"}[dtype]
    for name, t in tensors.items():
        if spelling is None:
            stored[name] = to_fp8(t, dtype)
            plain[name] = stored[name].float()
        elif is_block_matrix(name, t):
            stem = name.removesuffix(".weight")
            scale = t.abs().max() / torch.finfo(dtype).max
            stored[name] = to_fp8(t / scale, dtype)
            plain[name] = stored[name].float() * scale
            stored[f"{stem}.{'scale_weight' if spelling == 'old' else 'weight_scale'}"] = scale.reshape(
                (1,) if spelling == "old" else ()
            )
            layers[stem] = {"format": form}
            if spelling == "comfy_quant":
                text = json.dumps(layers[stem]).encode()
                stored[f"{stem}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
        else:
            stored[name] = plain[name] = t
    metadata = {}
    if spelling == "old":
        stored["scaled_fp8"] = torch.zeros(2).to(dtype)
    if spelling == "metadata":
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    return stored, metadata, plain


def bfl_to_flux(tensors, names):
    """Inverse of `flux_to_bfl` for the given diffusers names and shapes (used to write the fp8 reference folder)."""
    forward = flux_to_bfl({k: torch.arange(v.shape[0]).float() for k, v in names.items()})
    # Follow the row numbers: each fused tensor's rows come from the diffusers tensors in order.
    out = {}
    for name in names:
        for fused, parts in sources(name, names).items():
            start = sum(names[p].shape[0] for p in parts[: parts.index(name)])
            rows = tensors[fused][start : start + names[name].shape[0]]
            if name.startswith("norm_out.linear"):
                shift, scale = rows.chunk(2)
                rows = torch.cat([scale, shift])
            assert fused in forward
            out[name] = rows.contiguous()
    return out


def sources(name, names):
    """{fused BFL name: [diffusers names in row order]} for one diffusers name."""
    block = re.match(r"((?:single_)?transformer_blocks)\.(\d+)\.(.+)\.(weight|bias)$", name)
    if block:
        kind, index, stem, leaf = block.groups()
        single = kind.startswith("single")
        for target, parts in (FUSED_SINGLE if single else FUSED_DOUBLE).items():
            if stem in parts:
                prefix = "single_blocks" if single else "double_blocks"
                return {f"{prefix}.{index}.{target}.{leaf}": [f"{kind}.{index}.{p}.{leaf}" for p in parts]}
    return {next(iter(flux_to_bfl({name: names[name]}))): [name]}


# --- layouts ---------------------------------------------------------------------------------------------------------


def write(path, tensors, metadata=None, config=None):
    """One safetensors file; `config` (a dict) is embedded only where asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(metadata or {})
    if config is not None:
        meta["config"] = json.dumps(config)
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path), metadata=meta or None)


def prefixed(tensors, prefix):
    return {prefix + k: v for k, v in tensors.items()}


def copy_small(folder, out):
    """Tokenizers and scheduler settings, which single files do not carry."""
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        if (folder / name).is_dir():
            shutil.copytree(folder / name, out / name, dirs_exist_ok=True)


def write_layouts(folder, out, layouts=None, config=False):
    """Write the named layouts (all by default) of the pipeline `folder` below `out`.

    Returns {layout: (folder, weight file, reference folder)}: the reference is the diffusers folder that must give
    the same image.
    """
    folder, out = Path(folder), Path(out)
    names = load_part(folder / "transformer")
    flux, vae = flux_to_bfl(names), vae_to_bfl(load_part(folder / "vae"))
    clip = clip_to_original(load_part(folder / "text_encoder"))
    t5 = load_part(folder / "text_encoder_2")
    settings = json.loads((folder / "transformer" / "config.json").read_text()) if config else None
    done = {}

    def wanted(name):
        return layouts is None or name in layouts

    def text_parts(base, where="text_encoders"):
        write(base / where / "clip_l.safetensors", clip)
        write(base / where / "t5xxl_fp16.safetensors", t5)

    if wanted("bfl"):
        base = out / "bfl"
        write(base / "flux1-krea-dev.safetensors", flux, config=settings)
        write(base / "ae.safetensors", vae)
        text_parts(base, ".")
        copy_small(folder, base)
        done["bfl"] = (base, base / "flux1-krea-dev.safetensors", folder)
    for name, prefix in (("comfy", ""), ("comfy_prefixed", "model.diffusion_model.")):
        if wanted(name):
            base = out / name / "models"
            file = base / "diffusion_models" / "flux1-krea-dev.safetensors"
            write(file, prefixed(flux, prefix), config=settings)
            text_parts(base)
            write(base / "vae" / "ae.safetensors", vae)
            copy_small(folder, base)
            done[name] = (base, file, folder)
    if wanted("all_in_one"):
        base = out / "all_in_one"
        write(
            base / "flux1-krea-dev.safetensors",
            {
                **prefixed(flux, "model.diffusion_model."),
                **prefixed(vae, "vae."),
                **prefixed(clip, "text_encoders.clip_l.transformer."),
                **prefixed(t5, "text_encoders.t5xxl.transformer."),
            },
            config=settings,
        )
        copy_small(folder, base)
        done["all_in_one"] = (base, base / "flux1-krea-dev.safetensors", folder)
    for name, dtype, spelling in (
        ("fp8_e4m3fn", E4M3, None),
        ("fp8_e5m2", E5M2, None),
        ("fp8_scaled_old", E4M3, "old"),
        ("fp8_scaled_old_e5m2", E5M2, "old"),
        ("fp8_scaled_metadata", E4M3, "metadata"),
        ("fp8_scaled_comfy_quant", E4M3, "comfy_quant"),
    ):
        if wanted(name):
            base = out / name / "models"
            stored, metadata, plain = quantise(flux, dtype, spelling)
            file = base / "diffusion_models" / f"flux1-krea-dev_{name}.safetensors"
            write(file, stored, metadata, settings)
            text_parts(base)
            write(base / "vae" / "ae.safetensors", vae)
            copy_small(folder, base)
            reference = out / name / "reference"
            shutil.copytree(folder, reference, dirs_exist_ok=True)
            for old in (reference / "transformer").glob("*.safetensors*"):
                old.unlink()
            write(
                reference / "transformer" / "diffusion_pytorch_model.safetensors",
                bfl_to_flux(plain, names),
                {"format": "pt"},
            )
            done[name] = (base, file, reference)
    return done


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("layouts", nargs="*")
    parser.add_argument("--config", action="store_true", help="embed the transformer's config in the metadata")
    args = parser.parse_args()
    for name, (_, file, reference) in write_layouts(args.folder, args.out, args.layouts or None, args.config).items():
        print(f"{name:24} {file}  (same image as {reference})")


if __name__ == "__main__":
    main()
