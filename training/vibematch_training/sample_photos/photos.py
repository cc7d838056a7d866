"""Plans and composes one photo: who, what they wear, where, and how the picture is framed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from vibematch_training.sample_photos.canvas import Canvas, Colour, oval
from vibematch_training.sample_photos.figure import ARMS, Body, Pose
from vibematch_training.sample_photos.people import Person
from vibematch_training.sample_photos.person_view import draw_dressed
from vibematch_training.sample_photos.scenes import (
    MIRROR_SCENES,
    SCENES,
    draw_mirror_frame,
    draw_scene,
)
from vibematch_training.sample_photos.wardrobe import PALETTE, Outfit, draw_outfit

SHOTS = {"Selfie_CloseUp": 0.4, "Mirrored_Selfie": 0.26, "Others_Cam": 0.34}
SIZES = (
    (360, 480),
    (480, 640),
    (400, 500),
    (448, 448),
    (384, 512),
    (512, 384),
    (378, 672),
    (540, 720),
)
_SIZE_ODDS = (0.24, 0.14, 0.18, 0.1, 0.18, 0.05, 0.08, 0.03)
# Photos are drawn this much larger than they end up, so that edges come out smooth.
_OVERSAMPLING = 1.5
_SCENE_SHRINK = 3
_SELFIE_OTHER_ARM = ("relaxed", "relaxed", "hair", "chin", "collar", "cup")
_STANDING_ARMS = ("relaxed", "relaxed", "pocket", "hip", "cup", "book", "collar", "hair")


@dataclass(frozen=True)
class PhotoPlan:
    """Everything about a photo that a caption needs, decided before it is drawn."""

    person: Person
    outfit: Outfit
    style: str
    shot: str
    scene: str
    full_length: bool
    smile: float
    quality: str
    size: tuple[int, int]


def plan_photo(rng: np.random.Generator, person: Person, style: str, quality: str) -> PhotoPlan:
    """Decides one photo of a person; shot, place and framing do not depend on the style."""
    shot = str(rng.choice(list(SHOTS), p=list(SHOTS.values())))
    scenes = MIRROR_SCENES if shot == "Mirrored_Selfie" else [n for n in SCENES if n != "bathroom"]
    scene = str(rng.choice(scenes))
    size = SIZES[int(rng.choice(len(SIZES), p=_SIZE_ODDS))]
    upright = size[1] > size[0]
    full_length = bool(rng.random() < 0.14) and upright and shot != "Selfie_CloseUp"
    return PhotoPlan(
        person=person,
        outfit=draw_outfit(rng, style, person.gender),
        style=style,
        shot=shot,
        scene=scene,
        full_length=full_length,
        smile=float(rng.random()),
        quality=quality,
        size=size,
    )


def compose(plan: PhotoPlan, rng: np.random.Generator) -> tuple[Image.Image, float]:
    """Draws a photo at working size; returns it and the side that the light comes from."""
    width, height = (round(side * _OVERSAMPLING) for side in plan.size)
    light = float(rng.choice([-1, 1]))
    body = Body(plan.person, _pose(plan, rng), light)
    image = _background(plan, rng, width, height)
    picture = Canvas.scaled(image, width / 100)
    figure, legs = _frame(picture, plan, rng, height * 100 / width)
    if plan.full_length:
        figure.fill(oval(-light * 5, 176, 26, 4.5), (16, 12, 22), 0.35)
    draw_dressed(figure, body, plan.outfit, _any_colour(rng), legs)
    if plan.shot == "Mirrored_Selfie":
        draw_mirror_frame(picture, rng, height * 100 / width)
    return image, light


def _any_colour(rng: np.random.Generator) -> Colour:
    return PALETTE[str(rng.choice(list(PALETTE)))]


def _pose(plan: PhotoPlan, rng: np.random.Generator) -> Pose:
    if plan.shot == "Selfie_CloseUp":
        arms = (rng.choice(["selfie", "selfie_high"]), rng.choice(_SELFIE_OTHER_ARM))
    elif plan.shot == "Mirrored_Selfie":
        phone = rng.choice(["phone_chest", "phone_face", "phone_low"], p=[0.4, 0.35, 0.25])
        arms = (rng.choice(["relaxed", "pocket", "hip"]), phone)
    else:
        arms = (rng.choice(["relaxed", "pocket", "hip"]), rng.choice(_STANDING_ARMS))
    if rng.random() < 0.5:
        arms = arms[::-1]
    return Pose(
        left=ARMS[str(arms[0])],
        right=ARMS[str(arms[1])],
        tilt=float(rng.normal(0, 4.5)),
        smile=plan.smile,
        gaze=float(rng.uniform(-0.5, 0.5)),
        stance=float(rng.uniform(0, 8)),
        hip_shift=float(rng.uniform(-1.5, 1.5)),
    )


def _background(plan: PhotoPlan, rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draws the place small and blurred: it is behind the person, so out of focus."""
    size = (width // _SCENE_SHRINK, height // _SCENE_SHRINK)
    small = Canvas.scaled(Image.new("RGB", size), width / _SCENE_SHRINK / 100)
    tall = height * 100 / width
    zoom = float(rng.uniform(1.0, 1.5 if plan.shot == "Selfie_CloseUp" else 1.15))
    shift = (
        50 - 50 * zoom + float(rng.uniform(-1, 1)) * 50 * (zoom - 1),
        (tall - tall * zoom) * float(rng.random()),
    )
    draw_scene(small.moved(*shift, scale=zoom), plan.scene, rng, tall)
    blur = float(rng.uniform(2.0, 7.0)) * width / 1000
    soft = small.image.filter(ImageFilter.BoxBlur(blur * 1.6))
    return soft.resize((width, height), Image.Resampling.BILINEAR)


def _frame(
    picture: Canvas, plan: PhotoPlan, rng: np.random.Generator, tall: float
) -> tuple[Canvas, bool]:
    """Returns a view in which the figure fills the picture, and whether legs are in it."""
    if plan.shot == "Selfie_CloseUp":
        top, units = float(rng.uniform(-12, -5)), float(rng.uniform(62, 74))
        across, tilt = float(rng.uniform(40, 47)), float(rng.normal(0, 5))
    elif plan.full_length:
        top, units = float(rng.uniform(-14, -8)), float(rng.uniform(196, 206))
        across, tilt = float(rng.uniform(66, 84)), float(rng.normal(0, 1.5))
    else:
        top, units = float(rng.uniform(-14, -7)), float(rng.uniform(84, 120))
        across, tilt = float(rng.uniform(46, 56)), float(rng.normal(0, 2.0))
    scale = tall / units
    if not plan.full_length:
        # Wide pictures are filled by the shoulders, tall ones by the height.
        scale = max(scale, min(100 / across, tall / (units * 0.9)))
    x = 50 + float(rng.normal(0, 4))
    flip = bool(rng.random() < 0.5)
    figure = picture.moved(x, -top * scale, scale=scale, angle=tilt, flip=flip)
    return figure, tall / scale + top > 74
