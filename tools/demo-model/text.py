"""Tokenizers and text encoders, which first learn to read: to tell from a caption what its scene holds."""

import json
import math
from collections import Counter

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from captions import caption, corpus
from common import Clock, State, log, set_rate, setup
from config import Config
from data import BACKGROUNDS, COLOURS, LABELS, POSITIONS, SIZES, emoji, random_scene

ATTRIBUTES = {
    "concept": list(range(len(LABELS))),
    "colour": ["", *COLOURS],
    "background": ["", *BACKGROUNDS],
    "size": list(SIZES),
    "position": list(POSITIONS),
}


def train_tokenizers(cfg: Config) -> None:
    """A small CLIP BPE and a small T5 unigram, trained through transformers' own classes' rules."""
    lines = corpus(emoji(cfg), 60_000, setup(cfg, 2))
    clip = CLIPTokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer, bpe.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    specials = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # every byte, within a word and at its end; then the merges; the two marks come last, as in CLIP
    trainer = trainers.BpeTrainer(
        vocab_size=cfg.vocabulary - len(specials) - len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    learned = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    words = list(dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet), *(w for w, _ in learned)]))
    vocab = {word: index for index, word in enumerate(words + specials)}
    CLIPTokenizer(vocab=vocab, merges=merges(bpe), model_max_length=cfg.clip_length).save_pretrained(
        cfg.work / "tokenizer"
    )

    T5Tokenizer(vocab=unigram_pieces(cfg, lines), extra_ids=0, model_max_length=cfg.t5_length).save_pretrained(
        cfg.work / "tokenizer_2"
    )


def unigram_pieces(cfg: Config, lines: list[str]) -> list[tuple[str, float]]:
    """Trained sub-words, then every frequent whole word, so that a caption is about one piece a word."""
    split = T5Tokenizer().backend_tokenizer.pre_tokenizer
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = split
    trainer = trainers.UnigramTrainer(
        vocab_size=cfg.vocabulary // 2,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=[chr(c) for c in range(33, 127)],
        show_progress=False,
    )
    unigram.train_from_iterator(lines, trainer)
    pieces = {piece: score - 8 for piece, score in model_of(unigram)["vocab"]}  # dearer than any whole word
    words = Counter(word for line in lines for word, _ in split.pre_tokenize_str(line.replace(",", " ")))
    for word, count in words.most_common():
        if len(pieces) < cfg.vocabulary or word in pieces:
            pieces[word] = math.log(count / words.total())
    return list(pieces.items())


def model_of(tokenizer: Tokenizer) -> dict:
    return json.loads(tokenizer.to_str())["model"]


def merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in model_of(tokenizer)["merges"]]


class TextPath(nn.Module):
    """Both tokenizers and both encoders."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.clip_tokens = CLIPTokenizer.from_pretrained(cfg.work / "tokenizer")
        self.t5_tokens = T5Tokenizer.from_pretrained(cfg.work / "tokenizer_2")
        width = cfg.text_width
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.clip_tokens),
                hidden_size=width,
                intermediate_size=2 * width,
                projection_dim=width,
                num_hidden_layers=1,
                num_attention_heads=4,
                max_position_embeddings=cfg.clip_length,
                bos_token_id=self.clip_tokens.bos_token_id,
                eos_token_id=self.clip_tokens.eos_token_id,
                pad_token_id=self.clip_tokens.pad_token_id,
            )
        )
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.t5_tokens),
                d_model=width,
                d_kv=32,
                d_ff=2 * width,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                use_cache=False,
                is_encoder_decoder=False,
            )
        )

    def tokens(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """CLIP ids up to the longest caption (causal: more padding changes nothing), T5 ids at full length."""
        clip = self.clip_tokens(captions, padding="longest", truncation=True, return_tensors="pt").input_ids
        t5 = self.t5_tokens(
            captions, padding="max_length", max_length=self.cfg.t5_length, truncation=True, return_tensors="pt"
        ).input_ids
        return clip.to(self.cfg.device), t5.to(self.cfg.device)

    def forward(self, clip_ids: torch.Tensor, t5_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The pooled vector and the token states."""
        return self.clip(clip_ids).pooler_output, self.t5(t5_ids).last_hidden_state


def train_encoders(cfg: Config) -> None:
    """Classifies every attribute from the pooled vector, and from the mean of the token states."""
    rng = setup(cfg, 3)
    text = TextPath(cfg).to(cfg.device)
    heads = nn.ModuleDict(
        {f"{path}_{name}": nn.Linear(cfg.text_width, len(values)) for path in ("clip", "t5")
         for name, values in ATTRIBUTES.items()}
    ).to(cfg.device)
    optimiser = torch.optim.AdamW(
        [{"params": [*text.parameters(), *heads.parameters()], "peak": cfg.text_lr}], lr=0, betas=(0.9, 0.98)
    )
    clock = Clock(cfg, cfg.text_minutes)
    state = State(cfg.work / "text.pt", clock, text=text, heads=heads, optimiser=optimiser)
    state.load()
    step = 0
    while clock.tick() < 1:
        set_rate(optimiser, clock.rate())
        scenes = [random_scene(rng) for _ in range(cfg.text_batch)]
        pooled, states = text(*text.tokens([caption(scene, rng) for scene in scenes]))
        loss, right = 0.0, 0.0
        for name, values in ATTRIBUTES.items():
            truth = torch.tensor([values.index(getattr(scene, name)) for scene in scenes], device=cfg.device)
            for path, features in (("clip", pooled), ("t5", states.mean(dim=1))):
                guess = heads[f"{path}_{name}"](features)
                loss = loss + F.cross_entropy(guess, truth)
                right += float((guess.argmax(dim=1) == truth).float().mean())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0:
            log(cfg.work / "text.log", step=step, minutes=clock.spent, loss=float(loss), right=right / 10)
        step += 1
    state.save()
