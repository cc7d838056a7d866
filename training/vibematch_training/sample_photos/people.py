"""Who is in the pictures: a person's face, hair, skin and build, kept over all their photos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vibematch_training.sample_photos.canvas import Colour

SKINS: dict[str, tuple[Colour, ...]] = {
    "fair skin tone": ((250, 219, 200), (245, 208, 184)),
    "light skin tone": ((238, 194, 164), (231, 186, 152)),
    "medium skin tone": ((216, 164, 124), (203, 148, 106)),
    "tan skin tone": ((184, 128, 88), (170, 114, 76)),
    "brown skin tone": ((142, 92, 62), (126, 80, 54)),
    "dark skin tone": ((98, 64, 46), (82, 54, 42)),
}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (34, 30, 34),
    "dark brown": (58, 38, 30),
    "brown": (96, 62, 40),
    "auburn": (128, 58, 34),
    "red": (178, 82, 40),
    "blond": (208, 164, 96),
    "dark blond": (160, 122, 76),
    "grey": (150, 150, 152),
    "silver": (206, 206, 208),
    "pink": (214, 122, 152),
}
_HAIR_ODDS = (0.25, 0.2, 0.17, 0.07, 0.05, 0.1, 0.08, 0.03, 0.02, 0.03)
HAIR_STYLES: dict[str, dict[str, str]] = {
    "woman": {
        "long_straight": "long straight",
        "long_wavy": "long wavy",
        "shoulder_wavy": "shoulder-length wavy",
        "bob": "chin-length",
        "fringe_bob": "fringed chin-length",
        "ponytail": "pulled-back",
        "bun": "pinned-up",
        "curly": "curly",
        "afro": "full curly",
        "braids": "braided",
        "pixie": "cropped",
    },
    "man": {
        "crop": "short",
        "side_part": "side-parted",
        "quiff": "swept-up",
        "buzz": "buzz-cut",
        "curly": "curly",
        "afro": "full curly",
        "shoulder_wavy": "shoulder-length wavy",
        "man_bun": "tied-back",
        "bald": "shaved",
        "fringe": "fringed short",
    },
}
EYES: tuple[Colour, ...] = ((70, 44, 28), (92, 62, 36), (72, 100, 72), (80, 112, 142), (44, 32, 28))


@dataclass(frozen=True)
class Person:
    """One person's looks; every photo of a user shows the same person."""

    gender: str
    age: str
    skin: Colour
    skin_name: str
    hair: Colour
    hair_name: str
    hair_style: str
    eyes: Colour
    face_width: float
    jaw: float
    chin: float
    brow: float
    nose: float
    lips: float
    eye_size: float
    glasses: str
    beard: str
    freckles: bool
    shoulders: float
    waist: float
    hips: float

    @property
    def features(self) -> str:
        """A short list of the person's visible physical features."""
        style = HAIR_STYLES[self.gender][self.hair_style]
        parts = ["shaved head" if self.hair_style == "bald" else f"{style} {self.hair_name} hair"]
        if self.glasses:
            parts.append(f"{self.glasses} glasses")
        if self.beard:
            parts.append({"stubble": "light stubble"}.get(self.beard, self.beard))
        if self.freckles:
            parts.append("freckles")
        return ", ".join([*parts, self.skin_name])

    @property
    def noun(self) -> str:
        """What a caption calls the person."""
        return f"{self.age} {self.gender}".strip()


def draw_person(rng: np.random.Generator) -> Person:
    """Draws a person at random; nothing here depends on their fashion style."""
    gender = str(rng.choice(["woman", "man"]))
    age = str(rng.choice(["young", "", "middle-aged", "older"], p=[0.4, 0.38, 0.14, 0.08]))
    skin_name = str(rng.choice(list(SKINS)))
    hair_name = str(rng.choice(list(HAIR_COLOURS), p=_HAIR_ODDS))
    if age == "older":
        hair_name = str(rng.choice(["grey", "silver"]))
    woman = gender == "woman"
    beards = ["", "stubble", "short beard", "full beard", "moustache"]
    broad = float(rng.normal(0, 1))
    return Person(
        gender=gender,
        age=age,
        skin=SKINS[skin_name][int(rng.integers(2))],
        skin_name=skin_name,
        hair=HAIR_COLOURS[hair_name],
        hair_name=hair_name,
        hair_style=str(rng.choice(list(HAIR_STYLES[gender]))),
        eyes=EYES[int(rng.integers(len(EYES)))],
        face_width=float(rng.uniform(0.93, 1.06)),
        jaw=float(rng.uniform(5.4, 6.4) if woman else rng.uniform(6.2, 7.3)),
        chin=float(rng.uniform(24.6, 25.8) if woman else rng.uniform(25.2, 26.6)),
        brow=float(rng.uniform(0.7, 1.0) if woman else rng.uniform(1.0, 1.5)),
        nose=float(rng.uniform(0.85, 1.15)),
        lips=float(rng.uniform(0.95, 1.3) if woman else rng.uniform(0.75, 1.0)),
        eye_size=float(rng.uniform(1.0, 1.2) if woman else rng.uniform(0.92, 1.08)),
        glasses=str(rng.choice(["", "round", "square"], p=[0.76, 0.12, 0.12])),
        beard="" if woman else str(rng.choice(beards, p=[0.4, 0.2, 0.2, 0.12, 0.08])),
        freckles=bool(rng.random() < 0.1) and skin_name in ("fair skin tone", "light skin tone"),
        shoulders=(17.6 if woman else 20.6) + 0.7 * broad,
        waist=(12.6 if woman else 15.2) + 0.9 * broad,
        hips=(16.8 if woman else 16.4) + 0.7 * broad,
    )
