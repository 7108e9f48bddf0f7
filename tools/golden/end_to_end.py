"""Open-ended parity check: random pipelines rendered by diffusers in float32 and by the `darkroom` binary.

Every case draws network sizes, scheduler, prompt, image size, steps, guidance and seed from `--seed`, saves a pipeline
folder, renders it with the reference, then with the binary, and compares latents and pixels. With `--layouts` the same
weights are also rendered from every other file layout, which must give the same PNG byte for byte. With `--pictures`
the cases are image-to-image, inpainting, Fill, control and Kontext, with random pictures and masks of any size.
Exits with 1 if any case fails.
"""

import argparse
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import FIXTURES, rel_l2
from layouts import write_layouts
from pictured import (
    MASK,
    PIPELINES,
    STRENGTH,
    TRUE_CFG,
    Pictured,
    blob,
    pictured_pipeline,
    run_pictured,
    scene,
    widened,
)
from random_pipeline import Case, Spec, build, case_json, load, random_text, rendered_size, run

import json  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def command(darkroom, model, case, image, latents, tokenizers=None):
    """The binary's argument list: the one place that knows its options."""
    args = [
        str(darkroom),
        "generate",
        case.prompt,
        "-m",
        str(model),
        "-W",
        str(case.width),
        "-H",
        str(case.height),
        "--steps",
        str(case.steps),
        "--guidance",
        repr(case.guidance),
        "--seed",
        str(case.seed),
        "--t5-length",
        str(case.max_sequence_length),
        "--precision",
        "f32",
        "--save-latents",
        str(latents),
        "-o",
        str(image),
        "--metadata",  # names the model, which differs from layout to layout
        "none",
    ]
    if tokenizers is not None:  # single files bring no tokenizer of their own
        args += ["--clip-tokenizer", str(tokenizers / "tokenizer"), "--t5-tokenizer", str(tokenizers / "tokenizer_2")]
    if case.negative_prompt is not None:
        args += ["-n", case.negative_prompt, "--true-cfg", repr(case.true_cfg)]
    if isinstance(case, Pictured):
        flag = {"control": "--control", "kontext": "--reference"}.get(case.kind, "--image")
        args += [flag, str(image.with_name("given.png"))]
        if case.kind in STRENGTH:
            args += ["--strength", repr(case.strength)]
        if case.kind in MASK:
            args += ["--mask", str(image.with_name("mask.png"))]
        if case.kind == "kontext":
            args += ["--reference-size", "own"]
    return args


def model_argument(layout, base, file):
    """What `-m` names for a layout: the folder, or the checkpoint where one file holds everything."""
    return file if layout == "all_in_one" else base


def darkroom_run(darkroom, model, case, directory, timeout, tokenizers=None):
    """Returns (latents, pixels, PNG bytes); raises RuntimeError with the binary's last words if it fails."""
    directory.mkdir(parents=True, exist_ok=True)
    image, latents = directory / "image.png", directory / "latents.safetensors"
    for file in (image, latents):
        file.unlink(missing_ok=True)
    args = command(darkroom, model, case, image, latents, tokenizers)
    done = subprocess.run(args, capture_output=True, text=True, timeout=timeout, env={**os.environ, "NO_COLOR": "1"})
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1][-300:]}")
    tensor = load_file(str(latents))["latents"]
    return tensor, np.asarray(Image.open(image).convert("RGB")), image.read_bytes()


