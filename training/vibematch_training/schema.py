"""The label schema of profile photos: what a person or a vision model says about each."""

from __future__ import annotations

from typing import Final

FASHION_STYLES: Final = (
    "Casual_Basic",
    "Street_Hip",
    "Sporty_Athleisure",
    "Chic_Modern",
    "Classy_Elegant",
)
SHOT_TYPES: Final = ("Selfie_CloseUp", "Mirrored_Selfie", "Others_Cam")
VISUAL_QUALITIES: Final = ("High", "Medium", "Low")

CATEGORIES: Final = {
    "fashion_style": FASHION_STYLES,
    "shot_type": SHOT_TYPES,
    "visual_quality": VISUAL_QUALITIES,
}
"""Columns with a closed set of values."""

DESCRIPTIONS: Final = ("physical_features", "caption")
"""Columns of free text."""

PROVENANCE_COLUMNS: Final = ("source", "generator", "generation_prompt", "generation_seed")
"""Where an augmented photo (``gen_*.jpg``) comes from; empty for a real one."""
