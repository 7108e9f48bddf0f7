"""Measures the finished folder, and draws the contact sheet.

    python tools/demo-model/evaluate.py --work WORK [--command 'darkroom generate {prompt} --seed {seed} -o {file}']

Without a command the pictures come from diffusers' FluxPipeline with the folder's defaults.

names        100 names x 3 seeds. A picture counts when, of all concepts' training pictures (drawn plainly on
             white), its own is the nearest: root mean square of 32x32 RGB thumbnails (box filter), the least over
             shifts of up to one thumbnail pixel.
colours      30 prompts "a COLOUR NAME": of the pixels that differ from the white ground, each is given the
             nearest named hue (or black when dark, or none when pale); the most frequent must be the asked one.
backgrounds  30 prompts "a NAME on a COLOUR background": the median of a 4-pixel border, nearest named colour in RGB.
The same rules applied to true training pictures give the ceilings.
"""

import argparse
import colorsys
import json
import random
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captions import article
from common import log
from concepts import CONCEPTS
from config import Config
from data import BACKGROUNDS, COLOURS, LABELS, Pictures, Scene

HERE = Path(__file__).resolve().parent
SHEET = (
    "a cat", "an apple", "a rocket", "a house", "a robot", "a slice of pizza",
    "a blue apple", "a green car", "a pink elephant", "a golden star", "a purple dinosaur", "a red butterfly",
    "a panda on a green background", "a lemon on a blue background", "a ghost on a black background",
    "a rose on a pink background", "a penguin on an orange background", "a hamburger on a yellow background",
    "a small tree", "a big strawberry", "a heart on the left", "a balloon at the top",
    "a yellow duck on a purple background", "a small orange fish on a blue background",
)  # fmt: skip
Sampler = Callable[[list[str], list[int]], list[np.ndarray]]


def through_diffusers(folder: Path) -> Sampler:
    import torch
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    defaults = json.loads((folder / "darkroom.json").read_text())["defaults"]

    def sample(prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
        made = []
        for start in range(0, len(prompts), 25):
            part = prompts[start : start + 25]
            made += pipe(
                part,
                negative_prompt=[""] * len(part),
                true_cfg_scale=defaults["true_cfg"],
                guidance_scale=defaults["guidance"],
                num_inference_steps=defaults["steps"],
                width=defaults["width"],
                height=defaults["height"],
                max_sequence_length=defaults["t5_length"],
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + 25]],
            ).images
        return [np.asarray(picture) for picture in made]

    return sample


