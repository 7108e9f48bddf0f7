"""Data: fetch the npm packages, and draw captioned pictures from them without end.

A `Scene` says what is in a picture; `Pictures.draw` renders it and `captions.caption` words it.
"""

import json
import random
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from concepts import CONCEPTS
from config import Config

# Object colours are painted at these RGB values, backgrounds close to them.
COLOURS = {
    "red": (226, 38, 45),
    "orange": (255, 132, 20),
    "yellow": (255, 212, 34),
    "green": (52, 172, 66),
    "blue": (44, 112, 236),
    "purple": (140, 66, 200),
    "pink": (255, 116, 182),
    "black": (44, 44, 48),
}
BACKGROUNDS = COLOURS | {"white": (255, 255, 255), "gray": (150, 152, 156)}
SIZES = {"": 0.84, "small": 0.46, "big": 0.98}
POSITIONS = {"": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
SOURCE = 160  # pixels a side of the cached pictures


@dataclass(frozen=True)
class Scene:
    concept: int
    colour: str = ""
    background: str = ""
    size: str = ""
    position: str = ""


LABELS = list(CONCEPTS)


def fetch(cfg: Config) -> None:
    """Downloads and unpacks the two packages into the work folder."""
    for package, folder in ((cfg.pictures_package, "pictures"), (cfg.captions_package, "captions")):
        target = cfg.work / "data" / folder
        if (target / "package").exists():
            continue
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=target, check=True, capture_output=True, text=True
        )
        archive = target / packed.stdout.split()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        archive.unlink()


def emoji(cfg: Config) -> dict[str, dict]:
    """emojibase entries by label."""
    path = cfg.work / "data/captions/package/en/data.json"
    return {entry["label"]: entry for entry in json.loads(path.read_text())}


def random_scene(rng: random.Random) -> Scene:
    """Most pictures carry one or two attributes; size and position are never both drawn."""
    scene = Scene(rng.randrange(len(LABELS)))
    if rng.random() < 0.4:
        scene = replace(scene, colour=rng.choice(list(COLOURS)))
    if rng.random() < 0.45:
        backgrounds = [name for name in BACKGROUNDS if name != scene.colour]
        scene = replace(scene, background=rng.choice(backgrounds))
    place = rng.random()
    if place < 0.14:
        scene = replace(scene, size=rng.choice(["small", "big"]))
    elif place < 0.30:
        scene = replace(scene, position=rng.choice(["left", "right", "top", "bottom"]))
    return scene


class Pictures:
    """All concepts in all colours, cut out (RGBA), ready to be placed."""

    def __init__(self, cfg: Config):
        self.size = cfg.size
        entries = emoji(cfg)
        folder = cfg.work / "data/pictures/package/assets"
        self.cutouts = {}
        for index, label in enumerate(LABELS):
            plain = self._load(folder, entries[label]["hexcode"].lower())
            self.cutouts[index, ""] = Image.fromarray(plain)
            for colour in COLOURS:
                self.cutouts[index, colour] = Image.fromarray(recolour(plain, colour))

    @staticmethod
    def _load(folder, code: str) -> np.ndarray:
        bare = code.replace("-fe0f", "")
        path = next(p for p in (folder / f"{c}.webp" for c in (code, bare, bare + "-fe0f")) if p.exists())
        picture = Image.open(path).convert("RGBA")
        picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
        scale = SOURCE / max(picture.size)
        picture = picture.resize([max(1, round(s * scale)) for s in picture.size], Image.LANCZOS)
        square = Image.new("RGBA", (SOURCE, SOURCE))
        square.paste(picture, ((SOURCE - picture.width) // 2, (SOURCE - picture.height) // 2))
        return np.asarray(square)

    def draw(self, scene: Scene, rng: random.Random) -> np.ndarray:
        """One picture, uint8 (size, size, 3), with small jitter in scale, place and background tone."""
        base = BACKGROUNDS[scene.background or "white"]
        tone = 1.0 if base == BACKGROUNDS["white"] else rng.uniform(0.92, 1.06)
        canvas = Image.new("RGBA", (self.size, self.size), tuple(min(255, round(c * tone)) for c in base))
        fraction = 0.58 if scene.position else SIZES[scene.size]
        side = round(self.size * fraction * rng.uniform(0.97, 1.02))
        thing = self.cutouts[scene.concept, scene.colour].resize((side, side), Image.LANCZOS)
        reach = (self.size - side) / 2 * 0.94
        dx, dy = POSITIONS[scene.position]
        x, y = ((self.size - side) / 2 + d * reach + rng.uniform(-1, 1) for d in (dx, dy))
        canvas.alpha_composite(thing, (max(0, round(x)), max(0, round(y))))
        return np.asarray(canvas)[..., :3]


def recolour(rgba: np.ndarray, colour: str) -> np.ndarray:
    """Gives a cut-out one hue and keeps its shading; greys take a lighter tint of it."""
    rgb = rgba[..., :3].astype(np.float32) / 255
    value = rgb.max(-1, keepdims=True)
    saturation = (value - rgb.min(-1, keepdims=True)) / np.maximum(value, 1e-3)
    if colour == "black":
        grey = rgb.mean(-1, keepdims=True)
        painted = np.repeat(0.06 + 0.42 * grey**1.5, 3, -1)
    else:
        strength = 0.45 + 0.55 * saturation
        hue = np.asarray(COLOURS[colour], np.float32) / 255
        painted = value**0.75 * (1 - strength * (1 - hue))
    return np.concatenate([np.uint8(np.clip(painted, 0, 1) * 255 + 0.5), rgba[..., 3:]], -1)


def batch(pictures: Pictures, scenes: list[Scene], rng: random.Random) -> torch.Tensor:
    """Pictures of the scenes as (n, 3, size, size) in [-1, 1]."""
    stack = np.stack([pictures.draw(scene, rng) for scene in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1
