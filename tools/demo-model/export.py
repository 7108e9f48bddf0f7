"""Export: the newest checkpoint as a diffusers folder in 16-bit weights, put in place at one stroke."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

import autoencoder
import flow
from common import log, setup
from config import Config

HERE = Path(__file__).resolve().parent


def pipeline(cfg: Config) -> FluxPipeline:
    """The newest averaged weights, distilled if there are any, as a diffusers pipeline."""
    file = "distil.pt" if (cfg.work / "distil.pt").exists() else "flow.pt"
    model = flow.load(cfg, file)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=cfg.shift, use_dynamic_shifting=False),
        vae=autoencoder.load(cfg),
        text_encoder=model.text.clip,
        tokenizer=model.text.clip_tokens,
        text_encoder_2=model.text.t5,
        tokenizer_2=model.text.t5_tokens,
        transformer=model.transformer,
    )


def best_dtype(cfg: Config) -> torch.dtype:
    """float16 or bfloat16, whichever rounding harms the flow loss less."""
    pool = flow.Pool(cfg, setup(cfg, 6))
    test = pool.batch(256)
    losses = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = flow.load(cfg).to(dtype).float()
        losses[dtype] = sum(flow.score(model, *test, sigma) for sigma in (0.3, 0.6, 0.9)) / 3
        log(cfg.work / "export.log", dtype=str(dtype), loss=losses[dtype])
    return min((torch.float16, torch.bfloat16), key=losses.get)


def run(cfg: Config) -> None:
    draft = cfg.out.with_name(cfg.out.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    pipeline(cfg).to(best_dtype(cfg)).save_pretrained(draft)
    about = {
        "name": cfg.name,
        "notice": "draws icons, not photographs",
        "defaults": {
            "width": cfg.size,
            "height": cfg.size,
            "steps": cfg.steps,
            "guidance": cfg.guidance,
            "true_cfg": cfg.true_cfg,
            "t5_length": cfg.t5_length,
        },
    }
    (draft / "darkroom.json").write_text(json.dumps(about, indent=2) + "\n")
    for page in (HERE / "card").iterdir():
        shutil.copy(page, draft / page.name)
    shutil.rmtree(cfg.out, ignore_errors=True)
    draft.rename(cfg.out)
