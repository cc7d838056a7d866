"""Draws a dressed person, back to front."""

from __future__ import annotations

from dataclasses import replace

from vibematch_training.sample_photos.canvas import Canvas, Colour
from vibematch_training.sample_photos.clothes.accessories import (
    HATS,
    draw_bag,
    draw_earrings,
    draw_headphones,
    draw_headwear,
    draw_neckwear,
    draw_wristwear,
)
from vibematch_training.sample_photos.clothes.lower import draw_lower, draw_shoes
from vibematch_training.sample_photos.clothes.sleeves import draw_sleeve
from vibematch_training.sample_photos.clothes.upper import draw_upper
from vibematch_training.sample_photos.figure import (
    SIDES,
    Body,
    draw_hand,
    draw_held,
    draw_legs_skin,
    draw_neck_and_chest,
)
from vibematch_training.sample_photos.portrait import (
    draw_glasses,
    draw_hair_back,
    draw_hair_front,
    draw_head,
)
from vibematch_training.sample_photos.wardrobe import Outfit

_FRAMES: Colour = (44, 34, 34)
# Garments worn tucked under the waistband.
_TUCKED = frozenset({"bow_blouse", "dress_shirt", "turtleneck", "lace_dress", "minimal_dress",
                     "asymmetric_top", "colour_block"})  # fmt: skip


def draw_dressed(canvas: Canvas, body: Body, outfit: Outfit, held: Colour, legs: bool) -> None:
    """Draws a person in an outfit; `legs` says whether the lower half is in the picture."""
    head = canvas.moved(0, 29, angle=body.pose.tilt).moved(0, -29)
    draw_hair_back(head, body.person)
    draw_neck_and_chest(canvas, body)
    if legs:
        draw_legs_skin(canvas, body)
        draw_shoes(canvas, body, outfit.shoes)
    tucked = outfit.top.kind in _TUCKED
    if legs and not tucked:
        draw_lower(canvas, body, outfit.bottom)
    if legs and tucked:
        _draw_tucked(canvas, body, outfit)
    else:
        draw_upper(canvas, body, outfit)
    draw_neckwear(canvas, body, outfit)
    for side in SIDES:
        draw_hand(canvas, body, side)
        draw_sleeve(canvas, body, outfit, side)
    draw_wristwear(canvas, body, outfit)
    if outfit.bag:
        draw_bag(canvas, body, outfit.bag)
    _draw_head(head, body, outfit)
    for side in SIDES:
        draw_held(canvas, body, side, held)


def _draw_tucked(canvas: Canvas, body: Body, outfit: Outfit) -> None:
    draw_upper(canvas, body, replace(outfit, outer=None))
    draw_lower(canvas, body, outfit.bottom)
    if outfit.outer:
        draw_upper(canvas, body, outfit)


def _draw_head(head: Canvas, body: Body, outfit: Outfit) -> None:
    person, pose = body.person, body.pose
    draw_head(head, person, body.light, pose.smile, pose.gaze)
    draw_hair_front(head, person, body.light)
    draw_earrings(head, body, outfit)
    if "sunglasses" in outfit.extras:
        draw_glasses(head, person.glasses or "square", True, _FRAMES)
    elif person.glasses:
        draw_glasses(head, person.glasses, False, _FRAMES)
    if outfit.headwear:
        draw_headwear(head, body, outfit.headwear)
    if "headphones" in outfit.extras and (outfit.headwear is None or outfit.headwear.kind in HATS):
        draw_headphones(head, outfit.shoes.colour)
