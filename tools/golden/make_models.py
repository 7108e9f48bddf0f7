"""Tiny random models of every kind with recorded activations, run by the reference libraries in float32.

Each file holds the weights as `w.<reference name>`, inputs as `in.*`, block outputs as `act.<block>` and the
final outputs; the metadata entry `config` is the model's own config JSON.
"""

import argparse
import copy
from pathlib import Path

from common import FIXTURES, Recorder, config_json, gen, randomize, rel_l2, save, weights

import torch  # noqa: E402
from diffusers import AutoencoderKL, AutoencoderTiny, FluxTransformer2DModel  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel  # noqa: E402


def gap64(model, fn, outputs):
    """Largest relative L2 distance between the float32 outputs and the same model in float64."""
    double = copy.deepcopy(model).double()
    exact = fn(double, torch.float64)
    return max(rel_l2(outputs[k], v) for k, v in exact.items())


def image_ids(rows, cols):
    """FLUX position ids of a rows x cols token grid: (0, row, column)."""
    ids = torch.zeros(rows, cols, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(cols)[None, :]
    return ids.reshape(-1, 3)


def transformer(out, name, seed, config, rows, cols, text, batch):
    model = randomize(FluxTransformer2DModel(**config), seed)
    g = gen(seed + 1)
    inputs = {
        "hidden_states": torch.randn(batch, rows * cols, config["in_channels"], generator=g),
        "encoder_hidden_states": torch.randn(batch, text, config["joint_attention_dim"], generator=g),
        "pooled_projections": torch.randn(batch, config["pooled_projection_dim"], generator=g),
        "timestep": torch.tensor([0.9045307636, 0.25, 0.013][:batch]),
        "img_ids": image_ids(rows, cols),
        "txt_ids": torch.zeros(text, 3),
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = torch.tensor([4.5, 3.5, 1.25][:batch])

    def run(m, dtype):
        return {"out": m(**{k: v.to(dtype) for k, v in inputs.items()}, return_dict=False)[0]}

    blocks = [f"transformer_blocks.{i}" for i in range(config["num_layers"])]
    blocks += [f"single_transformer_blocks.{i}" for i in range(config["num_single_layers"])]
    embeds = ["x_embedder", "context_embedder", "time_text_embed", "norm_out"]
    recorder = Recorder(model, embeds + blocks, ("txt", "img"))
    outputs = run(model, torch.float32)
    # The blocks return (text, image); pos_embed returns (cos, sin) and is recorded by hand.
    cos, sin = model.pos_embed(torch.cat([inputs["txt_ids"], inputs["img_ids"]]))
    acts = {**recorder.close(), "act.pos_embed.cos": cos, "act.pos_embed.sin": sin}
    tensors = {**weights(model), **{f"in.{k}": v for k, v in inputs.items()}, **acts, **outputs}
    save(out / f"{name}.safetensors", tensors, config=config_json(model))
    print("   float64 gap", gap64(model, run, outputs))


def clip(out, name, seed, eos_rule, act, layers, width, heads, mlp, vocab, length):
    """`eos_rule` 'argmax' sets eos_token_id 2 (old configs: position of the largest id), else the true id."""
    eos = vocab - 1
    config = CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=length,
        hidden_act=act,
        layer_norm_eps=1e-5,
        bos_token_id=vocab - 2,
        eos_token_id=2 if eos_rule == "argmax" else eos,
        pad_token_id=eos,
        projection_dim=width,
    )
    model = randomize(CLIPTextModel(config), seed)
    ids = torch.randint(3, vocab - 2, (3, length), generator=gen(seed + 1))
    ids[:, 0] = vocab - 2
    for row, end in enumerate((1, length // 2, length - 1)):
        # Row 1 is padded with 0, not with the end token, so that "last end token" is not "last position".
        ids[row, end] = eos
        ids[row, end + 1 :] = 0 if row == 1 else eos
    if eos_rule != "argmax":
        # A token id of 2 in the text: the argmax rule and the equality rule agree, a search for 2 does not.
        ids[1, 2] = 2

    def run(m, dtype):
        r = m(ids)
        return {"last_hidden_state": r.last_hidden_state, "pooled": r.pooler_output}

    names = [n for n, _ in model.named_modules() if n.endswith(tuple(f"encoder.layers.{i}" for i in range(layers)))]
    recorder = Recorder(model, names)
    outputs = run(model, torch.float32)
    acts = recorder.close()
    save(out / f"{name}.safetensors", {**weights(model), "in.ids": ids, **acts, **outputs}, config=config_json(model))
    print("   float64 gap", gap64(model, run, outputs))


def t5(out, name, seed, ff, layers, width, heads, d_kv, d_ff, vocab, length, buckets=32, distance=128):
    config = T5Config(
        vocab_size=vocab,
        d_model=width,
        d_kv=d_kv,
        d_ff=d_ff,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj=ff,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=distance,
        is_encoder_decoder=False,
        use_cache=False,
    )
    model = randomize(T5EncoderModel(config), seed, gains={"SelfAttention.q.weight": 0.4})
    ids = torch.randint(3, vocab, (2, length), generator=gen(seed + 1))
    ids[0, length // 3] = 1
    ids[0, length // 3 + 1 :] = 0

    def run(m, dtype):
        return {"out": m(ids, return_dict=False)[0]}

    recorder = Recorder(model, [f"encoder.block.{i}" for i in range(layers)], ("out", "bias"))
    outputs = run(model, torch.float32)
    # Keep hidden states only; the position bias is large and follows from block 0.
    acts = {k: v for k, v in recorder.close().items() if v.ndim == 3}
    save(out / f"{name}.safetensors", {**weights(model), "in.ids": ids, **acts, **outputs}, config=config_json(model))
    print("   float64 gap", gap64(model, run, outputs))


def vae(out, name, seed, channels, groups, layers, latent, size, mid_attention=True, quant=False, tile=None):
    """`tile` = (tile_sample_min_size, tile_overlap_factor): the whole image is also coded in tiles."""
    levels = len(channels)
    scale = 2 ** (levels - 1)
    config = dict(
        in_channels=3,
        out_channels=3,
        latent_channels=latent,
        block_out_channels=channels,
        layers_per_block=layers,
        norm_num_groups=groups,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        act_fn="silu",
        sample_size=32,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        mid_block_add_attention=mid_attention,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )
    model = randomize(AutoencoderKL(**config), seed)
    if tile:
        model.enable_tiling()
        model.tile_sample_min_size, model.tile_overlap_factor = tile
        model.tile_latent_min_size = tile[0] // scale
    g = gen(seed + 1)
    height, width = size
    x = torch.rand(1, 3, height, width, generator=g) * 2 - 1
    z = torch.randn(1, latent, height // scale, width // scale, generator=g)

    def run(m, dtype):
        return {"moments": m.encode(x.to(dtype)).latent_dist.parameters, "decoded": m.decode(z.to(dtype)).sample}

    blocks = []
    if not tile:
        for side, part in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
            blocks += [f"{side}.conv_in", f"{side}.mid_block"] + [f"{side}.{part}.{i}" for i in range(levels)]
    recorder = Recorder(model, blocks)
    outputs = run(model, torch.float32)
    acts = recorder.close()
    meta = {"config": config_json(model)}
    if tile:
        meta["tiling"] = {
            "tile_sample_min_size": tile[0],
            "tile_latent_min_size": model.tile_latent_min_size,
            "tile_overlap_factor": tile[1],
        }
    save(out / f"{name}.safetensors", {**weights(model), "in.x": x, "in.z": z, **acts, **outputs}, **meta)
    print("   float64 gap", gap64(model, run, outputs))


def tiny_vae(out, name, seed, channels, latent, size):
    config = dict(
        latent_channels=latent,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 3, 3, 3),
        num_decoder_blocks=(3, 3, 3, 1),
    )
    model = randomize(AutoencoderTiny(**config), seed)
    g = gen(seed + 1)
    x = torch.rand(1, 3, *size, generator=g) * 2 - 1
    # Wide latents so that the soft clamp 3*tanh(x/3) is felt.
    z = 2.5 * torch.randn(1, latent, size[0] // 8, size[1] // 8, generator=g)

    def run(m, dtype):
        return {"encoded": m.encode(x.to(dtype)).latents, "decoded": m.decode(z.to(dtype)).sample}

    outputs = run(model, torch.float32)
    save(out / f"{name}.safetensors", {**weights(model), "in.x": x, "in.z": z, **outputs}, config=config_json(model))
    print("   float64 gap", gap64(model, run, outputs))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FIXTURES / "models")
    out = parser.parse_args().out
    transformer(
        out,
        "flux_diffusers",
        11,
        dict(
            in_channels=12,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=12,
            num_attention_heads=2,
            joint_attention_dim=20,
            pooled_projection_dim=14,
            guidance_embeds=True,
            axes_dims_rope=(2, 4, 6),
        ),
        rows=3,
        cols=5,
        text=7,
        batch=2,
    )
    transformer(
        out,
        "flux_diffusers_no_guidance",
        12,
        dict(
            in_channels=20,
            out_channels=8,
            num_layers=1,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=3,
            joint_attention_dim=10,
            pooled_projection_dim=6,
            guidance_embeds=False,
            axes_dims_rope=(4, 2, 2),
        ),
        rows=4,
        cols=3,
        text=5,
        batch=3,
    )
    clip(out, "clip_quick_gelu", 21, "first", "quick_gelu", 3, 24, 3, 40, 61, 19)
    clip(out, "clip_gelu_argmax", 22, "argmax", "gelu", 2, 20, 2, 52, 47, 13)
    t5(out, "t5_gated_gelu", 31, "gated-gelu", 3, 18, 3, 10, 28, 53, 150)
    t5(out, "t5_relu", 32, "relu", 2, 22, 2, 6, 30, 41, 70, buckets=20, distance=50)
    vae(out, "vae_1_level", 41, (6,), 3, 1, 4, (7, 10))
    vae(out, "vae_2_levels", 42, (6, 12), 2, 2, 5, (10, 16), quant=True)
    vae(out, "vae_3_levels_no_attention", 43, (4, 8, 8), 4, 1, 3, (20, 12), mid_attention=False)
    vae(out, "vae_4_levels", 44, (4, 4, 8, 8), 2, 1, 16, (24, 40))
    vae(out, "vae_tiled", 45, (4, 6), 2, 1, 4, (38, 52), tile=(16, 0.25))
    vae(out, "vae_tiled_4_levels", 46, (4, 4, 4, 4), 2, 1, 4, (120, 72), tile=(64, 0.25))
    tiny_vae(out, "taef1", 51, (8, 8, 8, 8), 16, (24, 40))


if __name__ == "__main__":
    main()
