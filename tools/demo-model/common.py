"""What the training stages share: a wall-clock schedule, pausing, restartable state, averaged weights."""

import json
import math
import random
import time
from pathlib import Path

import torch
from torch import nn

from config import Config


def setup(cfg: Config, stage: int) -> random.Random:
    """Seeds every generator of a stage and returns the Python one."""
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed + stage)
    return random.Random(cfg.seed + stage)


class Clock:
    """Training time in minutes; learning rates follow it, so a shared machine still anneals in time."""

    def __init__(self, cfg: Config, minutes: float):
        self.pause_file = Path(cfg.pause_file) if cfg.pause_file else None
        self.minutes, self.spent, self.last = minutes, 0.0, time.monotonic()

    def tick(self) -> float:
        """Adds the time since the last call and returns the share of the schedule done; sleeps while paused."""
        now = time.monotonic()
        self.spent += (now - self.last) / 60
        while self.pause_file and self.pause_file.exists():
            time.sleep(1)
        self.last = time.monotonic()
        return self.spent / self.minutes

    def rate(self, warm: float = 0.02) -> float:
        """Warm-up, then half a cosine down to zero."""
        done = min(1.0, self.spent / self.minutes)
        return min(1.0, (done + 1e-4) / warm) * 0.5 * (1 + math.cos(math.pi * done))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * rate


class State:
    """Saves and restores modules, optimisers and the clock of one stage."""

    def __init__(self, path: Path, clock: Clock, **parts):
        self.path, self.clock, self.parts, self.saved = path, clock, parts, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)

    def load(self) -> bool:
        if not self.path.exists():
            return False
        state = torch.load(self.path, weights_only=True)
        self.clock.spent = state.pop("spent")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return True

    def save(self, every: float = 0.0) -> None:
        """Writes the state when `every` minutes have passed since the last time."""
        if time.monotonic() - self.saved < every * 60:
            return
        self.saved = time.monotonic()
        state = {name: part.state_dict() for name, part in self.parts.items()} | {"spent": self.clock.spent}
        draft = self.path.with_suffix(".tmp")
        torch.save(state, draft)
        draft.replace(self.path)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Moves the averaged weights towards the model's."""
    mine, theirs = list(average.parameters()), list(model.parameters())
    torch._foreach_lerp_(mine, theirs, 1 - keep)


def log(path: Path, **fields) -> None:
    line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in fields.items()})
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")
