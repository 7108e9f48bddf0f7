"""Builds complete random FluxPipeline folders from a short description and runs the reference on them."""

import io
import json
import logging
import math
import string
from dataclasses import asdict, dataclass, field

from common import gen, randomize

import sentencepiece  # noqa: E402
import torch  # noqa: E402
from diffusers import (  # noqa: E402
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from sentencepiece import sentencepiece_model_pb2  # noqa: E402
from tokenizers import Tokenizer, pre_tokenizers, trainers  # noqa: E402
from tokenizers.models import BPE  # noqa: E402
from transformers import (  # noqa: E402
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

logging.getLogger("diffusers").setLevel(logging.ERROR)

SUBJECTS = [
    "a cat",
    "an old lighthouse",
    "two foxes",
    "the river",
    "a red bicycle",
    "paper boats",
    "a café",
    "the fjord",
    "an astronaut",
    "a piano",
    "wild geese",
    "a woman's hat",
    "the market",
    "a glass house",
    "seven candles",
]
ACTIONS = [
    "sleeping in",
    "standing near",
    "seen from above",
    "painted on",
    "reflected by",
    "waiting for",
    "lost under",
    "crossing",
    "photographed with",
    "glowing behind",
    "growing over",
]
PLACES = [
    "a quiet harbour",
    "the snowy mountains",
    "a kitchen at night",
    "an empty street",
    "the garden of Málaga",
    "a train to Zürich",
    "the old library",
    "naïve wallpaper",
    "soft morning light",
    "a field, 35mm film",
    "東京 の 夜",
    "Москва зимой",
    "the sea",
]
STYLES = [
    "watercolour",
    "oil painting, very detailed",
    "black and white photo",
    "in the style of 1920",
    "bokeh; f/1.8",
    "isometric, 4k",
    "don't blur",
    "with strong wind!",
]


def corpus():
    """A few hundred lines of prompt-like text, including other scripts and accents."""
    lines = []
    for i, subject in enumerate(SUBJECTS):
        for j, action in enumerate(ACTIONS):
            place = PLACES[(3 * i + 5 * j) % len(PLACES)]
            style = STYLES[(i + 3 * j) % len(STYLES)]
            lines.append(f"{subject} {action} {place}, {style}")
            lines.append(f"{style}: {place} and {subject}")
    return lines


def clip_tokenizer(merges, max_length):
    """Byte-level BPE with `</w>` word ends, in the order of the real vocabulary: bytes, bytes at word ends, merges,
    start and end token."""
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=3,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    model = Tokenizer(BPE(end_of_word_suffix="</w>"))
    # Same splitting as the class below, without its normalizer.
    model.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    model.train_from_iterator([line.lower() for line in corpus()], trainer)
    pairs = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]][:merges]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in pairs]
    entries = list(dict.fromkeys(entries)) + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {entry: i for i, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=max_length)


# Compatibility characters folded by the small normalization table: (from, to) as hexadecimal code points.
FOLD = [
    ("FB01", "66 69"),
    ("2460", "31"),
    ("FF21", "41"),
    ("FF22", "42"),
    ("00A0", "20"),
    ("3000", "20"),
    ("0009", "20"),
    ("000A", "20"),
    ("00BD", "31 2044 32"),
    ("0065 0301", "E9"),
    ("2126", "3A9"),
    ("200B", ""),
]


def t5_tokenizer(pieces, extra_ids, charsmap, directory):
    """Unigram pieces trained by SentencePiece. `charsmap`: 'full' (nmt_nfkc as in T5), 'small' (the table above) or
    'none'."""
    options = dict(normalization_rule_name="nmt_nfkc" if charsmap == "full" else "identity")
    if charsmap == "small":
        table = directory / "fold.tsv"
        table.write_text("".join(f"{a}\t{b}\n" for a, b in FOLD))
        options = dict(normalization_rule_tsv=str(table))
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=stream,
        model_type="unigram",
        vocab_size=pieces,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
        character_coverage=1.0,
        pad_piece="<pad>",
        hard_vocab_limit=False,
        **options,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(stream.getvalue())
    vocab = [(p.piece, p.score) for p in proto.pieces]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(extra_ids))]
    table = None if charsmap == "none" else proto.normalizer_spec.precompiled_charsmap
    return T5TokenizerFast(vocab=vocab, extra_ids=extra_ids, _spm_precompiled_charsmap=table)


@dataclass
class Spec:
    """Everything that defines one random pipeline."""

    seed: int = 1
    # transformer
    double: int = 1
    single: int = 1
    heads: int = 2
    head_dim: int = 16
    axes: tuple = (4, 6, 6)
    guidance_embeds: bool = True
    # text encoders
    clip_width: int = 16
    clip_heads: int = 2
    clip_layers: int = 2
    clip_mlp: int = 32
    clip_act: str = "quick_gelu"
    clip_length: int = 24
    clip_eos_2: bool = True
    clip_merges: int = 80
    t5_width: int = 16
    t5_heads: int = 2
    t5_d_kv: int = 6
    t5_d_ff: int = 28
    t5_layers: int = 2
    t5_ff: str = "gated-gelu"
    t5_pieces: int = 220
    t5_extra_ids: int = 4
    t5_charsmap: str = "none"
    # VAE
    vae_channels: tuple = (4, 8)
    vae_groups: int = 2
    vae_layers: int = 1
    vae_mid_attention: bool = True
    vae_quant: bool = False
    latent: int = 4
    scaling: float = 0.3611
    shift_factor: float = 0.1159
    # scheduler
    scheduler: dict = field(default_factory=dict)

    def multiple(self):
        """Pixels per transformer token along one side."""
        return 2 ** len(self.vae_channels)


