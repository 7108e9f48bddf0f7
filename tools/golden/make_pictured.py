"""What diffusers makes from pictures: image-to-image, inpainting, Fill, control, Kontext.

The parts are those of `pipelines/<base>/`; Fill and control have a transformer of their own. Each folder
`pictured/<case>/` holds `case.json` (with the base's name), `image.png`, `mask.png`, perhaps `transformer/` or `lora.safetensors`, and
`expected.safetensors` (`latents`, `pixels`). Every picture, mask and strength is checked to matter.
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

from common import FIXTURES, gen, rel_l2, save
from make_pipelines import CASES as BASES
from make_pipelines import FELT
from pictured import MASK, STRENGTH, Pictured, blob, pictured_pipeline, run_pictured, scene, widened

import torch  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

# name: base, size of the picture, case
CASES = {
    "img2img": (
        "three_two_dynamic",
        (48, 64),
        Pictured("an old lighthouse", width=48, height=64, steps=5, guidance=4.5, seed=1, max_sequence_length=16),
    ),
    "img2img_resized_true_cfg": (
        "true_cfg",
        (50, 41),
        Pictured(
            "a woman's hat", "watercolour, the sea", 2.5, 32, 36, 6, 3.5, 2, 24, kind="img2img", strength=0.45
        ),
    ),
    "img2img_whole": (
        "four_level_vae_f16",
        (96, 64),
        Pictured("a red bicycle", width=96, height=64, steps=3, guidance=2.7, seed=3, max_sequence_length=16, strength=1.0),
    ),
    "inpaint": (
        "three_two_dynamic",
        (64, 64),
        Pictured(
            "a quiet harbour",
            width=64,
            height=64,
            steps=5,
            guidance=4.5,
            seed=4,
            max_sequence_length=16,
            kind="inpaint",
            strength=0.7,
        ),
    ),
    "inpaint_true_cfg_resized": (
        "true_cfg_empty_sharded",
        (61, 70),
        Pictured("wild geese", "", 1.6, 36, 32, 4, 5.0, 5, 31, kind="inpaint", strength=1.0),
    ),
    "fill": (
        "three_two_dynamic",
        (64, 48),
        Pictured(
            "seven candles",
            width=64,
            height=48,
            steps=4,
            guidance=30.0,
            seed=6,
            max_sequence_length=16,
            kind="fill",
            strength=1.0,
        ),
    ),
    "fill_strength": (
        "true_cfg",
        (40, 40),
        Pictured("a glass house", width=40, height=40, steps=5, seed=7, max_sequence_length=16, kind="fill", strength=0.7),
    ),
    "control": (
        "three_two_dynamic",
        (70, 50),
        Pictured("a cat", width=64, height=48, steps=4, guidance=10.0, seed=8, max_sequence_length=16, kind="control"),
    ),
    "control_lora": (
        "three_two_dynamic",
        (60, 52),
        Pictured("a cat", width=48, height=64, steps=4, guidance=10.0, seed=11, max_sequence_length=16, kind="control"),
    ),
    "kontext": (
        "three_two_dynamic",
        (56, 40),
        Pictured("two foxes", width=48, height=64, steps=4, guidance=2.5, seed=9, max_sequence_length=16, kind="kontext"),
    ),
    "kontext_true_cfg": (
        "true_cfg",
        (33, 47),
        Pictured("a hat on the sea", "oil painting", 1.8, 32, 36, 4, 3.5, 10, 24, kind="kontext"),
    ),
}


def control_lora(transformer, seed):
    """A LoRA that has a transformer look at a control picture: a wider input, biases, scales of norms."""
    g, tensors, rank = gen(seed), {}, 3
    linears = ("x_embedder", "attn.to_q", "attn.add_v_proj", "ff.net.0.proj", "proj_mlp", "proj_out", "context_embedder")
    for name, module in transformer.named_modules():
        if name.endswith(linears) and name != "norm_out.proj_out" and name != "proj_out":
            out, width = module.weight.shape
            width *= 2 if name == "x_embedder" else 1
            tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, width, generator=g) * width**-0.5
            tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(out, rank, generator=g) * 0.5
            tensors[f"transformer.{name}.lora_B.bias"] = torch.randn(out, generator=g) * 0.3
        elif name.endswith(("norm_q", "norm_added_k")):
            tensors[f"transformer.{name}.weight"] = 1 + 0.3 * torch.randn(module.weight.shape, generator=g)
    return tensors


def check_inputs_matter(pipe, case, picture, mask, expected):
    changes = {"picture": (case, ImageOps.mirror(picture), mask), "seed": (dataclasses.replace(case, seed=99), picture, mask)}
    if case.kind in MASK:
        changes["mask"] = (case, picture, ImageOps.invert(mask))
    if case.kind in STRENGTH:
        other = 0.5 if case.strength == 1.0 else 1.0
        changes["strength"] = (dataclasses.replace(case, strength=other), picture, mask)
    if case.kind == "img2img" and case.strength == 1.0:
        del changes["picture"]  # nothing is left of it
    felt = {}
    for name, change in changes.items():
        felt[name] = rel_l2(run_pictured(pipe, *change)["latents"], expected["latents"])
        if felt[name] < FELT:
            raise SystemExit(f"{name} hardly matters ({felt[name]:.2g})")
    return felt


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FIXTURES / "pictured")
    parser.add_argument("names", nargs="*", help="only these cases")
    args = parser.parse_args()
    for name, (base, size, case) in CASES.items():
        if args.names and name not in args.names:
            continue
        folder, source = args.out / name, FIXTURES / "pipelines" / base
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        spec = BASES[base][0]
        transformer = None
        if name != "control_lora" and case.kind in ("fill", "control"):
            transformer = widened(pictured_pipeline(source, "img2img"), case.kind, spec)
            transformer.save_pretrained(folder / "transformer")
        pipe = pictured_pipeline(source, case.kind, transformer)
        if name == "control_lora":
            lora = control_lora(pipe.transformer, case.seed)
            save_file(lora, folder / "lora.safetensors")
            pipe.load_lora_weights(dict(lora))
        picture, mask = scene(*size, case.seed), blob(*size, case.seed + 50)
        picture.save(folder / "image.png")
        picture = Image.open(folder / "image.png")
        if case.kind in MASK:
            mask.save(folder / "mask.png")
        expected = run_pictured(pipe, case, picture, mask)
        felt = check_inputs_matter(pipe, case, picture, mask, expected)
        fields = {**dataclasses.asdict(case), "base": base}
        (folder / "case.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        save(folder / "expected.safetensors", expected)
        total = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        print(f"{name}: {total} B, " + ", ".join(f"{k} {v:.2g}" for k, v in felt.items()))


if __name__ == "__main__":
    main()