def even_parts(rng, total):
    """Three even numbers >= 2 with the given sum: RoPE axis widths."""
    cuts = sorted(rng.sample(range(1, total // 2), 2))
    return tuple(2 * (b - a) for a, b in zip([0, *cuts], [*cuts, total // 2], strict=True))


def random_scheduler(rng):
    if rng.random() < 0.4:
        config = dict(shift=round(rng.uniform(0.7, 4), 2))
    else:
        config = dict(use_dynamic_shifting=True, shift=3.0)
        if rng.random() < 0.5:
            low = rng.choice([16, 64, 256])
            config.update(
                base_shift=round(rng.uniform(0.1, 0.8), 2),
                max_shift=round(rng.uniform(0.9, 2.5), 2),
                base_image_seq_len=low,
                max_image_seq_len=low * rng.choice([4, 16]),
            )
        if rng.random() < 0.2:
            config["time_shift_type"] = "linear"
    if rng.random() < 0.2:
        config["shift_terminal"] = round(rng.uniform(0.02, 0.2), 3)
    return config


def random_spec(rng, flux_like):
    """Random sizes; `flux_like` keeps FLUX's proportions so that single files can be understood from their shapes."""
    groups = rng.choice([1, 2, 3, 4])
    levels = rng.choice([1, 2, 2, 3, 4])
    clip_heads, t5_heads = rng.randint(1, 3), rng.randint(1, 3)
    head_dim = rng.choice([8, 10, 12, 16, 16, 20, 24, 32, 40, 64])
    spec = Spec(
        seed=rng.randrange(2**31),
        double=rng.randint(1, 3),
        single=rng.randint(1, 4),
        heads=rng.randint(1, 1 if head_dim > 32 else 3),
        head_dim=head_dim,
        axes=even_parts(rng, head_dim),
        guidance_embeds=rng.random() < 0.6,
        clip_width=clip_heads * rng.choice([6, 8, 10]),
        clip_heads=clip_heads,
        clip_layers=rng.randint(1, 3),
        clip_mlp=rng.randint(12, 50),
        clip_act=rng.choice(["quick_gelu", "quick_gelu", "gelu"]),
        clip_length=rng.choice([12, 20, 77]),
        clip_eos_2=rng.random() < 0.5,
        clip_merges=rng.randint(0, 150),
        t5_width=rng.randint(8, 30),
        t5_heads=t5_heads,
        t5_d_kv=rng.randint(3, 9),
        t5_d_ff=rng.randint(10, 40),
        t5_layers=rng.randint(1, 3),
        t5_ff=rng.choice(["gated-gelu", "gated-gelu", "relu"]),
        t5_pieces=rng.randint(150, 320),
        t5_extra_ids=rng.choice([0, 3, 100]),
        t5_charsmap=rng.choice(["none", "small", "full"]),
        vae_channels=tuple(groups * rng.randint(1, 4) for _ in range(levels)),
        vae_groups=groups,
        vae_layers=rng.randint(1, 2),
        vae_mid_attention=rng.random() < 0.8,
        vae_quant=rng.random() < 0.3,
        latent=rng.randint(2, 8),
        scaling=round(rng.uniform(0.2, 1.2), 4),
        shift_factor=round(rng.uniform(-0.2, 0.3), 4),
        scheduler=random_scheduler(rng),
    )
    if flux_like:
        spec = dataclasses.replace(
            spec,
            heads=1,
            head_dim=128,
            axes=(16, 56, 56),
            double=rng.randint(1, 2),
            single=rng.randint(1, 2),
            clip_heads=1,
            clip_width=64,
            clip_mlp=256,
            clip_act="quick_gelu",
            clip_length=77,
            clip_eos_2=True,
            t5_heads=rng.randint(1, 2),
            t5_d_kv=64,
            t5_width=64,
            t5_d_ff=96,
            t5_ff="gated-gelu",
            vae_channels=(32, 32, 64, 64),
            vae_groups=32,
            vae_layers=2,
            vae_mid_attention=True,
            vae_quant=False,
            latent=16,
            scaling=0.3611,
            shift_factor=0.1159,
            scheduler=dict(use_dynamic_shifting=True, shift=3.0)
            if spec.guidance_embeds
            else dict(use_dynamic_shifting=False, shift=1.0),
        )
    return spec


def random_case(rng, spec, tokens=120):
    multiple = spec.multiple()
    rows = rng.randint(1, 12)
    columns = rng.randint(1, max(1, min(12, tokens // rows)))
    width, height = columns * multiple, rows * multiple
    if rng.random() < 0.4:
        width -= rng.randrange(multiple) if columns > 1 else 0  # a side is at least one token
        height -= rng.randrange(multiple) if rows > 1 else 0
    negative = rng.random() < 0.35
    return Case(
        prompt=random_text(rng),
        negative_prompt=rng.choice(["", random_text(rng)]) if negative else None,
        true_cfg=round(rng.uniform(1.1, 4), 2) if negative else 1.0,
        width=width,
        height=height,
        # One step with a terminal shift divides zero by zero in the reference.
        steps=rng.randint(2 if "shift_terminal" in spec.scheduler else 1, 6),
        guidance=round(rng.uniform(0, 9), 2),
        seed=rng.choice([rng.randrange(100), rng.randrange(2**32), rng.randrange(2**64)]),
        max_sequence_length=rng.choice([1, 2, 8, 16, 33, 64, 130]) if not rng.random() < 0.1 else 512,
    )


def pictured_case(rng, spec, directory):
    """A folder in `directory`, a request with pictures, and what the reference makes of it. The pictures are written to
    where the binary's arguments expect them."""
    kind = rng.choice(list(PIPELINES))
    if spec.latent == 3:
        spec = dataclasses.replace(spec, latent=4)  # the reference takes a picture of as many channels for latents
    plain = random_case(rng, spec, 80)
    multiple = spec.multiple()
    sides = {side: -(-getattr(plain, side) // multiple) * multiple for side in ("width", "height")}
    case = Pictured(**{**dataclasses.asdict(plain), **sides}, kind=kind, strength=round(rng.uniform(0.05, 1), 3))
    case = dataclasses.replace(case, strength=rng.choice([case.strength, case.strength, 1.0]))
    if kind not in TRUE_CFG:
        case = dataclasses.replace(case, negative_prompt=None, true_cfg=1.0)
    # Kontext is told by the folder's name; its reference stays as it is, so it is no smaller than a token.
    folder = directory / ("kontext" if kind == "kontext" else "pipeline")
    build(spec, folder)
    transformer = None
    if kind in ("fill", "control"):
        transformer = widened(load(folder), kind, spec)
    pipe = pictured_pipeline(folder, kind, transformer)
    if transformer is not None:
        shutil.rmtree(folder / "transformer")
        transformer.save_pretrained(folder / "transformer")
    size = tuple(rng.randint(multiple, multiple + 90) for _ in range(2))
    picture, mask = scene(*size, rng.randrange(2**31)), blob(*size, rng.randrange(2**31))
    out = directory / "out"
    out.mkdir()
    picture.save(out / "given.png")
    mask.save(out / "mask.png")
    return folder, case, run_pictured(pipe, case, picture, mask)


SAVE_OPTIONS = [
    {},
    {},
    {},
    dict(max_shard_size="70KB"),
    dict(save_dtype=torch.bfloat16),
    dict(save_dtype=torch.float16),
]


@dataclasses.dataclass
class Result:
    name: str
    ok: bool
    text: str


def compare(args, name, folder, case, expected, directory):
    """Run the binary on one folder and compare it with the reference."""
    try:
        latents, pixels, png = darkroom_run(args.darkroom, folder, case, directory, args.timeout)
    except (RuntimeError, KeyError, OSError, subprocess.TimeoutExpired) as error:
        return Result(name, False, str(error)), None
    want, want_pixels = expected["latents"], expected["pixels"].numpy()
    if latents.shape != want.shape or pixels.shape != want_pixels.shape:
        return Result(
            name,
            False,
            f"shapes {tuple(latents.shape)} {pixels.shape}, expected {tuple(want.shape)} {want_pixels.shape}",
        ), None
    distance = rel_l2(latents, want)
    level = int(np.abs(pixels.astype(int) - want_pixels.astype(int)).max())
    ok = distance <= args.latents_bound and level <= args.pixel_bound
    return Result(name, ok, f"latents {distance:9.2e}  pixels {level:3d}"), png


def layout_results(args, name, folder, case, png, directory):
    """Every other layout must give the PNG of the folder that holds the same values."""
    for layout, (base, file, reference) in write_layouts(folder, directory / "layouts").items():
        label = f"{name}/{layout}"
        try:
            want = png
            if reference != folder:
                want = darkroom_run(args.darkroom, reference, case, directory / "out", args.timeout)[2]
            model = model_argument(layout, base, file)
            got = darkroom_run(args.darkroom, model, case, directory / "out", args.timeout, tokenizers=folder)[2]
        except (RuntimeError, KeyError, OSError, subprocess.TimeoutExpired) as error:
            yield Result(label, False, str(error))
            continue
        yield Result(label, got == want, "same PNG" if got == want else "PNG differs")


def fixture_cases(root):
    """The stored fixtures as (name, folder, case, expected)."""
    fields = {f.name for f in dataclasses.fields(Case)}
    for folder in sorted(p.parent for p in root.glob("*/case.json")):
        stored = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        case = Case(**{k: v for k, v in stored.items() if k in fields})
        yield folder.name, folder, case, load_file(str(folder / "expected.safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--darkroom", type=Path, required=True, help="the binary")
    parser.add_argument("--seed", type=int, default=0, help="seed of the test itself")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--minutes", type=float, help="go on until this much time is used, whatever --cases says")
    parser.add_argument("--layouts", action="store_true", help="FLUX-like pipelines, also in every other layout")
    parser.add_argument("--pictures", action="store_true", help="requests with pictures")
    parser.add_argument("--fixtures", action="store_true", help="the stored fixtures instead of random cases")
    parser.add_argument("--latents-bound", type=float, default=1e-3, help="largest relative L2 distance")
    parser.add_argument("--pixel-bound", type=int, default=2, help="largest difference in 1/255")
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--keep", type=Path, help="keep failing cases in this folder")
    args = parser.parse_args()
    args.darkroom = args.darkroom.resolve()
    results, started = [], time.time()

    def note(result, seconds, extra=""):
        results.append(result)
        print(
            f"{'ok  ' if result.ok else 'FAIL'}  {result.name:28} {result.text}  {seconds:5.1f}s  {extra}", flush=True
        )

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if args.fixtures:
            for name, folder, case, expected in fixture_cases(FIXTURES / "pipelines"):
                t = time.time()
                note(compare(args, name, folder, case, expected, scratch / "out")[0], time.time() - t)
        else:
            number = args.first
            while time.time() - started < 60 * args.minutes if args.minutes else number < args.first + args.cases:
                t = time.time()
                # Each case has its own stream, so that `--first N --cases 1` repeats case N alone.
                rng = random.Random(f"{args.seed}/{number}/{args.layouts}" + "/pictures" * args.pictures)
                spec = random_spec(rng, args.layouts)
                directory = scratch / str(number)
                if args.pictures:
                    folder, case, expected = pictured_case(rng, spec, directory)
                else:
                    case = random_case(rng, spec, 24 if args.layouts else 120)
                    options = {} if args.layouts else rng.choice(SAVE_OPTIONS)
                    folder = directory / "pipeline"
                    build(spec, folder, **options)
                    expected = run(load(folder), case)
                name = f"{args.seed}/{number}"
                sizes = (
                    f"{spec.double}+{spec.single} h{spec.heads}x{spec.head_dim} vae{len(spec.vae_channels)} "
                    f"{case.width}x{case.height} n{case.steps} t{case.max_sequence_length}"
                    + (f" cfg{case.true_cfg}" if case.negative_prompt is not None else "")
                    + (f" {case.kind} {case.strength}" if args.pictures else "")
                )
                before = len(results)
                result, png = compare(args, name, folder, case, expected, directory / "out")
                note(result, time.time() - t, sizes)
                if args.layouts and png is not None:
                    for result in layout_results(args, name, folder, case, png, directory):
                        note(result, time.time() - t)
                failed = any(not r.ok for r in results[before:])
                if args.keep and failed:
                    kept = args.keep / f"{args.seed}-{number}"
                    shutil.copytree(directory, kept, dirs_exist_ok=True)
                    width, height = rendered_size(case, spec.multiple())
                    text = case_json(case, rendered_width=width, rendered_height=height)
                    (kept / "pipeline" / "case.json").write_text(text, encoding="utf-8")
                shutil.rmtree(directory)
                number += 1
    wrong = sum(not r.ok for r in results)
    print(f"{len(results)} comparisons, {wrong} failed, {time.time() - started:.0f}s")
    sys.exit(1 if wrong or not results else 0)


if __name__ == "__main__":
    main()
