"""Muon for weight matrices (convolutions flattened), AdamW for everything else, as one optimiser.

Muon (Keller Jordan, 2024) orthogonalises the momentum of each matrix; its step is scaled so that the
size of an update matches AdamW's and one learning rate serves both.
"""

import torch


class Muon(torch.optim.Optimizer):
    def __init__(self, groups: list[dict], momentum=0.95, betas=(0.9, 0.99), weight_decay=0.01):
        """Groups have `params`, `peak` (rate) and `muon` (whether these are matrices to orthogonalise)."""
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params or group["lr"] == 0:
                continue
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            (self._muon if group["muon"] else self._adam)(group, params)

    def _muon(self, group: dict, params: list[torch.Tensor]) -> None:
        shapes: dict[tuple, list[torch.Tensor]] = {}
        for p in params:
            shapes.setdefault(tuple(p.shape), []).append(p)
        for same in shapes.values():
            grads = [p.grad for p in same]
            buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in same]
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(grads, buffers, group["momentum"])
            update = orthogonal(torch.stack([g.flatten(1) for g in nesterov]))
            rate = 0.2 * max(update.shape[1:]) ** 0.5 * group["lr"]
            for p, u in zip(same, update):
                p.sub_(u.reshape(p.shape), alpha=rate)

    def _adam(self, group: dict, params: list[torch.Tensor]) -> None:
        first, second = group["betas"]
        for p in params:
            state = self.state[p]
            if not state:
                state |= {"step": torch.tensor(0.0), "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
            state["step"] += 1
            count = float(state["step"])
            state["mean"].lerp_(p.grad, 1 - first)
            state["square"].lerp_(p.grad.square(), 1 - second)
            scale = (state["square"] / (1 - second**count)).sqrt_().add_(1e-8)
            p.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - first**count))


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Nearest half-orthogonal matrices of a stack (n, rows, columns), by five Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).float()


def groups(module: torch.nn.Module, peak: float, embeddings: tuple[str, ...] = ()) -> list[dict]:
    """The two parameter groups of a module: its matrices, and its vectors and embeddings."""
    matrices, others = [], []
    for name, p in module.named_parameters():
        plain = p.ndim < 2 or any(part in name for part in embeddings)
        (others if plain else matrices).append(p)
    return [
        {"params": matrices, "peak": peak, "muon": True},
        {"params": others, "peak": peak, "muon": False},
    ]