def through_command(template: str) -> Sampler:
    def sample(prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
        made = []
        with tempfile.TemporaryDirectory() as folder:
            for prompt, seed in zip(prompts, seeds):
                file = Path(folder) / "picture.png"
                words = (word.format(prompt=prompt, seed=seed, file=file) for word in shlex.split(template))
                subprocess.run(list(words), check=True, capture_output=True)
                made.append(np.asarray(Image.open(file).convert("RGB")))
        return made

    return sample


def thumbnail(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((32, 32), Image.BOX), np.float32) / 255


def nearest(picture: np.ndarray, references: np.ndarray) -> int:
    padded = np.pad(thumbnail(picture), ((1, 1), (1, 1), (0, 0)), mode="edge")
    shifts = [padded[y : y + 32, x : x + 32] for y in range(3) for x in range(3)]
    return int(np.argmin(np.min([((references - s) ** 2).mean(axis=(1, 2, 3)) for s in shifts], axis=0)))


def dominant(picture: np.ndarray) -> str:
    """The most frequent named colour of what is not white ground."""
    rgb = picture.reshape(-1, 3) / 255
    rgb = rgb[np.abs(rgb - 1).max(axis=1) > 0.12]
    if not len(rgb):
        return ""
    value, low = rgb.max(axis=1), rgb.min(axis=1)
    saturation = (value - low) / np.maximum(value, 1e-3)
    hues = {name: colorsys.rgb_to_hsv(*np.array(c) / 255)[0] for name, c in COLOURS.items() if name != "black"}
    hue = np.array([colorsys.rgb_to_hsv(*p)[0] for p in rgb])
    gaps = np.stack([np.abs((hue - h + 0.5) % 1 - 0.5) for h in hues.values()])
    names = np.array(list(hues))[gaps.argmin(axis=0)]
    names[saturation < 0.2] = "pale"
    names[(value < 0.3) | ((saturation < 0.25) & (value < 0.62))] = "black"
    found, counts = np.unique(names[names != "pale"], return_counts=True)
    return str(found[counts.argmax()]) if len(found) else ""


def ground(picture: np.ndarray) -> str:
    mask = np.ones(picture.shape[:2], bool)
    mask[4:-4, 4:-4] = False
    colour = np.median(picture[mask], axis=0)
    return min(BACKGROUNDS, key=lambda name: np.square(colour - BACKGROUNDS[name]).sum())


def measure(cfg: Config, sample: Sampler) -> dict[str, float]:
    """All figures in percent, with the ceilings that true training pictures reach."""
    rng = random.Random(cfg.seed)
    pictures = Pictures(cfg)
    index = {label: i for i, label in enumerate(LABELS)}
    name = {label: article(words[0]) for label, words in CONCEPTS.items()}
    references = np.stack([thumbnail(pictures.draw(Scene(i), rng)) for i in range(len(LABELS))])

    asked = sorted(rng.sample(LABELS, 100), key=index.get) * 3
    made = sample([name[label] for label in asked], [seed for seed in range(3) for _ in range(100)])
    hits = [nearest(picture, references) == index[label] for picture, label in zip(made, asked)]
    true = [nearest(pictures.draw(Scene(index[label]), rng), references) == index[label] for label in asked]
    figures = {"names": np.mean(hits), "names, true pictures": np.mean(true)}
    for label, *right in zip(asked[:100], hits[:100], hits[100:200], hits[200:]):
        if sum(right) < 2:
            log(cfg.work / "evaluate.log", missed=name[label], right=sum(right))

    for kind, rule, choices in (("colour", dominant, COLOURS), ("background", ground, BACKGROUNDS)):
        wanted = [list(choices)[i % len(choices)] for i in range(30)]
        labels = rng.sample(LABELS, 30)
        words = [CONCEPTS[label][0] for label in labels]
        prompts = [
            article(f"{w} {noun}") if kind == "colour" else f"{article(noun)} on a {w} background"
            for w, noun in zip(wanted, words)
        ]
        made = sample(prompts, list(range(30)))
        found = [rule(picture) for picture in made]
        for prompt, got in ((p, g) for p, g, w in zip(prompts, found, wanted) if g != w):
            log(cfg.work / "evaluate.log", missed=prompt, got=got)
        figures[f"{kind}s"] = np.mean([got == w for got, w in zip(found, wanted)])
        true = [rule(pictures.draw(Scene(index[x], **{kind: w}), rng)) == w for x, w in zip(labels, wanted)]
        figures[f"{kind}s, true pictures"] = np.mean(true)
    return {key: round(100 * float(value), 1) for key, value in figures.items()}


def contact_sheet(sample: Sampler, file: Path, columns: int = 6, side: int = 192) -> None:
    made = sample(list(SHEET), [7] * len(SHEET))
    font = ImageFont.load_default(10)
    rows = -(-len(SHEET) // columns)
    sheet = Image.new("RGB", (columns * (side + 12) + 12, rows * (side + 34) + 12), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (prompt, picture) in enumerate(zip(SHEET, made)):
        x, y = 12 + i % columns * (side + 12), 12 + i // columns * (side + 34)
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.LANCZOS), (x, y))
        pen.text((x + side / 2, y + side + 4), prompt, fill=(60, 60, 60), font=font, anchor="ma")
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, optimize=True)


def run(cfg: Config, sample: Sampler | None = None) -> None:
    sample = sample or through_diffusers(cfg.out)
    contact_sheet(sample, cfg.work / "contact-sheet.png")
    figures = measure(cfg, sample)
    log(cfg.work / "evaluate.log", **figures)
    (cfg.work / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "crates/flux/assets/pocket")
    parser.add_argument("--command", help="samples one picture; {prompt}, {seed} and {file} are filled in")
    args = parser.parse_args()
    run(Config(work=args.work, out=args.out), through_command(args.command) if args.command else None)


if __name__ == "__main__":
    main()
