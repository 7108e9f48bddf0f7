"""Flow matching: a FLUX transformer learns the velocity from noise to encoded pictures.

Conventions are diffusers': x = sigma * noise + (1 - sigma) * latent, velocity = noise - latent,
the transformer is given sigma (and scales it by 1000 itself).
"""

import copy
import random
import re

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import autoencoder
from captions import caption
from common import Clock, State, follow, log, set_rate, setup
from config import Config
from data import Pictures, Scene, batch, random_scene
from muon import Muon, groups
from text import TextPath


class Model(nn.Module):
    """The transformer with its text path."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.text = TextPath(cfg)
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=cfg.double_blocks,
            num_single_layers=cfg.single_blocks,
            attention_head_dim=cfg.head_dim,
            num_attention_heads=cfg.heads,
            joint_attention_dim=cfg.text_width,
            pooled_projection_dim=cfg.text_width,
            guidance_embeds=True,
            axes_dims_rope=cfg.rope_axes,
        )
        # as in DiT: every block starts as the identity
        for name, module in self.transformer.named_modules():
            if name == "proj_out" or re.search(r"norm\w*\.linear$", name):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def velocity(self, x, sigma, guidance, pooled, states):
        """Packed velocity for packed latents x (n, tokens, 64)."""
        side = self.cfg.latent // 2
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = torch.stack([torch.zeros(side * side), rows.flatten(), columns.flatten()], dim=1).to(x)
        # with this few tokens the plain attention's backward pass is several times faster than the fused one's on a CPU
        with torch.autocast(self.cfg.device, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            return self.transformer(
                hidden_states=x,
                encoder_hidden_states=states,
                pooled_projections=pooled,
                timestep=sigma,
                guidance=guidance,
                img_ids=places,
                txt_ids=x.new_zeros(states.shape[1], 3),
                return_dict=False,
            )[0].float()


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(n, 16, h, w) to (n, h/2 * w/2, 64), as FLUX does it."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


class Pool:
    """Encoded pictures with their scenes; a part is drawn afresh with every batch."""

    def __init__(self, cfg: Config, rng: random.Random):
        self.cfg, self.rng = cfg, rng
        self.pictures, self.vae = Pictures(cfg), autoencoder.load(cfg)
        self.latents = torch.empty(cfg.pool, (cfg.latent // 2) ** 2, 64)
        self.scenes: list[Scene] = []
        self.next = 0
        while len(self.scenes) < cfg.pool_start:
            self.refresh(64)

    @torch.no_grad()
    def refresh(self, count: int) -> None:
        scenes = [random_scene(self.rng) for _ in range(count)]
        x = batch(self.pictures, scenes, self.rng).to(self.cfg.device, memory_format=torch.channels_last)
        with torch.autocast(self.cfg.device, torch.bfloat16):
            mode = self.vae.encode(x).latent_dist.mode().float()
        fresh = pack((mode - self.vae.config.shift_factor) * self.vae.config.scaling_factor).cpu()
        for latent, scene in zip(fresh, scenes):
            self.latents[self.next] = latent
            if self.next < len(self.scenes):
                self.scenes[self.next] = scene
            else:
                self.scenes.append(scene)
            self.next = (self.next + 1) % self.cfg.pool

    def batch(self, count: int) -> tuple[torch.Tensor, list[str]]:
        """Packed latents and a fresh caption for each."""
        self.refresh(round(count * self.cfg.pool_refresh))
        picks = [self.rng.randrange(len(self.scenes)) for _ in range(count)]
        return self.latents[picks].to(self.cfg.device), [caption(self.scenes[i], self.rng) for i in picks]


def noisy(cfg: Config, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise levels, noised latents and the velocity to learn."""
    sigma = (cfg.sigma_mean + cfg.sigma_deviation * torch.randn(len(latents), device=latents.device)).sigmoid()
    noise = torch.randn_like(latents)
    level = sigma[:, None, None]
    return sigma, level * noise + (1 - level) * latents, noise - latents


@torch.no_grad()
def score(model: Model, latents: torch.Tensor, captions: list[str], sigma: float, seed: int = 0) -> float:
    """Loss at one noise level, the noise fixed."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    level = torch.full((len(latents),), sigma, device=latents.device)
    pooled, states = model.text(*model.text.tokens(captions))
    made = model.velocity(sigma * noise + (1 - sigma) * latents, level, torch.ones_like(level), pooled, states)
    return float((made - (noise - latents)).square().mean())


def train(cfg: Config) -> None:
    rng = setup(cfg, 4)
    pool = Pool(cfg, rng)
    model = Model(cfg).to(cfg.device)
    model.text.load_state_dict(torch.load(cfg.work / "text.pt", weights_only=True)["text"])
    average = copy.deepcopy(model).requires_grad_(False)
    test = pool.batch(256)
    optimiser = Muon(
        groups(model.transformer, cfg.flow_lr)
        + groups(model.text, cfg.flow_lr * cfg.flow_text_rate, ("embedding", "shared", "relative_attention_bias")),
        weight_decay=cfg.weight_decay,
    )
    clock = Clock(cfg, cfg.flow_minutes)
    progress = Progress()
    state = State(
        cfg.work / "flow.pt", clock, model=model, average=average, optimiser=optimiser, progress=progress
    )
    state.load()
    running = None
    while clock.tick() < 1:
        set_rate(optimiser, clock.rate())
        latents, captions = pool.batch(cfg.flow_batch)
        captions = ["" if rng.random() < cfg.dropout else c for c in captions]
        sigma, x, target = noisy(cfg, latents)
        pooled, states = model.text(*model.text.tokens(captions))
        loss = (model.velocity(x, sigma, torch.ones_like(sigma), pooled, states) - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        progress.samples += cfg.flow_batch
        window = min(cfg.ema_samples, progress.samples / 4)
        follow(average, model, 1 - min(1.0, cfg.flow_batch / window))
        running = float(loss) if running is None else 0.98 * running + 0.02 * float(loss)
        if progress.samples // cfg.flow_batch % 100 == 0:
            swapped = test[1][1:] + test[1][:1]
            log(cfg.work / "flow.log", samples=progress.samples, minutes=clock.spent, loss=running,
                right=score(average, *test, 0.9), swapped=score(average, test[0], swapped, 0.9))
        state.save(every=4)
    state.save()


class Progress:
    """Samples seen, as a part of the saved state."""

    samples = 0

    def state_dict(self) -> dict:
        return {"samples": self.samples}

    def load_state_dict(self, state: dict) -> None:
        self.samples = state["samples"]


def load(cfg: Config, file: str = "flow.pt") -> Model:
    """The averaged weights of a checkpoint."""
    model = Model(cfg)
    model.load_state_dict(torch.load(cfg.work / file, weights_only=True)["average"])
    return model.to(cfg.device).eval().requires_grad_(False)
