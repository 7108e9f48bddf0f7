"""ComfyUI's schedules, and its samplers' ways through a velocity that is a formula.

    make_samplers.py COMFYUI [--out FOLDER]

COMFYUI is a checkout of ComfyUI, whose own `comfy.samplers`, `comfy.k_diffusion.sampling` and `comfy.model_sampling` are run.
Writes `samplers.json`:

* `tables`: noise levels by `calculate_sigmas` for `ModelSamplingFlux` (shift mu; FLUX.1 dev and its kin) and for
  `ModelSamplingDiscreteFlow` (shift 1; schnell);
* `paths`: from noise of a seed along the velocity `toy`, with the sampler's own noise (the seed after): the latents that
  each step begins with, and the last ones.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from common import FIXTURES

SPACINGS = ["simple", "normal", "beta", "sgm_uniform", "karras"]
SAMPLERS = ["euler", "heun", "dpmpp_2m", "euler_ancestral", "lcm"]
SHAPE = (1, 2, 4, 4)


def toy(x, sigma):
    """A velocity that bends with the place and with the noise level; plain arithmetic in float32."""
    target = torch.linspace(-1.0, 1.0, x.numel()).reshape(x.shape)
    return (x - target) * (0.75 + 0.5 * sigma) - 0.25 * x * x * x / (1.0 + x * x)


def numbers(tensor):
    return [float(f"{v:.9g}") for v in tensor.flatten().tolist()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("--out", type=Path, default=FIXTURES)
    args = parser.parse_args()
    sys.path.insert(0, str(args.comfyui))
    from comfy import model_sampling, samplers
    from comfy.k_diffusion import sampling

    def flux(mu):
        s = model_sampling.ModelSamplingFlux()
        s.set_parameters(shift=mu)
        return s

    def schnell():
        s = model_sampling.ModelSamplingDiscreteFlow()
        s.set_parameters(shift=1.0, multiplier=1.0)
        return s

    def mu_of(tokens):
        return (tokens - 256) * (1.15 - 0.5) / (4096 - 256) + 0.5

    kinds = [("flux", None, flux(1.15)), ("flux", 1024, flux(mu_of(1024))), ("flux", 6400, flux(mu_of(6400)))]
    kinds.append(("schnell", None, schnell()))
    tables = []
    for model, tokens, table in kinds:
        for spacing in SPACINGS:
            for steps in [1, 2, 3, 4, 8, 20, 28, 50] + ([300] if spacing == "beta" else []):
                sigmas = samplers.calculate_sigmas(table, spacing, steps)
                tables.append(
                    {"model": model, "tokens": tokens, "spacing": spacing, "steps": steps, "sigmas": numbers(sigmas)}
                )

    class Sampling(model_sampling.ModelSamplingFlux, model_sampling.CONST):
        pass

    class Namespace:
        def __init__(self, **fields):
            self.__dict__.update(fields)

    class Model:
        """As deep as the samplers look."""

        def __init__(self):
            model_sampling = Sampling()
            patcher = Namespace(get_model_object=lambda name: model_sampling)
            self.inner_model = Namespace(
                inner_model=Namespace(model_sampling=model_sampling), model_patcher=patcher
            )

        def __call__(self, x, sigma, **_):
            s = self.inner_model.inner_model.model_sampling
            return s.calculate_denoised(sigma, toy(x, sigma.reshape(-1, 1, 1, 1)), x)

    paths = []
    for name in SAMPLERS:
        for spacing, steps, seed in (("simple", 6, 5), ("beta", 4, 4294967301)):
            sigmas = samplers.calculate_sigmas(flux(1.15), spacing, steps)
            start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
            begun = []
            sample = getattr(sampling, f"sample_{name}")
            end = sample(
                Model(), start, sigmas, extra_args={"seed": seed}, disable=True, callback=lambda d: begun.append(d["x"])
            )
            paths.append(
                {
                    "sampler": name,
                    "seed": str(seed),
                    "sigmas": numbers(sigmas),
                    "latents": [numbers(x) for x in (*begun, end)],
                }
            )
    # One case a line keeps the file readable and its changes visible.
    lines = lambda cases: "[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]"
    text = f'{{"shape": {list(SHAPE)}, "tables": {lines(tables)}, "paths": {lines(paths)}}}\n'
    (args.out / "samplers.json").write_text(text)


if __name__ == "__main__":
    main()
