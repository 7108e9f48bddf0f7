"""Guidance distillation: the student's one pass at guidance g learns the teacher's v_u + g * (v_c - v_u).

As in FLUX.1 [dev]: afterwards guidance costs nothing, it is a number given to the transformer.
"""

import copy

import torch

import flow
from common import Clock, State, follow, log, set_rate, setup
from config import Config
from muon import Muon, groups


def train(cfg: Config) -> None:
    rng = setup(cfg, 5)
    pool = flow.Pool(cfg, rng)
    teacher = flow.load(cfg)
    model = copy.deepcopy(teacher)
    model.transformer.requires_grad_(True)
    average = copy.deepcopy(teacher)
    optimiser = Muon(groups(model.transformer, cfg.distil_lr), weight_decay=0.0)
    clock = Clock(cfg, cfg.distil_minutes)
    progress = flow.Progress()
    state = State(
        cfg.work / "distil.pt", clock, model=model, average=average, optimiser=optimiser, progress=progress
    )
    state.load()
    nothing = teacher.text(*teacher.text.tokens([""]))
    running = None
    while clock.tick() < 1:
        set_rate(optimiser, clock.rate())
        latents, captions = pool.batch(cfg.distil_batch)
        sigma, x, _ = flow.noisy(cfg, latents)
        low, high = cfg.guidance_range
        guidance = low + (high - low) * torch.rand_like(sigma)
        one = torch.ones_like(sigma)
        with torch.no_grad():
            pooled, states = teacher.text(*teacher.text.tokens(captions))
            blank = [part.expand_as(full) for part, full in zip(nothing, (pooled, states))]
            free = teacher.velocity(x, sigma, one, *blank)
            bound = teacher.velocity(x, sigma, one, pooled, states)
            target = free + guidance[:, None, None] * (bound - free)
        loss = (model.velocity(x, sigma, guidance, pooled, states) - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        progress.samples += cfg.distil_batch
        follow(average, model, 1 - min(1.0, cfg.distil_batch / min(cfg.ema_samples / 4, progress.samples / 4)))
        running = float(loss) if running is None else 0.98 * running + 0.02 * float(loss)
        if progress.samples // cfg.distil_batch % 50 == 0:
            log(cfg.work / "distil.log", samples=progress.samples, minutes=clock.spent, loss=running,
                off=float((bound - target).square().mean()))
        state.save(every=4)
    state.save()
