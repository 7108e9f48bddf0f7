"""Noise of torch's CPU generator and noise schedules.

Writes `rng_odd_sizes.json` (sizes below 16 and not divisible by 16) and `schedules_diffusers.json` (scheduler
configurations other than FLUX's own), and compares freshly computed values with `rng_cpu_avx2.json` and
`schedules.json`, printing every difference. The exact noise needs an x86-64 CPU with AVX2.

bfloat16 (and float16) noise of 16 values and more is not the same in all torch versions. `rng_cpu_avx2.json` comes
from torch 2.8, which computed it in bfloat16 from 8-bit uniforms. The pinned torch draws float32 uniforms, block of
16 by block, computes in float32 and rounds the result; a last partial block redraws the last 16 values from the next
16 words. So these cases are expected to differ, and only these.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path

from common import FIXTURES, gen

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import FlowMatchEulerDiscreteScheduler  # noqa: E402
from diffusers.pipelines.flux.pipeline_flux import calculate_shift  # noqa: E402

SEEDS = [0, 7, 4294967295, 4294967296, 1311768467463790320, 18446744073709551615]
SIZES = [1, 2, 3, 5, 8, 13, 15, 16, 17, 18, 24, 30, 31, 33, 47, 49, 63, 65, 100, 127, 255, 1001, 4095]
VIEWS = {torch.float32: (torch.int32, 0xFFFFFFFF), torch.bfloat16: (torch.int16, 0xFFFF)}


def noise_case(seed, n, dtype):
    x = torch.randn(n, generator=gen(seed), dtype=dtype)
    view, mask = VIEWS[dtype]
    bits = x.view(view)
    return {
        "seed": str(seed),
        "n": n,
        "dtype": str(dtype).removeprefix("torch."),
        "first_bits": [int(b) & mask for b in bits[:20].tolist()],
        "sha256": hashlib.sha256(bits.numpy().tobytes()).hexdigest(),
    }


def carried_draws(seed, sizes):
    """Draws in a row from one generator: below 16 values the second half of a pair is kept for the next call."""
    g = gen(seed)
    return {"seed": str(seed), "sizes": sizes, "draws": [torch.randn(n, generator=g).tolist() for n in sizes]}


def line_mu(tokens):
    """FLUX's shift exponent: the line through (256, 0.5) and (4096, 1.15)."""
    return calculate_shift(tokens)


def bfl_schedule(steps, mu):
    t = torch.linspace(1, 0, steps + 1)
    return (math.exp(mu) / (math.exp(mu) + (1 / t - 1))).tolist()


def diffusers_schedule(steps, tokens, **config):
    """The FluxPipeline's own calls: sigmas 1..1/n, mu from the configuration."""
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    c = scheduler.config
    mu = calculate_shift(tokens, c.base_image_seq_len, c.max_image_seq_len, c.base_shift, c.max_shift)
    scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler


def comfy_simple(steps, mu):
    """ComfyUI's `simple` scheduler over its table of 10000 shifted values s_i = shift(mu, i/10000), i = 1..10000:
    entry -(1 + int(x * 10000 / steps)) for x = 0..steps-1, then 0. Written from the formulas."""
    t = torch.arange(1, 10001) / 10000
    table = math.exp(mu) / (math.exp(mu) + (1 / t - 1))
    return [float(table[-(1 + int(x * 10000 / steps))]) for x in range(steps)] + [0.0]


FLUX = dict(use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15)
CONFIGS = [
    dict(shift=1.0),
    dict(shift=3.0),
    dict(shift=0.6),
    FLUX,
    dict(FLUX, base_shift=0.2, max_shift=2.1, base_image_seq_len=64, max_image_seq_len=1024),
    dict(FLUX, shift_terminal=0.02),
    dict(FLUX, time_shift_type="linear"),
    dict(shift=2.0, shift_terminal=0.1),
    dict(FLUX, num_train_timesteps=500),
]


def compare_noise(path):
    fixture = json.loads(path.read_text())
    wrong = changed = 0
    for case in fixture["cases"]:
        fresh = noise_case(int(case["seed"]), case["n"], getattr(torch, case["dtype"]))
        if case["dtype"] == "bfloat16" and case["n"] >= 16:
            changed += fresh != case
        else:
            wrong += fresh != case
    carry = carried_draws(7, [3, 3, 32])["draws"]
    wrong += carry != list(fixture["carry_seed7"].values())
    print(
        f"{path.name}: {len(fixture['cases'])} cases and the carried value, {wrong} differ; "
        f"{changed} bfloat16 cases differ because torch {torch.__version__} computes them in float32"
    )
    return wrong


def compare_schedules(path):
    worst, entries = {}, {}
    for case in json.loads(path.read_text()):
        steps, mu = case["steps"], line_mu(case["seq"])
        fresh = {
            "bfl": bfl_schedule(steps, mu),
            "diffusers": diffusers_schedule(steps, case["seq"], **FLUX).sigmas.tolist(),
            "comfy_simple_mu115": comfy_simple(steps, 1.15),
            "comfy_simple_mu_seq": comfy_simple(steps, mu),
        }
        for name, values in fresh.items():
            distance = [abs(a - b) for a, b in zip(values, case[name], strict=True)]
            worst[name] = max(worst.get(name, 0.0), max(distance))
            entries[name] = entries.get(name, 0) + sum(d > 0 for d in distance)
    for name in worst:
        print(f"{path.name} {name}: largest difference {worst[name]:.3g}, {entries[name]} entries differ")
    return max(worst.values()) > 1.3e-7


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FIXTURES)
    out = parser.parse_args().out
    rng = {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cases": [noise_case(s, n, d) for s in SEEDS for n in SIZES for d in VIEWS],
        "carried": [carried_draws(11, [5, 5, 5, 16, 3]), carried_draws(4294967307, [1, 1, 1, 40, 2, 2])],
    }
    # One case per line keeps the file readable and its changes visible.
    body = ",\n".join(json.dumps(c) for c in rng["cases"])
    head = {k: v for k, v in rng.items() if k != "cases"}
    (out / "rng_odd_sizes.json").write_text(json.dumps(head)[:-1] + ',\n"cases": [\n' + body + "\n]}\n")
    schedules = []
    for config in CONFIGS:
        for steps, tokens in ((1, 48), (4, 4096), (7, 100)):
            s = diffusers_schedule(steps, tokens, **config)
            # `model_time` is what the transformer multiplies by 1000 again: timestep / 1000 in float32.
            schedules.append(
                {
                    "config": config,
                    "steps": steps,
                    "tokens": tokens,
                    "sigmas": s.sigmas.tolist(),
                    "timesteps": s.timesteps.tolist(),
                    "model_time": (s.timesteps / 1000).tolist(),
                }
            )
    (out / "schedules_diffusers.json").write_text("[\n" + ",\n".join(json.dumps(s) for s in schedules) + "\n]\n")
    failed = compare_noise(out / "rng_cpu_avx2.json")
    failed += compare_schedules(out / "schedules.json")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
