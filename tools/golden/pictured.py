"""Runs the reference's pipelines that start from, follow or look at pictures, on folders of `random_pipeline`."""

import dataclasses

from common import gen, randomize
from random_pipeline import Case, load, rendered_size

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import (  # noqa: E402
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from PIL import Image  # noqa: E402

PIPELINES = {
    "img2img": FluxImg2ImgPipeline,
    "inpaint": FluxInpaintPipeline,
    "fill": FluxFillPipeline,
    "control": FluxControlPipeline,
    "kontext": FluxKontextPipeline,
}
TRUE_CFG = ("img2img", "inpaint", "kontext")
STRENGTH = ("img2img", "inpaint", "fill")
MASK = ("inpaint", "fill")


@dataclasses.dataclass
class Pictured(Case):
    """A request with pictures. The picture is as it is given, of any size; so is the mask."""

    kind: str = "img2img"
    strength: float = 0.6


def wide_channels(kind, spec):
    """Channels that `x_embedder` takes."""
    packed, factor = 4 * spec.latent, 2 ** (len(spec.vae_channels) - 1)
    return {"control": 2 * packed, "fill": 2 * packed + 4 * factor * factor}.get(kind, packed)


def widened(pipe, kind, spec):
    """A transformer like the pipeline's with the input of `kind`, random throughout."""
    config = {k: v for k, v in pipe.transformer.config.items() if k[0] != "_"}
    config.update(in_channels=wide_channels(kind, spec), out_channels=4 * spec.latent)
    transformer = FluxTransformer2DModel(**config)
    return randomize(transformer, spec.seed + 13)


def scene(width, height, seed):
    """A smooth picture with an edge, none of it clipped."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    a, b, c, d = rng.uniform(0.05, 0.5, 4)
    planes = [128 + 90 * np.sin(a * x + b * y), 128 + 80 * np.cos(c * x - d * y), np.where(x * a > y * c, 200, 60)]
    return Image.fromarray(np.clip(np.stack(planes, -1) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8))


def blob(width, height, seed):
    """A mask: a soft ellipse, white inside."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    cx, cy = rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height
    rx, ry = rng.uniform(0.25, 0.5) * width, rng.uniform(0.25, 0.5) * height
    level = 255 * np.clip(1.5 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2, 0, 1)
    return Image.fromarray(level.astype(np.uint8)).convert("RGB")


def pictured_pipeline(folder, kind, transformer=None):
    """The folder's parts in the pipeline of that kind."""
    pipe = load(folder)
    parts = {
        name: getattr(pipe, name)
        for name in ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    }
    if transformer is not None:
        parts["transformer"] = transformer
    pipe = PIPELINES[kind](**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_pictured(pipe, case, picture, mask=None):
    """Unpacked latents [1,C,h,w] and uint8 pixels. The size is one that is rendered whole."""
    width, height = rendered_size(case, 2 * pipe.vae_scale_factor)
    assert (width, height) == (case.width, case.height), "the references floor sizes off the grid"
    arguments = dict(
        prompt=case.prompt,
        width=width,
        height=height,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        max_sequence_length=case.max_sequence_length,
    )
    if case.kind in TRUE_CFG:
        arguments.update(negative_prompt=case.negative_prompt, true_cfg_scale=case.true_cfg)
    if case.kind in STRENGTH:
        arguments["strength"] = case.strength
    if case.kind in MASK:
        arguments["mask_image"] = mask
    if case.kind == "control":
        arguments["control_image"] = picture
    else:
        arguments["image"] = picture
    if case.kind == "kontext":
        arguments.update(_auto_resize=False, max_area=width * height)
    packed = pipe(**arguments, generator=gen(case.seed), output_type="latent").images
    image = pipe(**arguments, generator=gen(case.seed), output_type="np").images[0]
    return {
        "latents": pipe._unpack_latents(packed, height, width, pipe.vae_scale_factor).contiguous(),
        "pixels": torch.from_numpy((image * 255).round().astype("uint8")).contiguous(),
    }
