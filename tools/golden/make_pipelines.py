"""Complete tiny FluxPipeline folders with the images the reference makes from them.

Each folder is what `FluxPipeline.save_pretrained` writes, plus `case.json` (the request) and `expected.safetensors`
(`latents`, `pixels` and the text results on the way). The expected values come from the folder as loaded back in
float32. Every request is also checked to depend on its prompt, guidance, negative prompt and length, so that an
engine that ignores one of them cannot pass.
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

from common import FIXTURES, gen, rel_l2, save
from random_pipeline import Case, Spec, build, case_json, load, rendered_size, run

import torch  # noqa: E402

# Smallest change of the latents that counts as "this input matters": ten times the acceptance bound of 1e-3.
FELT = 1e-2

DYNAMIC = dict(use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15)
LONG = "two foxes crossing the garden of Málaga, oil painting, very detailed; don't blur: with strong wind! " * 3

CASES = {
    # The smallest network; a schnell-like scheduler, no guidance input, the default text length of 512.
    "one_one_schnell": (
        Spec(
            seed=100,
            guidance_embeds=False,
            clip_eos_2=False,
            t5_ff="relu",
            t5_d_kv=5,
            t5_heads=3,
            heads=1,
            clip_act="gelu",
            latent=3,
            vae_channels=(4, 6),
        ),
        Case("a cat sleeping in a quiet harbour", width=40, height=28, steps=4, seed=7, max_sequence_length=512),
        {},
    ),
    # More blocks, a dynamic schedule on another line than FLUX's, head dimension 8.
    "three_two_dynamic": (
        Spec(
            seed=200,
            double=3,
            single=2,
            heads=2,
            head_dim=8,
            axes=(2, 2, 4),
            clip_layers=3,
            t5_layers=3,
            scheduler=dict(DYNAMIC, base_shift=0.3, max_shift=1.9, base_image_seq_len=16, max_image_seq_len=300),
        ),
        Case(
            "an old lighthouse seen from above, bokeh; f/1.8",
            width=48,
            height=64,
            steps=5,
            guidance=4.5,
            seed=1234,
            max_sequence_length=40,
        ),
        {},
    ),
    # Four VAE levels with quant convolutions, a static shift of 3, head dimension 32, weights stored in float16.
    "four_level_vae_f16": (
        Spec(
            seed=300,
            heads=1,
            head_dim=32,
            axes=(8, 12, 12),
            vae_channels=(4, 4, 6, 6),
            vae_quant=True,
            latent=8,
            scheduler=dict(shift=3.0),
        ),
        Case(
            "a red bicycle, in the style of 1920",
            width=96,
            height=64,
            steps=3,
            guidance=2.7,
            seed=42,
            max_sequence_length=16,
        ),
        dict(save_dtype=torch.float16),
    ),
    # FLUX's own head dimension and axes; weights stored in bfloat16, computed in float32.
    "head_dim_128_bf16": (
        Spec(
            seed=400,
            heads=1,
            head_dim=128,
            axes=(16, 56, 56),
            guidance_embeds=False,
            vae_channels=(4, 4, 4),
            scheduler=DYNAMIC,
        ),
        Case(
            "seven candles glowing behind a glass house",
            width=64,
            height=40,
            steps=3,
            guidance=4.5,
            seed=3,
            max_sequence_length=20,
        ),
        dict(save_dtype=torch.bfloat16),
    ),
    # Classifier-free guidance with a negative prompt on a model without guidance input.
    "true_cfg": (
        Spec(
            seed=500,
            guidance_embeds=False,
            heads=2,
            head_dim=8,
            axes=(4, 2, 2),
            double=1,
            single=2,
            scheduler=DYNAMIC,
            clip_eos_2=False,
        ),
        Case(
            "a woman's hat",
            "watercolour, the sea",
            true_cfg=2.5,
            width=32,
            height=36,
            steps=4,
            seed=99,
            max_sequence_length=24,
        ),
        {},
    ),
    # The same with guidance input, an empty negative prompt and a sharded transformer.
    "true_cfg_empty_sharded": (
        Spec(seed=600, double=2, single=1, heads=2, head_dim=8, axes=(4, 2, 2), scheduler=dict(shift=1.7)),
        Case(
            "wild geese waiting for the market",
            "",
            true_cfg=1.6,
            width=36,
            height=32,
            steps=3,
            guidance=5.0,
            seed=18446744073709551615,
            max_sequence_length=31,
        ),
        dict(max_shard_size="60KB"),
    ),
    # Text outside ASCII through T5's full normalization table; a seed above 2^32; linear time shift with a terminal.
    "non_ascii_terminal": (
        Spec(
            seed=700,
            heads=1,
            t5_charsmap="full",
            vae_mid_attention=False,
            clip_layers=1,
            t5_layers=1,
            t5_extra_ids=100,
            scheduler=dict(DYNAMIC, shift_terminal=0.05, time_shift_type="linear"),
        ),
        Case(
            "Ａ ﬁne café № ½, 東京 の 夜 🦊 – naïve Москва\u3000зимой  “hat”",
            width=32,
            height=32,
            steps=4,
            guidance=3.5,
            seed=4294967338,
            max_sequence_length=48,
        ),
        {},
    ),
    # A size that is no multiple of a token, and a prompt that both tokenizers cut.
    "odd_size_truncated": (
        Spec(
            seed=800,
            heads=2,
            head_dim=8,
            axes=(2, 4, 2),
            vae_layers=2,
            vae_channels=(6, 9),
            vae_groups=3,
            latent=5,
            t5_charsmap="small",
            scheduler=dict(DYNAMIC, shift_terminal=0.1),
        ),
        Case(LONG.strip(), width=37, height=26, steps=4, guidance=1.0, seed=2024, max_sequence_length=32),
        {},
    ),
}


TEXTS = [
    "",
    " ",
    "\n",
    "a",
    "a cat",
    " a  cat\t\nsleeping ",
    "A CAT Sleeping",
    "it's, don't they'll we've I'm he'd",
    "35mm f/1.8 1920",
    "café",
    "cafe\u0301",
    "naïve Zürich Málaga ÅNGSTRÖM",
    "Москва зимой",
    "東京 の 夜",
    "東京の夜",
    "🦊",
    "🦊  🦊 fox",
    "ﬁne ½ ① Ａ Ｂ",
    "a\u00a0cat",
    "a\u3000cat",
    "a\u200bcat",
    "a \u200b cat",
    "a\u2028cat",
    "▁a ▁ cat",
    "“hat” – ‘old’ … №",
    "(a cat:1.2) [b] {c}",
    '"quoted", with: strong; wind!?',
    "a </s> cat",
    "a</s>cat",
    "<pad>",
    "<unk> b",
    "<extra_id_0> cat",
    "a <extra_id_1>b",
    "<|endoftext|>",
    "a cat<|endoftext|> b",
    "<|startoftext|>a cat",
    "don't 'S 'LL",
    "zzzzqqqq xxjjkk",
    "a,b.c/d",
    "İstanbul ß ǅ ﬀ",
    "e\u0301\u0323 \u1e69",
    "क्षि ไทย עברית العربية",
    "\x00a\x01",
    "two foxes crossing the snowy mountains, oil painting, very detailed",
]


def token_ids(folder):
    """Unpadded ids of both tokenizers for the texts above (the CLIP ids cut to its model length)."""
    pipe = load(folder)
    return [
        {
            "text": text,
            "clip": pipe.tokenizer(text, truncation=True, max_length=pipe.tokenizer_max_length).input_ids,
            "t5": pipe.tokenizer_2(text).input_ids,
        }
        for text in TEXTS
    ]


def check_inputs_matter(pipe, case, expected):
    """Fail if changing one part of the request leaves the latents (nearly) unchanged."""
    changes = {
        "prompt": dict(prompt="x"),
        "seed": dict(seed=case.seed ^ 1),
        "steps": dict(steps=case.steps + 1),
        "max_sequence_length": dict(max_sequence_length=case.max_sequence_length // 2),
    }
    if pipe.transformer.config.guidance_embeds:
        changes["guidance"] = dict(guidance=case.guidance + 1)
    if case.negative_prompt is not None:
        changes["negative_prompt"] = dict(negative_prompt=case.negative_prompt + " two foxes")
        changes["true_cfg"] = dict(true_cfg=case.true_cfg + 0.5)
    felt = {}
    for name, change in changes.items():
        felt[name] = rel_l2(run(pipe, dataclasses.replace(case, **change))["latents"], expected["latents"])
        if felt[name] < FELT:
            raise SystemExit(f"{name} hardly matters ({felt[name]:.2g}): choose another seed or gain")
    return felt


def float64_gap(folder, case, expected):
    """Distance of the float32 result from the same pipeline in float64 started from the same noise."""
    pipe = load(folder, torch.float64)
    width, height = rendered_size(case, 2 * pipe.vae_scale_factor)
    _, channels, h, w = expected["latents"].shape
    noise = torch.randn(1, channels, h, w, generator=gen(case.seed)).double()
    exact = run(pipe, case, pipe._pack_latents(noise, 1, channels, h, w))
    pixels = (exact["pixels"].int() - expected["pixels"].int()).abs().max()
    return rel_l2(expected["latents"], exact["latents"]), int(pixels)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FIXTURES / "pipelines")
    parser.add_argument("names", nargs="*", help="only these cases")
    args = parser.parse_args()
    for name, (spec, case, options) in CASES.items():
        if args.names and name not in args.names:
            continue
        folder = args.out / name
        shutil.rmtree(folder, ignore_errors=True)
        build(spec, folder, **options)
        pipe = load(folder)
        expected = run(pipe, case)
        saturated = ((expected["pixels"] == 0) | (expected["pixels"] == 255)).float().mean().item()
        if saturated > 0.02 or expected["pixels"].float().std() < 8:
            raise SystemExit(f"{name}: flat or clipped image ({saturated:.0%} clipped)")
        felt = check_inputs_matter(pipe, case, expected)
        latent_gap, pixel_gap = float64_gap(folder, case, expected)
        width, height = rendered_size(case, spec.multiple())
        (folder / "case.json").write_text(
            case_json(case, rendered_width=width, rendered_height=height), encoding="utf-8"
        )
        save(folder / "expected.safetensors", expected)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        print(
            f"{name}: {size} B, float64 gap {latent_gap:.2g} / {pixel_gap} levels, "
            + ", ".join(f"{k} {v:.2g}" for k, v in felt.items())
        )
    if not args.names:
        ids = {
            name: token_ids(args.out / name) for name in ("one_one_schnell", "odd_size_truncated", "non_ascii_terminal")
        }
        body = ",\n".join(
            json.dumps(name) + ": [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
            for name, rows in ids.items()
        )
        (args.out / "token_ids.json").write_text("{\n" + body + "\n}\n")


if __name__ == "__main__":
    main()
