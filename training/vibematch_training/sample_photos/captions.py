"""Describes a planned photo in one fluent sentence."""

from __future__ import annotations

import numpy as np

from vibematch_training.sample_photos.photos import PhotoPlan
from vibematch_training.sample_photos.scenes import SCENES

_SHOT_WORDS = {
    "Selfie_CloseUp": ("a close-up selfie", "an arm's-length selfie", "a selfie from the chest up"),
    "Mirrored_Selfie": ("a mirror selfie", "a selfie in the mirror, phone in hand"),
    "Others_Cam": ("a photo taken by a friend", "a posed portrait", "a candid picture"),
}
_HAIR_JOIN = ("with {features}", "who has {features}")
_TEMPLATES = (
    "A {mood}{noun} {hair} wears {clothes} {place}, in {shot}.",
    "{Shot} {place} shows a {mood}{noun} {hair}, dressed in {clothes}.",
    "Wearing {clothes}, a {mood}{noun} {hair} poses {place} for {shot}.",
    "{Place}, a {mood}{noun} {hair} is dressed in {clothes}; it is {shot}.",
)


def _clothes(plan: PhotoPlan) -> str:
    outfit = plan.outfit
    over = f"{outfit.outer.phrase} over " if outfit.outer else ""
    words = [over + outfit.top.phrase]
    if plan.shot != "Selfie_CloseUp":
        words.append(outfit.bottom.phrase)
    if plan.full_length:
        words.append(outfit.shoes.phrase)
    if outfit.headwear:
        words.append(outfit.headwear.phrase)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def caption(plan: PhotoPlan, rng: np.random.Generator) -> str:
    """Returns a sentence about the person, the outfit, the place and the shot."""
    shots = _SHOT_WORDS[plan.shot]
    shot = shots[int(rng.integers(len(shots)))]
    place = SCENES[plan.scene][0]
    hair = _HAIR_JOIN[int(rng.integers(len(_HAIR_JOIN)))].format(features=plan.person.features)
    mood = "smiling " if plan.smile > 0.55 else ""
    text = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))].format(
        mood=mood, noun=plan.person.noun, hair=hair, clothes=_clothes(plan), place=place,
        Place=place[0].upper() + place[1:], shot=shot, Shot=shot[0].upper() + shot[1:],
    )  # fmt: skip
    return text.replace("A older", "An older").replace("a older", "an older")
