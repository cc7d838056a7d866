"""The label schema of profile photos: what a person or a vision model says about each."""

from __future__ import annotations

from typing import Final

from vibematch import photos

FASHION_STYLES: Final = (
    "Casual_Basic",
    "Street_Hip",
    "Sporty_Athleisure",
    "Chic_Modern",
    "Classy_Elegant",
)
SHOT_TYPES: Final = ("Selfie_CloseUp", "Mirrored_Selfie", "Others_Cam")
LOW_QUALITY: Final = "Low"
VISUAL_QUALITIES: Final = ("High", "Medium", LOW_QUALITY)

STYLE_COLUMN: Final = "fashion_style"
SHOT_COLUMN: Final = "shot_type"
QUALITY_COLUMN: Final = "visual_quality"

CATEGORIES: Final = {
    STYLE_COLUMN: FASHION_STYLES,
    SHOT_COLUMN: SHOT_TYPES,
    QUALITY_COLUMN: VISUAL_QUALITIES,
}
"""Columns with a closed set of values."""

DESCRIPTIONS: Final = ("physical_features", "caption")
"""Columns of free text."""

PROVENANCE_COLUMNS: Final = photos.PROVENANCE_COLUMNS

SPLIT_COLUMN: Final = "split"
TRAIN: Final = "train"
VALIDATION: Final = "validation"
SPLITS: Final = (TRAIN, VALIDATION)

USER_LABEL: Final = "user_id"
"""As label: photos of the same person are positives, instead of photos of equal style."""
