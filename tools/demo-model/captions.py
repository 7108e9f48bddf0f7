"""Captions: many ways to say what a scene shows."""

import random
import re

from concepts import CONCEPTS
from data import BACKGROUNDS, COLOURS, LABELS, Scene, random_scene

OPENINGS = ("", "", "", "a picture of ", "a drawing of ", "an icon of ", "a photo of ", "an image of ")
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
COLOUR_WORDS = {
    "yellow": ("yellow", "golden"), "purple": ("purple", "violet"), "pink": ("pink", "rose-coloured"),
}
BACKGROUND_WORDS = {"gray": ("gray", "grey")}
BACKGROUND_PHRASES = (
    "on a {} background", "on a {} background", "on {}", "with a {} background", "against a {} background",
    ", {} background",
)
POSITION_WORDS = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "on top"),
    "bottom": ("at the bottom", "down at the bottom"),
}
PLURALS = {"grapes", "bananas", "cherries", "french fries", "fries", "books"}
MASS = {"corn", "broccoli", "popcorn", "cheese", "fire", "earth", "planet earth", "lightning", "sunshine", "coffee",
        "beer", "maize", "saturn"}


def article(words: str) -> str:
    if words in PLURALS or words in MASS:
        return words
    return ("an " if re.match(r"[aeio]|umbrella", words) else "a ") + words


def caption(scene: Scene, rng: random.Random) -> str:
    """One caption of the scene; its best name three times out of five."""
    words = CONCEPTS[LABELS[scene.concept]]
    name = words[0] if rng.random() < 0.6 else rng.choice(words)
    colour = rng.choice(COLOUR_WORDS.get(scene.colour, (scene.colour,)))
    size = rng.choice(SIZE_WORDS.get(scene.size, ("",)))
    noun = " ".join(part for part in (size, colour, name) if part)
    if colour and rng.random() < 0.1:
        noun = f"{size} {name} in {colour}".strip()
    text = rng.choice(OPENINGS) + (article(noun) if rng.random() < 0.75 else noun)
    tail = []
    if scene.position:
        tail.append(rng.choice(POSITION_WORDS[scene.position]))
    if scene.background:
        ground = rng.choice(BACKGROUND_WORDS.get(scene.background, (scene.background,)))
        tail.append(rng.choice(BACKGROUND_PHRASES).format(ground))
    rng.shuffle(tail)
    text = " ".join([text, *tail]).replace(" ,", ",")
    return text[0].upper() + text[1:] if rng.random() < 0.15 else text


def corpus(entries: dict[str, dict], count: int, rng: random.Random) -> list[str]:
    """Text for the tokenizers: captions of random scenes, and all of emojibase's labels and keywords."""
    lines = [caption(random_scene(rng), rng) for _ in range(count)]
    for entry in entries.values():
        lines.append(entry["label"])
        lines.extend(entry.get("tags", []))
    names = [word for words in CONCEPTS.values() for word in words]
    for word in (*COLOURS, *BACKGROUNDS, *names):
        lines.extend([word, word.capitalize()] * 10)
    return lines
