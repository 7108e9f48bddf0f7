"""Helpers shared by the golden-fixture scripts: random weights, hooks, file writing."""

import json
import math
import os
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

torch.set_num_threads(1)
torch.set_grad_enabled(False)

FIXTURES = Path(__file__).resolve().parents[2] / "crates" / "flux" / "tests" / "golden"


def gen(seed):
    """A CPU generator with a fixed seed."""
    return torch.Generator("cpu").manual_seed(seed)


def randomize(module, seed, gain=1.0, gains=None):
    """Fill every parameter with reproducible values that exercise all code paths.

    Matrices and convolutions get N(0, gain/sqrt(fan_in)), norm weights lie around 1 but not at 1, biases are
    non-zero, token tables have unit variance. `gains` maps a name suffix to another gain.
    """
    g = gen(seed)
    norms = set()
    for name, child in module.named_modules():
        if "norm" in type(child).__name__.lower() and not list(child.children()):
            norms.add(name)
    for name, p in module.named_parameters():
        owner, leaf = name.rpartition(".")[::2]
        noise = torch.randn(p.shape, generator=g)
        if owner in norms and leaf == "weight":
            p.copy_(1 + 0.25 * noise)
        elif p.ndim <= 1:
            p.copy_(0.1 * noise)
        elif "relative_attention_bias" in name:
            p.copy_(noise)
        elif "embedding" in owner.rpartition(".")[2] or owner.endswith(("shared", "embed_tokens")):
            p.copy_(noise * (0.3 if "position" in owner else 1.0))
        else:
            k = gain
            for suffix, value in (gains or {}).items():
                if name.endswith(suffix):
                    k = value
            p.copy_(noise * k / math.sqrt(p[0].numel()))
    return module.eval()


def weights(module, prefix="w."):
    """Contiguous copies of a module's tensors under `prefix`; tied tensors are written once."""
    out, seen = {}, set()
    for name, t in module.state_dict().items():
        if t.data_ptr() in seen and t.numel() > 0:
            continue
        seen.add(t.data_ptr())
        out[prefix + name] = t.detach().clone().contiguous()
    return out


class Recorder:
    """Collects outputs of named submodules as `act.<name>` (tuples get a suffix per element)."""

    def __init__(self, module, names, suffixes=()):
        self.acts, self.handles = {}, []
        modules = dict(module.named_modules())
        for name in names:
            self.handles.append(modules[name].register_forward_hook(self._hook(name, suffixes)))

    def _hook(self, name, suffixes):
        def hook(_module, _args, output):
            if isinstance(output, torch.Tensor):
                self.acts[f"act.{name}"] = output.detach().clone().contiguous()
            else:
                tensors = [t for t in output if isinstance(t, torch.Tensor)]
                for i, t in enumerate(tensors):
                    tag = suffixes[i] if i < len(suffixes) else str(i)
                    self.acts[f"act.{name}.{tag}"] = t.detach().clone().contiguous()

        return hook

    def close(self):
        for h in self.handles:
            h.remove()
        return self.acts


def config_json(model):
    """The model's own config without library bookkeeping."""
    config = model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)
    drop = {"architectures", "transformers_version", "dtype", "torch_dtype"}
    return json.dumps({k: v for k, v in sorted(config.items()) if k not in drop and k[0] != "_"}, default=list)


def save(path, tensors, **metadata):
    """Write one safetensors file; metadata values that are not strings become JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path), metadata=meta)
    print(f"{path.name:36} {path.stat().st_size:>9} B  {len(tensors)} tensors")


def rel_l2(a, b):
    """Relative L2 distance of `a` from reference `b`."""
    a, b = a.double().flatten(), b.double().flatten()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))
