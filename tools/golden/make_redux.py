"""A tiny FLUX.1 Redux folder, a picture, and what `FluxPriorReduxPipeline` with `FluxPipeline` make of it.

Writes `redux/`: what `save_pretrained` writes for the image encoder (SigLIP's vision tower), the embedder and the feature
extractor; `picture.png`; and `expected.safetensors` with the final latents of each case in `cases.json`. The pipelines are
those of `make_pipelines.py`, as they lie in the tree. T5 sees 512 tokens: the prior pipeline's own number.
"""

import argparse
import json
import shutil
from pathlib import Path

from common import FIXTURES, gen, randomize, rel_l2, save

import numpy as np
import torch
from diffusers import FluxPipeline, FluxPriorReduxPipeline
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from PIL import Image
from transformers import SiglipVisionConfig, SiglipVisionModel

try:  # transformers 5 names the processor that works with Pillow
    from transformers import SiglipImageProcessorPil as SiglipImageProcessor
except ImportError:
    from transformers import SiglipImageProcessor

SIDE = 30

CASES = [
    dict(pipeline="three_two_dynamic", prompt="an old lighthouse, bokeh", steps=4, guidance=3.0, seed=5),
    dict(pipeline="three_two_dynamic", prompt="", steps=4, guidance=3.0, seed=5),
    dict(pipeline="true_cfg", prompt="a woman's hat", negative_prompt="the sea", true_cfg=2.0, steps=3, seed=11),
]


def picture():
    """Smooth colours with some noise; neither side is the tower's."""
    y, x = np.mgrid[0:41, 0:67] / 10.0
    g = np.random.default_rng(3)
    waves = [np.sin(x + 2 * c) * np.cos(0.7 * y - c) for c in range(3)]
    values = 128 + 90 * np.stack(waves, -1) + g.normal(0, 12, (41, 67, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def load(folder):
    pipe = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prior_of(pipe):
    encoder = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=SIDE,
            patch_size=7,
        )
    )
    embedder = ReduxImageEncoder(redux_dim=24, txt_in_features=pipe.transformer.config.joint_attention_dim)
    randomize(encoder, 31)
    randomize(embedder, 32)
    extractor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    parts = dict(image_encoder=encoder, image_embedder=embedder, feature_extractor=extractor)
    text = {name: getattr(pipe, name) for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")}
    prior = FluxPriorReduxPipeline(**parts, **text)
    prior.set_progress_bar_config(disable=True)
    return prior, FluxPriorReduxPipeline(**parts)


def run(pipe, prior, image, case):
    told = json.loads((FIXTURES / "pipelines" / case["pipeline"] / "case.json").read_text())
    multiple = 2 * pipe.vae_scale_factor
    width, height = (-(-told[side] // multiple) * multiple for side in ("width", "height"))
    if image is None:
        embeds, pooled, _ = pipe.encode_prompt(case["prompt"], None, max_sequence_length=512)
    else:
        out = prior(image, prompt=case["prompt"])
        embeds, pooled = out.prompt_embeds, out.pooled_prompt_embeds
    arguments = {}
    if "negative_prompt" in case:
        arguments = dict(negative_prompt=case["negative_prompt"], true_cfg_scale=case["true_cfg"])
    packed = pipe(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        width=width,
        height=height,
        num_inference_steps=case["steps"],
        guidance_scale=case.get("guidance", 3.5),
        generator=gen(case["seed"]),
        output_type="latent",
        **arguments,
    ).images
    return pipe._unpack_latents(packed, height, width, pipe.vae_scale_factor).contiguous()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIXTURES / "redux")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    picture().save(out / "picture.png")
    image = Image.open(out / "picture.png").convert("RGB")
    expected = {}
    for index, case in enumerate(CASES):
        pipe = load(FIXTURES / "pipelines" / case["pipeline"])
        prior, bare = prior_of(pipe)
        if index == 0:
            bare.save_pretrained(out)
            seen = prior.feature_extractor.preprocess(images=[image], do_resize=True, return_tensors="pt")
            expected["pixel_values"] = seen["pixel_values"]
            expected["tokens"] = prior.image_embedder(
                prior.image_encoder(seen["pixel_values"]).last_hidden_state
            ).image_embeds
        expected[f"latents_{index}"] = run(pipe, prior, image, case)
        felt = rel_l2(run(pipe, prior, None, case), expected[f"latents_{index}"])
        if felt < 1e-2:
            raise SystemExit(f"case {index}: the picture hardly matters ({felt:.2g})")
        print(f"case {index}: the picture moves the latents by {felt:.2g}")
    (out / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")
    save(out / "expected.safetensors", expected)


if __name__ == "__main__":
    main()
