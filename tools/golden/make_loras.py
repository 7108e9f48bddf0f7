"""LoRAs of several kinds on the tiny transformer `models/flux_diffusers.safetensors`, applied by the libraries that define them.

PEFT (through diffusers), diffusers' own reading of kohya's and XLabs' files, and LyCORIS. Each case is `<case>/<key>` for
the tensors of the LoRA's file and `<case>/out` for the model's velocity with it; a case's file metadata is the metadata entry of its name.
"""

import argparse
import json
from pathlib import Path

from common import FIXTURES, gen, save

import torch  # noqa: E402
from diffusers import FluxPipeline, FluxTransformer2DModel  # noqa: E402
from lycoris import LycorisNetwork, create_lycoris  # noqa: E402
from peft import LoraConfig  # noqa: E402
from peft.utils import get_peft_model_state_dict  # noqa: E402
from safetensors import safe_open  # noqa: E402


def fixture():
    """The transformer with the fixture's weights, and its inputs."""
    with safe_open(FIXTURES / "models" / "flux_diffusers.safetensors", "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}
        config = json.loads(f.metadata()["config"])
    model = FluxTransformer2DModel(**config)
    model.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("w.")})
    inputs = {k[3:]: v for k, v in tensors.items() if k.startswith("in.")}
    return model.eval(), inputs, tensors["out"]


def run(model, inputs):
    return model(**inputs, return_dict=False)[0]


def shake(module, seed):
    """Adapters begin as no change: random numbers instead, magnitudes near what they were."""
    g = gen(seed)
    for name, p in module.named_parameters():
        lora = ["lora_", "hada_", "lokr_", "dora_scale"]
        if any(part in name for part in lora) and p.numel() > 0:
            noise = torch.randn(p.shape, generator=g)
            p.data = p.data * (1 + 0.2 * noise) if "magnitude" in name or "dora_scale" in name else 0.4 * noise


TARGETS = [
    "x_embedder",
    "attn.to_q",
    "attn.to_v",
    "attn.add_k_proj",
    "attn.to_out.0",
    "ff.net.0.proj",
    "norm1_context.linear",
    "proj_mlp",
    "single_transformer_blocks.1.proj_out",
    "norm_out.linear",
]


def peft(dora):
    model, inputs, _ = fixture()
    ranks = {"attn.to_q": 2, "proj_mlp": 5}
    alphas = {"attn.to_v": 1, "norm_out.linear": 7}
    config = LoraConfig(
        r=3, lora_alpha=4, target_modules=TARGETS, rank_pattern=ranks, alpha_pattern=alphas, use_dora=dora
    )
    model.add_adapter(config)
    shake(model, 1 + dora)
    tensors = {f"transformer.{k}": v for k, v in get_peft_model_state_dict(model, adapter_name="default").items()}
    said = {"r": 3, "lora_alpha": 4, "rank_pattern": ranks, "alpha_pattern": alphas}
    metadata = {f"transformer.{k}": v for k, v in said.items()}
    return tensors, run(model, inputs), {"lora_adapter_metadata": json.dumps(metadata)}


def through_diffusers(tensors):
    """What diffusers makes of a file: `load_lora_weights` without a pipeline's other parts."""
    model, inputs, _ = fixture()
    converted = FluxPipeline.lora_state_dict(dict(tensors), return_alphas=True)
    state, alphas = converted[0], converted[1]
    FluxPipeline.load_lora_into_transformer(state, network_alphas=alphas, transformer=model)
    return tensors, run(model, inputs), {}


def random_pairs(shapes, down, up, alpha, seed):
    g = gen(seed)
    tensors = {}
    for i, (name, (out, features)) in enumerate(shapes.items()):
        rank = 3  # diffusers splits fused layers only where it is the same everywhere
        tensors[f"{name}{down}"] = 0.4 * torch.randn(rank, features, generator=g)
        tensors[f"{name}{up}"] = 0.4 * torch.randn(out, rank, generator=g)
        if alpha:
            tensors[f"{name}.alpha"] = torch.tensor(1.5 + i % 3)
    return tensors


def kohya():
    d = 24  # without linear1: diffusers cuts it at FLUX.1's own widths
    shapes = {
        "double_blocks_0_img_attn_qkv": (3 * d, d),
        "double_blocks_0_txt_attn_qkv": (3 * d, d),
        "double_blocks_0_img_attn_proj": (d, d),
        "double_blocks_1_txt_mlp_0": (4 * d, d),
        "double_blocks_1_img_mlp_2": (d, 4 * d),
        "double_blocks_1_img_mod_lin": (6 * d, d),
        "single_blocks_1_linear2": (d, 5 * d),
        "single_blocks_1_modulation_lin": (3 * d, d),
    }
    named = {f"lora_unet_{name}": shape for name, shape in shapes.items()}
    return through_diffusers(random_pairs(named, ".lora_down.weight", ".lora_up.weight", True, 11))


def xlabs():
    d = 24
    shapes = {}
    for i in range(2):
        block = f"double_blocks.{i}.processor"
        shapes |= {f"{block}.qkv_lora{n}": (3 * d, d) for n in (1, 2)} | {f"{block}.proj_lora{n}": (d, d) for n in (1, 2)}
    return through_diffusers(random_pairs(shapes, ".down.weight", ".up.weight", False, 12))


def lycoris(seed, **options):
    model, inputs, _ = fixture()
    LycorisNetwork.apply_preset({"target_module": ["FluxTransformerBlock", "FluxSingleTransformerBlock"]})
    network = create_lycoris(model, 1.0, **options)
    network.apply_to()
    shake(network, seed)
    out = run(model, inputs)
    return dict(network.state_dict()), out, {}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FIXTURES)
    out = parser.parse_args().out
    dora = {"dora_wd": True, "weight_decompose": True}
    cases = {
        "peft": peft(False),
        "peft_dora": peft(True),
        "kohya": kohya(),
        "xlabs": xlabs(),
        "loha": lycoris(21, linear_dim=2, linear_alpha=3.0, algo="loha"),
        "lokr": lycoris(22, linear_dim=2, linear_alpha=3.0, algo="lokr", factor=4),
        "lokr_whole": lycoris(23, linear_dim=10000, linear_alpha=1.0, algo="lokr", factor=4, full_matrix=True),
        "dora_rows": lycoris(24, linear_dim=2, linear_alpha=3.0, algo="lora", wd_on_out=True, **dora),
        "dora_columns": lycoris(25, linear_dim=2, linear_alpha=3.0, algo="lora", wd_on_out=False, **dora),
    }
    plain = run(*fixture()[:2])
    tensors, metadata = {}, {}
    for case, (lora, velocity, own) in cases.items():
        distance = ((velocity - plain).norm() / plain.norm()).item()
        print(f"{case}: {len(lora)} tensors, {distance:.3f} from the model without")
        assert distance > 0.01, case
        tensors |= {f"{case}/{k}": v.detach().clone().float().contiguous() for k, v in lora.items()}
        tensors[f"{case}/out"] = velocity.contiguous()
        metadata[case] = own
    save(out / "loras.safetensors", tensors, **metadata)


if __name__ == "__main__":
    main()
