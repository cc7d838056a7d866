"""Puts on the top and the outer layer."""

from __future__ import annotations

from vibematch_training.sample_photos.canvas import Canvas
from vibematch_training.sample_photos.clothes import casual, chic, elegant, sporty, street
from vibematch_training.sample_photos.figure import Body
from vibematch_training.sample_photos.wardrobe import Outfit

TOPS = casual.TOPS | street.TOPS | sporty.TOPS | chic.TOPS | elegant.TOPS
OUTERS = casual.OUTERS | street.OUTERS | sporty.OUTERS | chic.OUTERS | elegant.OUTERS


def draw_upper(canvas: Canvas, body: Body, outfit: Outfit) -> None:
    """Draws the top and the outer layer, without sleeves."""
    TOPS[outfit.top.kind](canvas, body, outfit.top)
    if outfit.outer:
        OUTERS[outfit.outer.kind](canvas, body, outfit.outer)
