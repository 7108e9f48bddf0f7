"""Fills in the model card from what the other stages wrote, and puts the contact sheet where the docs show it."""

import json
import math
import shutil
from pathlib import Path

from safetensors import safe_open

from concepts import CONCEPTS
from config import Config
from data import BACKGROUNDS, COLOURS

HERE = Path(__file__).resolve().parent
SHEET = HERE.parents[1] / "docs/images/contact-sheet.png"


def last(path: Path, field: str) -> float:
    """The last value of a field in a stage's log."""
    return [entry[field] for entry in map(json.loads, path.read_text().splitlines()) if field in entry][-1]


def weights(folder: Path) -> tuple[str, str]:
    """Parameter count in millions and stored type."""
    with safe_open(next(folder.glob("*.safetensors")), "np") as file:
        parts = [file.get_slice(name) for name in file.keys()]
        count = sum(math.prod(part.get_shape()) for part in parts)
        return f"{count / 1e6:.2f} M", parts[0].get_dtype()


def run(cfg: Config) -> None:
    work, out = cfg.work, cfg.out
    figures = json.loads((work / "evaluation.json").read_text())
    rows = [
        f"| {key} | {figures[key]:.1f} % | {figures[key + ', true pictures']:.1f} % |"
        for key in ("names", "colours", "backgrounds")
    ]
    minutes = {stage: last(work / f"{stage}.log", "minutes") for stage in ("autoencoder", "text", "flow", "distil")}
    pictures = last(work / "autoencoder.log", "pictures")
    training = [
        f"- autoencoder {minutes['autoencoder']:.0f} minutes ({pictures:,} pictures);",
        f"- text encoders {minutes['text']:.0f} minutes;",
        f"- flow matching {minutes['flow']:.0f} minutes ({last(work / 'flow.log', 'samples'):,} samples);",
        f"- guidance distillation {minutes['distil']:.0f} minutes ({last(work / 'distil.log', 'samples'):,} samples).",
    ]
    fields = {
        "concepts": len(CONCEPTS),
        "words": ", ".join(words[0] for words in CONCEPTS.values()),
        "colours": ", ".join(COLOURS),
        "backgrounds": ", ".join(BACKGROUNDS),
        "measured": "\n".join(["| | this model | true pictures |", "|---|---|---|", *rows]),
        "training": "\n".join(training),
        "psnr": f"{last(work / 'autoencoder.log', 'psnr'):.1f}",
        "machine": cfg.machine,
        "transformer": weights(out / "transformer")[0],
        "clip": weights(out / "text_encoder")[0],
        "t5": weights(out / "text_encoder_2")[0],
        "vae": weights(out / "vae")[0],
        "dtype": {"F16": "float16", "BF16": "bfloat16"}[weights(out / "transformer")[1]],
        "clip_vocabulary": json.loads((out / "text_encoder/config.json").read_text())["vocab_size"],
        "t5_vocabulary": json.loads((out / "text_encoder_2/config.json").read_text())["vocab_size"],
        "double": cfg.double_blocks,
        "single": cfg.single_blocks,
        **{
            name: getattr(cfg, name)
            for name in ("name", "size", "heads", "head_dim", "text_width", "t5_length", "steps", "guidance",
                         "true_cfg", "shift", "pictures_package", "captions_package")
        },
    }  # fmt: skip
    (out / "README.md").write_text((HERE / "card/README.md").read_text().format(**fields))
    if out == HERE.parents[1] / "crates/flux/assets/pocket":
        SHEET.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(work / "contact-sheet.png", SHEET)
