"""What people wear: the garments of each fashion style and how an outfit is put together.

Colours never depend on the style: every garment draws from one palette with the same odds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vibematch_training.sample_photos.canvas import Colour

STYLES = ("Casual_Basic", "Street_Hip", "Sporty_Athleisure", "Chic_Modern", "Classy_Elegant")

PALETTE: dict[str, Colour] = {
    "black": (36, 36, 40),
    "white": (236, 234, 230),
    "cream": (228, 214, 188),
    "grey": (142, 144, 148),
    "charcoal": (72, 74, 80),
    "navy": (38, 50, 88),
    "blue": (70, 112, 172),
    "sky-blue": (148, 184, 214),
    "red": (178, 48, 50),
    "burgundy": (108, 36, 52),
    "pink": (224, 160, 174),
    "rust": (176, 92, 52),
    "camel": (186, 146, 98),
    "brown": (104, 72, 52),
    "mustard": (206, 160, 60),
    "olive": (104, 106, 62),
    "green": (56, 110, 82),
    "mint": (164, 208, 184),
    "teal": (48, 116, 124),
    "lilac": (178, 160, 206),
    "purple": (94, 62, 122),
}


@dataclass(frozen=True)
class Garment:
    """One garment: what it is, its colours and its cloth."""

    kind: str
    words: str
    colour: Colour
    colour_name: str
    accent: Colour
    texture: str = ""
    motif: int = 0

    @property
    def phrase(self) -> str:
        """The garment in a caption, such as "a navy crewneck knit"."""
        if self.words.startswith("pair of "):
            return f"{self.colour_name} {self.words.removeprefix('pair of ')}"
        article = "an" if self.colour_name[0] in "aeiou" else "a"
        return f"{article} {self.colour_name} {self.words}"


@dataclass(frozen=True)
class Outfit:
    """Everything one person wears in one photo."""

    top: Garment
    outer: Garment | None
    bottom: Garment
    shoes: Garment
    headwear: Garment | None
    bag: Garment | None
    extras: tuple[str, ...]
    metal: Colour


@dataclass(frozen=True)
class _Item:
    kind: str
    words: str
    textures: tuple[str, ...] = ("",)
    matching: str = ""
    under: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Rail:
    """The clothes of one style."""

    tops: tuple[_Item, ...]
    outers: tuple[_Item, ...]
    outer_share: float
    bottoms: tuple[_Item, ...]
    shoes: tuple[_Item, ...]
    headwear: tuple[_Item, ...]
    headwear_share: float
    bags: tuple[_Item, ...]
    extras: tuple[tuple[str, float], ...]


_TEE = _Item("tee", "plain crew-neck tee", ("heather",))
_SNEAKERS = _Item("canvas_shoes", "pair of canvas sneakers")
_TOTE = _Item("tote", "canvas tote")
_HANDBAG = _Item("small_bag", "small structured bag")
_CAP = _Item("cap", "cap")

RAILS: dict[str, _Rail] = {
    "Casual_Basic": _Rail(
        tops=(
            _TEE,
            _Item("tee", "striped tee", ("breton",)),
            _Item("knit", "crewneck knit", ("knit",)),
            _Item("knit", "cable-knit jumper", ("cable",)),
            _Item("henley", "henley", ("heather",)),
        ),
        outers=(
            _Item("open_shirt", "open shirt", ("weave",), under=("tee",)),
            _Item("cardigan", "knitted cardigan", ("knit",), under=("tee", "henley")),
        ),
        outer_share=0.38,
        bottoms=(_Item("jeans", "pair of jeans", ("denim",)), _Item("chinos", "pair of chinos")),
        shoes=(_SNEAKERS, _SNEAKERS, _Item("runners", "pair of trainers")),
        headwear=(_CAP,),
        headwear_share=0.05,
        bags=(_TOTE,),
        extras=(("watch", 0.4), ("sunglasses", 0.04)),
    ),
    "Street_Hip": _Rail(
        tops=(
            _Item("hoodie", "oversized hoodie with a graphic print", ("camouflage", "fleece")),
            _Item("hoodie", "oversized hoodie with a bold print", ("camouflage",)),
            _Item("graphic_tee", "oversized graphic tee", ("camouflage", "fleece")),
        ),
        outers=(
            _Item("bomber", "bomber jacket", ("camouflage",), under=("graphic_tee", "hoodie")),
            _Item("overshirt", "plaid overshirt", ("plaid",), under=("graphic_tee", "hoodie")),
            _Item(
                "denim_jacket",
                "patchwork denim jacket",
                ("camouflage",),
                under=("graphic_tee", "hoodie"),
            ),
            _Item(
                "puffer", "printed puffer jacket", ("camouflage",), under=("graphic_tee", "hoodie")
            ),
        ),
        outer_share=0.5,
        bottoms=(
            _Item("cargo", "pair of cargo trousers", ("camouflage",)),
            _Item("ripped_jeans", "pair of ripped jeans", ("denim",)),
        ),
        shoes=(_Item("chunky_shoes", "pair of chunky sneakers"),),
        headwear=(_CAP, _Item("beanie", "beanie"), _Item("bucket_hat", "bucket hat")),
        headwear_share=0.55,
        bags=(_Item("crossbody", "crossbody pouch"),),
        extras=(("chain", 0.65), ("headphones", 0.22), ("sunglasses", 0.04)),
    ),
    "Sporty_Athleisure": _Rail(
        tops=(
            _Item("sports_tank", "racerback tank", ("mesh",)),
            _Item("performance_tee", "panelled performance tee", ("mesh",)),
            _Item("performance_tee", "raglan training tee", ("mesh",)),
            _Item("quarter_zip", "quarter-zip running top", ("mesh",)),
            _Item("sports_bra", "sports bra", ("mesh",)),
        ),
        outers=(
            _Item(
                "track_jacket",
                "track jacket with striped sleeves",
                ("mesh",),
                under=("sports_tank", "performance_tee", "sports_bra"),
            ),
        ),
        outer_share=0.42,
        bottoms=(
            _Item("leggings", "pair of side-striped leggings", ("mesh",)),
            _Item("track_pants", "pair of track pants", ("satin",)),
            _Item("sport_shorts", "pair of running shorts", ("mesh",)),
        ),
        shoes=(_Item("runners", "pair of running shoes"),),
        headwear=(_Item("headband", "headband"), _Item("headband", "headband"), _CAP),
        headwear_share=0.45,
        bags=(_Item("gym_bag", "gym bag"),),
        extras=(("smart_band", 0.6), ("headphones", 0.06)),
    ),
    "Chic_Modern": _Rail(
        tops=(
            _Item("turtleneck", "ribbed turtleneck", ("rib",)),
            _Item(
                "minimal_dress", "clean-lined minimal dress", ("gloss",), matching="pencil_skirt"
            ),
            _Item("asymmetric_top", "asymmetric top", ("gloss",)),
            _Item("colour_block", "colour-block top", ("gloss",)),
        ),
        outers=(
            _Item(
                "biker",
                "leather biker jacket",
                ("gloss",),
                under=("turtleneck", "asymmetric_top", "colour_block", "minimal_dress"),
            ),
            _Item(
                "biker", "leather biker jacket", ("gloss",), under=("turtleneck", "minimal_dress")
            ),
            _Item(
                "trench", "belted trench coat", ("gloss",), under=("turtleneck", "minimal_dress")
            ),
        ),
        outer_share=0.62,
        bottoms=(
            _Item("slim_trousers", "pair of slim trousers", ("gloss", "")),
            _Item("leather_trousers", "pair of leather trousers", ("gloss",)),
            _Item("pencil_skirt", "pencil skirt", ("gloss",)),
        ),
        shoes=(_Item("ankle_boots", "pair of ankle boots"),),
        headwear=(_Item("beret", "beret"),),
        headwear_share=0.06,
        bags=(_HANDBAG,),
        extras=(
            ("sunglasses", 0.28),
            ("geometric_earrings", 0.5),
            ("wide_belt", 0.4),
            ("collar_necklace", 0.35),
        ),
    ),
    "Classy_Elegant": _Rail(
        tops=(
            _Item("dress_shirt", "shirt and tie", ("pinstripe", "regimental")),
            _Item("dress_shirt", "shirt and bow tie", ("pinstripe",)),
            _Item("bow_blouse", "blouse with a bow", ("lace", "dots"), matching="pleated_skirt"),
            _Item("lace_dress", "lace evening dress", ("lace",), matching="gown"),
        ),
        outers=(
            _Item(
                "suit",
                "tailored suit jacket",
                ("pinstripe", "herringbone", "houndstooth"),
                matching="suit_trousers",
                under=("dress_shirt",),
            ),
            _Item(
                "waistcoat",
                "tailored waistcoat",
                ("pinstripe", "herringbone", "houndstooth"),
                matching="suit_trousers",
                under=("dress_shirt",),
            ),
        ),
        outer_share=0.9,
        bottoms=(
            _Item("suit_trousers", "pair of creased trousers", ("pinstripe", "herringbone")),
            _Item("pleated_skirt", "pleated midi skirt"),
        ),
        shoes=(_Item("heels", "pair of heels"), _Item("oxfords", "pair of oxfords")),
        headwear=(),
        headwear_share=0.0,
        bags=(_HANDBAG,),
        extras=(("pearls", 0.7), ("pearl_earrings", 0.6), ("pocket_square", 0.6), ("watch", 0.3)),
    ),
}
_WOMENS = {"minimal_dress", "asymmetric_top", "sports_bra", "bow_blouse", "lace_dress",
           "pencil_skirt", "pleated_skirt", "heels", "gown", "leggings", "small_bag",
           "geometric_earrings", "collar_necklace", "pearls", "pearl_earrings"}  # fmt: skip
_MENS = {"oxfords"}
METALS: tuple[Colour, ...] = ((214, 176, 88), (204, 206, 212))


def draw_outfit(rng: np.random.Generator, style: str, gender: str) -> Outfit:
    """Dresses a person of a style for one photo."""
    rail = RAILS[style]
    outer_item = None
    if rng.random() < rail.outer_share:
        outer_item = _pick(rng, rail.outers, gender)
    tops = rail.tops
    if outer_item is not None:
        tops = tuple(item for item in tops if item.kind in outer_item.under)
    top_item = _pick(rng, tops, gender)
    if (
        outer_item is not None
        and style == "Classy_Elegant"
        and gender == "woman"
        and rng.random() < 0.72
    ):
        outer_item, top_item = None, _pick(rng, [t for t in rail.tops if t.kind in _WOMENS], gender)
    top = _make(rng, top_item)
    outer = _make(rng, outer_item) if outer_item else None
    bottom_item = _pick(rng, rail.bottoms, gender)
    bottom = _make(rng, bottom_item)
    if outer and outer_item and outer_item.matching:
        bottom = _match(bottom, outer, outer_item.matching)
    elif top_item.matching in ("gown", "pencil_skirt"):
        bottom = _match(bottom, top, top_item.matching)
    headwear = None
    if rail.headwear and rng.random() < rail.headwear_share:
        headwear = _make(rng, _pick(rng, rail.headwear, gender))
    extras = tuple(
        name for name, odds in rail.extras if rng.random() < odds and _fits(name, gender)
    )
    bags = [item for item in rail.bags if _fits(item.kind, gender)]
    bag = _make(rng, _pick(rng, bags, gender)) if bags and rng.random() < 0.3 else None
    shoes = _make(rng, _pick(rng, rail.shoes, gender))
    return Outfit(top, outer, bottom, shoes, headwear, bag, extras, METALS[int(rng.integers(2))])


def _fits(kind: str, gender: str) -> bool:
    return kind not in (_MENS if gender == "woman" else _WOMENS)


def _pick(rng: np.random.Generator, items: Sequence[_Item], gender: str) -> _Item:
    fitting = [item for item in items if _fits(item.kind, gender)]
    return fitting[int(rng.integers(len(fitting)))]


def _make(rng: np.random.Generator, item: _Item) -> Garment:
    names = list(PALETTE)
    first, second = rng.choice(len(names), size=2, replace=False)
    return Garment(
        kind=item.kind,
        words=item.words,
        colour=PALETTE[names[first]],
        colour_name=names[first],
        accent=PALETTE[names[second]],
        texture=item.textures[int(rng.integers(len(item.textures)))],
        motif=int(rng.integers(1 << 16)),
    )


def _match(bottom: Garment, source: Garment, kind: str) -> Garment:
    """Returns the lower half of a suit or dress, in the cloth of its upper half."""
    words = "pair of matching trousers" if kind == "suit_trousers" else "matching skirt"
    return Garment(kind, words, source.colour, source.colour_name, source.accent, source.texture,
                   bottom.motif)  # fmt: skip
