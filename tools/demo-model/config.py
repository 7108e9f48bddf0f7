"""Every number that shapes the model in the box, in one place."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """Change `size` to 128 (and give the stages more minutes) to train a larger picture on a GPU."""

    work: Path  # downloads, checkpoints, logs
    out: Path  # the finished diffusers folder
    name: str = "pocket"
    seed: int = 20
    size: int = 96  # pixels a side; a multiple of 16
    threads: int = 2
    machine: str = "two shared cores of a server CPU (AMD Zen 4, no GPU)"  # for the model card
    device: str = "cpu"
    pause_file: str = ""  # training sleeps while this file exists

    # packages of the data, fetched with `npm pack`
    pictures_package: str = "@lobehub/fluent-emoji-3d@1.1.0"
    captions_package: str = "emojibase-data@17.0.0"

    # autoencoder
    ae_channels: tuple = (16, 32, 64, 64)
    ae_groups: int = 8
    ae_minutes: float = 20.0
    ae_batch: int = 8
    ae_lr: float = 2.5e-3
    ae_kl: float = 2e-4
    ae_noise: float = 0.1  # noise on the latents (their deviation is about 1): robust to the sampler's residue

    # tokenizers and text encoders
    vocabulary: int = 1280
    clip_length: int = 77
    t5_length: int = 18
    text_width: int = 128
    text_minutes: float = 3.0
    text_batch: int = 128
    text_lr: float = 2e-3

    # flow transformer
    head_dim: int = 32
    heads: int = 6
    rope_axes: tuple = (4, 14, 14)
    double_blocks: int = 2
    single_blocks: int = 3
    mlp_ratio: float = 4.0
    flow_minutes: float = 50.0
    flow_batch: int = 128
    flow_lr: float = 2.5e-3
    flow_text_rate: float = 0.25  # learning rate of the (already reading) text encoders relative to the rest
    sigma_mean: float = 0.3  # noise levels in training: the sigmoid of a normal draw
    sigma_deviation: float = 1.1
    weight_decay: float = 0.01
    dropout: float = 0.1  # share of empty captions
    ema_samples: int = 40_000  # samples over which the averaged weights look back
    pool: int = 16_384  # encoded pictures kept ready
    pool_start: int = 1_024  # of them before the first step
    pool_refresh: float = 0.125  # share of each batch that is drawn and encoded afresh

    # guidance distillation
    distil_minutes: float = 7.0
    distil_batch: int = 64
    distil_lr: float = 1e-3
    guidance_range: tuple = (1.0, 6.0)

    # sampling
    shift: float = 1.5
    steps: int = 20
    guidance: float = 3.0
    true_cfg: float = 1.0

    @property
    def latent(self) -> int:
        return self.size // 8
