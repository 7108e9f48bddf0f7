"""Autoencoder: 8x smaller, 16 channels, in diffusers' own class."""

import random

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from common import Clock, State, log, set_rate, setup
from config import Config
from data import Pictures, batch, random_scene
from muon import Muon, groups


def build(cfg: Config) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=cfg.ae_channels,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=cfg.ae_groups,
        sample_size=cfg.size,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).to(cfg.device, memory_format=torch.channels_last)


def sharpness(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """L1 between the picture gradients, at full and half size: asks for crisp edges."""
    loss = 0.0
    for scale in (1, 2):
        a, b = (F.avg_pool2d(x, scale) if scale > 1 else x for x in (made, true))
        for axis in (2, 3):
            loss = loss + (a.diff(dim=axis) - b.diff(dim=axis)).abs().mean()
    return loss


def psnr(made: torch.Tensor, true: torch.Tensor) -> float:
    """Mean over the pictures, for values in [-1, 1]."""
    error = ((made.clamp(-1, 1) - true) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * error.log10()).mean())


def train(cfg: Config) -> None:
    rng = setup(cfg, 1)
    pictures = Pictures(cfg)
    held = random.Random(cfg.seed + 1000)
    test = batch(pictures, [random_scene(held) for _ in range(96)], held).to(cfg.device)
    model = build(cfg)
    optimiser = Muon(groups(model, cfg.ae_lr))
    clock = Clock(cfg, cfg.ae_minutes)
    state = State(cfg.work / "autoencoder.pt", clock, model=model, optimiser=optimiser)
    state.load()

    @torch.compile(dynamic=False)
    def loss_of(x: torch.Tensor, noise: torch.Tensor, jitter: torch.Tensor) -> tuple:
        with torch.autocast(cfg.device, torch.bfloat16):
            mean, logvar = model.encoder(x).float().chunk(2, dim=1)
            logvar = logvar.clamp(-30, 20)
            latent = mean + noise * (0.5 * logvar).exp() + jitter * cfg.ae_noise * mean.std()
            made = model.decoder(latent).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        pixel = (made - x).abs().mean() + 2 * (made - x).square().mean()
        return pixel + sharpness(made, x) + cfg.ae_kl * kl, kl

    step, shape = 0, (cfg.ae_batch, 16, cfg.latent, cfg.latent)
    while clock.tick() < 1:
        set_rate(optimiser, clock.rate())
        x = batch(pictures, [random_scene(rng) for _ in range(cfg.ae_batch)], rng).to(cfg.device)
        x = x.contiguous(memory_format=torch.channels_last)
        loss, kl = loss_of(x, torch.randn(shape, device=cfg.device), torch.randn(shape, device=cfg.device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 200 == 0:
            log(cfg.work / "autoencoder.log", step=step, minutes=clock.spent, loss=float(loss), kl=float(kl),
                psnr=quality(model, test))
        state.save(every=4)
        step += 1
    log(cfg.work / "autoencoder.log", step=step, minutes=clock.spent, psnr=quality(model, test),
        pictures=step * cfg.ae_batch)
    measure(cfg, model, pictures, rng)
    state.save()


@torch.no_grad()
def quality(model: AutoencoderKL, test: torch.Tensor) -> float:
    """Mean PSNR of held pictures."""
    parts = test.split(16)
    return sum(psnr(model.decode(model.encode(x).latent_dist.mode()).sample, x) for x in parts) / len(parts)


@torch.no_grad()
def measure(cfg: Config, model: AutoencoderKL, pictures: Pictures, rng: random.Random) -> None:
    """Stores the latents' mean and deviation: the pipeline's shift and 1 / scale."""
    x = batch(pictures, [random_scene(rng) for _ in range(1024)], rng).to(cfg.device)
    latents = torch.cat([model.encode(part).latent_dist.mode() for part in x.split(64)])
    stats = {"shift_factor": float(latents.mean()), "scaling_factor": float(1 / latents.std())}
    torch.save(stats, cfg.work / "latents.pt")
    log(cfg.work / "autoencoder.log", **stats)


def load(cfg: Config) -> AutoencoderKL:
    """The trained autoencoder, its latent statistics in the config."""
    model = build(cfg)
    model.load_state_dict(torch.load(cfg.work / "autoencoder.pt", weights_only=True)["model"])
    model.register_to_config(**torch.load(cfg.work / "latents.pt", weights_only=True))
    return model.eval().requires_grad_(False)