@dataclass
class Case:
    """One generation request."""

    prompt: str
    negative_prompt: str | None = None
    true_cfg: float = 1.0
    width: int = 32
    height: int = 32
    steps: int = 3
    guidance: float = 3.5
    seed: int = 0
    max_sequence_length: int = 24


def build(spec, directory, save_dtype=torch.float32, **save_options):
    """Create and save the pipeline; every weight is representable in `save_dtype`."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = clip_tokenizer(spec.clip_merges, spec.clip_length)
    tokenizer_2 = t5_tokenizer(spec.t5_pieces, spec.t5_extra_ids, spec.t5_charsmap, directory)
    (directory / "fold.tsv").unlink(missing_ok=True)
    eos = tokenizer.eos_token_id
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=spec.clip_width,
            intermediate_size=spec.clip_mlp,
            num_hidden_layers=spec.clip_layers,
            num_attention_heads=spec.clip_heads,
            hidden_act=spec.clip_act,
            max_position_embeddings=spec.clip_length,
            projection_dim=spec.clip_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=2 if spec.clip_eos_2 else eos,
            pad_token_id=eos,
        )
    )
    text_encoder_2 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2),
            d_model=spec.t5_width,
            d_kv=spec.t5_d_kv,
            d_ff=spec.t5_d_ff,
            num_layers=spec.t5_layers,
            num_heads=spec.t5_heads,
            feed_forward_proj=spec.t5_ff,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    transformer = FluxTransformer2DModel(
        in_channels=4 * spec.latent,
        num_layers=spec.double,
        num_single_layers=spec.single,
        attention_head_dim=spec.head_dim,
        num_attention_heads=spec.heads,
        joint_attention_dim=spec.t5_width,
        pooled_projection_dim=spec.clip_width,
        guidance_embeds=spec.guidance_embeds,
        axes_dims_rope=spec.axes,
    )
    levels = len(spec.vae_channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=spec.latent,
        block_out_channels=spec.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=spec.vae_layers,
        norm_num_groups=spec.vae_groups,
        act_fn="silu",
        sample_size=1024,
        scaling_factor=spec.scaling,
        shift_factor=spec.shift_factor,
        force_upcast=True,
        mid_block_add_attention=spec.vae_mid_attention,
        use_quant_conv=spec.vae_quant,
        use_post_quant_conv=spec.vae_quant,
    )
    randomize(text_encoder, spec.seed + 1)
    randomize(text_encoder_2, spec.seed + 2, gains={"SelfAttention.q.weight": 0.4})
    randomize(transformer, spec.seed + 3)
    randomize(vae, spec.seed + 4, gains={"decoder.conv_out.weight": 0.4})
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**spec.scheduler),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    ).to(save_dtype)
    pipe.save_pretrained(directory, **save_options)


def load(directory, dtype=torch.float32):
    """The saved folder as a user of the reference loads it."""
    pipe = FluxPipeline.from_pretrained(directory, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rendered_size(case, multiple):
    """The asked size rounded up to whole tokens, as (width, height)."""
    return tuple(math.ceil(side / multiple) * multiple for side in (case.width, case.height))


def run(pipe, case, latents=None):
    """Run the reference. Returns the unpacked latents [1,C,h,w] of the full render, the cropped uint8 pixels and the
    intermediate text results."""
    multiple = 2 * pipe.vae_scale_factor
    width, height = rendered_size(case, multiple)
    arguments = dict(
        prompt=case.prompt,
        negative_prompt=case.negative_prompt,
        true_cfg_scale=case.true_cfg,
        width=width,
        height=height,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        max_sequence_length=case.max_sequence_length,
    )
    if latents is not None:
        arguments["latents"] = latents
    packed = pipe(**arguments, generator=gen(case.seed), output_type="latent").images
    image = pipe(**arguments, generator=gen(case.seed), output_type="np").images[0]
    pixels = torch.from_numpy((image * 255).round().astype("uint8"))[: case.height, : case.width]
    embeds, pooled, _ = pipe.encode_prompt(case.prompt, None, max_sequence_length=case.max_sequence_length)
    ids = pipe.tokenizer([case.prompt], padding="max_length", max_length=pipe.tokenizer_max_length, truncation=True)
    ids_2 = pipe.tokenizer_2([case.prompt], padding="max_length", max_length=case.max_sequence_length, truncation=True)
    return {
        "latents": pipe._unpack_latents(packed, height, width, pipe.vae_scale_factor).contiguous(),
        "pixels": pixels.contiguous(),
        "clip_ids": torch.tensor(ids.input_ids),
        "t5_ids": torch.tensor(ids_2.input_ids),
        "pooled_prompt_embeds": pooled,
        "prompt_embeds": embeds,
        "timesteps": pipe.scheduler.timesteps.clone(),
        "sigmas": pipe.scheduler.sigmas.clone(),
    }


def case_json(case, **extra):
    return json.dumps({**asdict(case), **extra}, indent=2, ensure_ascii=False) + "\n"


def random_text(rng):
    """A prompt drawn from the corpus words, sometimes with characters outside it."""
    text = f"{rng.choice(SUBJECTS)} {rng.choice(ACTIONS)} {rng.choice(PLACES)}"
    if rng.random() < 0.5:
        text += ", " + rng.choice(STYLES)
    if rng.random() < 0.4:
        text += rng.choice(
            [" ﬁne ½ Ａ", " 🦊 emoji", "  two  spaces ", " ЁЖ ñandú", " don't they'll", "\tтаб", ' "quoted" (x:1.2)']
        )
    if rng.random() < 0.15:
        text = " ".join([text] * 4)
    if rng.random() < 0.05:
        text = rng.choice(["", " ", rng.choice(string.ascii_letters)])
    return text
