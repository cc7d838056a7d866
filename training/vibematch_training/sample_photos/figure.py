"""The body: measurements, poses, limbs, hands and bare skin.

Units are about centimetres. The crown is near y = 1, shoulders near 35, waist 66, hips 86,
knees 128 and soles 176; x = 0 is the middle of the body.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    Outline,
    Point,
    blob,
    darker,
    lighter,
    mix,
    oval,
    rect,
    ribbon,
    shift,
    smooth,
    symmetric,
)
from vibematch_training.sample_photos.people import Person

LEFT, RIGHT = -1, 1
SIDES = (LEFT, RIGHT)


@dataclass(frozen=True)
class Arm:
    """Where an arm goes: elbow and wrist for the right side (mirrored for the left)."""

    elbow: Point
    wrist: Point
    hand: str = "open"
    near: float = 1.0


ARMS: dict[str, Arm] = {
    "relaxed": Arm((24.5, 64), (25.5, 89)),
    "pocket": Arm((28.5, 64), (20.0, 83), "hidden"),
    "hip": Arm((35.5, 61), (18.5, 77), "fist"),
    "collar": Arm((28.0, 62), (10.5, 45), "fist"),
    "chin": Arm((23.0, 62), (11.5, 31.5), "fist"),
    "hair": Arm((37.0, 38), (16.0, 12), "fist"),
    "cup": Arm((26.0, 64), (12.0, 54), "cup"),
    "book": Arm((26.5, 65), (10.0, 66), "book"),
    "selfie": Arm((36.0, 58), (39.0, 82), "hidden", 1.55),
    "selfie_high": Arm((38.0, 45), (52.0, 63), "hidden", 1.6),
    "phone_chest": Arm((27.5, 63), (14.0, 47), "phone"),
    "phone_face": Arm((31.0, 56), (16.5, 29), "phone"),
    "phone_low": Arm((27.5, 66), (11.0, 60), "phone"),
}


@dataclass(frozen=True)
class Pose:
    """How a person stands and looks."""

    left: Arm
    right: Arm
    tilt: float
    smile: float
    gaze: float
    stance: float
    hip_shift: float


@dataclass(frozen=True)
class Body:
    """A person in a pose under a light from the left (-1) or right (1)."""

    person: Person
    pose: Pose
    light: float

    @property
    def bulk(self) -> float:
        """How thick limbs are."""
        return 0.89 if self.person.gender == "woman" else 1.04

    def half_width(self, y: float) -> float:
        """Half the width of the trunk at a height."""
        p = self.person
        chest = p.shoulders * 0.84
        return float(
            np.interp(y, [36, 46, 66, 86, 94], [p.shoulders, chest, p.waist, p.hips, p.hips])
        )

    def arm(self, side: int) -> Outline:
        """The centre line of an arm from shoulder to wrist."""
        arm = self.pose.right if side == RIGHT else self.pose.left
        start = (self.person.shoulders - 3.6 * self.bulk, 39.8)
        (ex, ey), (wx, wy) = arm.elbow, arm.wrist
        ex += self.person.shoulders - 18.4
        knots = [
            start,
            (start[0] * 0.5 + ex * 0.5 + 0.5, start[1] * 0.5 + ey * 0.5),
            (ex, ey),
            (ex * 0.5 + wx * 0.5, ey * 0.5 + wy * 0.5),
            (wx, wy),
        ]
        return smooth(knots) * (side, 1)

    def arm_widths(self, side: int, ease: float = 0.0) -> list[float]:
        """Widths along an arm, growing towards a hand that is close to the camera."""
        arm = self.pose.right if side == RIGHT else self.pose.left
        base = (9.8, 8.8, 7.6, 6.8, 5.0)
        near = np.linspace(1, arm.near, 5)
        return [(w * self.bulk + ease) * float(n) for w, n in zip(base, near, strict=True)]

    def arm_outlines(self, side: int, ease: float = 0.0, share: float = 1.0) -> list[Outline]:
        """Outlines whose union is the arm, from the armhole down to `share` of its length.

        The upper and lower arm are separate outlines because a sharply bent band would cross
        itself.
        """
        line, widths = self.arm(side), self.arm_widths(side, ease)
        along = np.linspace(0, 1, len(line))
        radius = np.interp(along, np.linspace(0, 1, 5), widths)
        count = max(8, round(len(line) * share))
        middle = len(line) // 2
        upper_end = min(count, middle + 1)
        upper = ribbon(line[5:upper_end], radius[5:upper_end])
        s, chest = self.person.shoulders, self.half_width(47)
        quarter = len(upper) // 8
        ends = (upper[quarter], upper[-1 - quarter])
        inner, outer = ends if side == RIGHT else ends[::-1]
        drop = ease * 0.35
        shoulder = blob([
            (side * (s - 4.6), 34.7), (side * (s - 0.8 + drop), 36.0), tuple(outer), tuple(inner),
            (side * (chest - 0.8), 49 + ease * 0.5), (side * (s - 5.6), 41),
        ])  # fmt: skip
        outlines = [upper, shoulder]
        if count > middle + 2:
            lower, half_elbow = slice(middle, count), float(radius[middle]) / 2
            outlines.append(ribbon(line[lower], radius[lower]))
            outlines.append(
                oval(float(line[middle][0]), float(line[middle][1]), half_elbow, half_elbow)
            )
        return outlines

    def hand(self, side: int) -> str:
        """What the hand of a side does."""
        return (self.pose.right if side == RIGHT else self.pose.left).hand

    def leg(self, side: int) -> Outline:
        """The centre line of a leg from hip to ankle."""
        hip = self.person.hips * 0.53
        spread = self.pose.stance * (1.0 if side == RIGHT else 0.8)
        shift = self.pose.hip_shift
        knots = [
            (side * hip, 88),
            (side * (hip + 0.1) + shift * 0.3, 106),
            (side * (hip - 0.6 + spread * 0.5) + shift, 128),
            (side * (hip - 1.4 + spread * 0.8) + shift * 0.6, 147),
            (side * (hip - 2.0 + spread), 168),
        ]
        return smooth(knots)

    def leg_widths(self, ease: float = 0.0) -> list[float]:
        """Widths along a leg."""
        return [w * (0.95 + 0.08 * self.bulk) + ease for w in (17.0, 15.0, 11.0, 10.4, 6.6)]


def draw_neck_and_chest(canvas: Canvas, body: Body) -> None:
    """Draws the neck, shoulders and trunk as bare skin."""
    person = body.person
    shade = mix(person.skin, (96, 30, 38), 0.3)
    neck = 5.3 if person.gender == "woman" else 6.4
    half = np.vstack(
        [
            smooth(
                [
                    (-neck, 18),
                    (-neck, 26),
                    (-neck - 1.2, 30),
                    (-neck - 6, 33.2),
                    (-person.shoulders + 2.5, 36),
                ]
            ),
            smooth(
                [
                    (-body.half_width(47) + 0.5, 47),
                    (-body.half_width(66), 66),
                    (-body.half_width(90), 90),
                ]
            ),
        ]
    )
    with canvas.clipped(symmetric(half)) as skin:
        skin.flood(person.skin)
        skin.gradient((body.light * 6, 40), (-body.light * 24, 48), shade, 0.55)
        skin.fill(blob([(-8, 15), (8, 15), (6.6, 26), (1.5 - body.light * 3, 32.5), (-6.2, 26.5)]),
                  shade, 0.8)  # fmt: skip
        for side in SIDES:
            skin.curve([(side * 1.6, 37.2), (side * 7, 35.8), (side * 13, 36.4)], (0.2, 0.7, 0.2),
                       shade, 0.8)  # fmt: skip
            skin.curve([(side * 5.6, 26), (side * 3.2, 33), (side * 1.4, 37)], (0.1, 0.5, 0.1),
                       shade, 0.6)  # fmt: skip


def draw_arm_skin(canvas: Canvas, body: Body, side: int) -> None:
    """Draws a bare arm without its hand."""
    shade = mix(body.person.skin, (96, 30, 38), 0.3)
    line = body.arm(side)
    with canvas.clipped(*body.arm_outlines(side)) as arm:
        arm.flood(body.person.skin)
        arm.line(shift(line, -body.light * 4.2, 0.8), 4.4, shade, 0.45)
        arm.line(shift(line, body.light * 3.4, -0.4), 0.9, lighter(body.person.skin, 0.5), 0.4)


def draw_legs_skin(canvas: Canvas, body: Body) -> None:
    """Draws both bare legs."""
    shade = mix(body.person.skin, (96, 30, 38), 0.3)
    for side in SIDES:
        line = body.leg(side)
        with canvas.clipped(ribbon(line, body.leg_widths(), caps=True)) as leg:
            leg.flood(body.person.skin)
            leg.line(shift(line, -body.light * 4.6, 0), 5.0, shade, 0.45)
            x, y = line[2 * 7]
            leg.curve([(x - 2.4, y + 1), (x, y + 2.6), (x + 2.4, y + 1)], (0.1, 0.5, 0.1), shade)


def draw_hand(canvas: Canvas, body: Body, side: int) -> None:
    """Draws a hand at the end of its arm; held things are drawn by the caller in front of it."""
    pose = body.hand(side)
    if pose == "hidden":
        return
    line = body.arm(side)
    dx, dy = line[-1] - line[-4]
    turn = math.degrees(math.atan2(dy, dx)) - 90
    hand = canvas.moved(float(line[-1][0]), float(line[-1][1]), scale=body.bulk, angle=turn).moved(
        flip=side == LEFT
    )
    skin = body.person.skin
    shade = mix(skin, (96, 30, 38), 0.34)
    if pose == "open":
        _fingers(
            hand,
            skin,
            shade,
            [(-1.9, 9.6, -0.6), (-0.6, 10.6, -0.3), (0.8, 10.3, 0), (2.1, 9.2, 0.3)],
        )
        hand.curve([(-2.0, 3), (-3.6, 5.2), (-3.4, 7.8)], (2.2, 2.0, 1.5), skin)
        palm = blob(
            [(-2.4, -1), (-2.9, 3), (-2.6, 6.6), (0, 7.4), (2.7, 6.4), (2.8, 2.5), (2.2, -1)]
        )
        hand.fill(palm, skin)
        hand.curve([(-2.3, 3.2), (-2.6, 5.2), (-2.4, 6.8)], (0.1, 0.4, 0.1), shade)
        return
    fist = blob(
        [(-2.4, -1), (-3.1, 2), (-3.2, 5.2), (-1.5, 7), (1.6, 6.9), (3.2, 5), (3.0, 2), (2.4, -1)]
    )
    hand.fill(fist, skin)
    for x in (-1.7, -0.1, 1.5):
        hand.curve([(x, 3.6), (x - 0.15, 5.4), (x, 6.9)], (0.15, 0.5, 0.3), shade)
    hand.curve([(-2.9, 1.2), (-1.6, 3.4), (0.8, 3.6)], (1.6, 1.9, 1.5), lighter(skin, 0.06))
    hand.curve([(-2.2, 3.0), (-0.6, 4.3), (1.2, 4.3)], (0.1, 0.35, 0.1), shade)


def _fingers(
    hand: Canvas, skin: Colour, shade: Colour, tips: Sequence[tuple[float, float, float]]
) -> None:
    for x, end, lean in tips:
        line = smooth([(x * 0.95, 5), (x + lean * 0.6, (5 + end) / 2 + 0.5), (x + lean, end - 0.6)])
        hand.fill(ribbon(line, (1.7, 1.6, 1.2), caps=True), skin)
        hand.line(shift(line, 0.75, 0), (0.1, 0.28, 0.1), shade, 0.8)


def draw_held(canvas: Canvas, body: Body, side: int, colour: Colour) -> None:
    """Draws what a hand holds (a phone, cup or book) with the fingers around it."""
    held = body.hand(side)
    if held not in ("phone", "cup", "book"):
        return
    x, y = body.arm(side)[-1]
    inward = -side
    skin = body.person.skin
    shade = mix(skin, (96, 30, 38), 0.34)
    item = canvas.moved(x + inward * 2.6, y - 5.5, angle=inward * 4)
    if held == "phone":
        _draw_phone(item, colour)
        reach, rows = 3.7, [-1.2, 1.2, 3.6, 5.8]
    elif held == "cup":
        item.fill([(-3.4, -5), (3.4, -5), (2.7, 6.5), (-2.7, 6.5)], lighter(colour, 0.75))
        item.fill([(-3.2, -1.5), (3.2, -1.5), (2.9, 3.5), (-2.9, 3.5)], colour)
        item.fill(rect(-3.8, -6.4, 3.8, -4.8), darker(colour, 0.4))
        reach, rows = 3.2, [-0.4, 1.7, 3.8]
    else:
        item.fill([(-6, -9), (6, -9), (6, 8), (-6, 8)], colour)
        item.fill([(6, -9), (7.2, -8.3), (7.2, 8.6), (6, 8)], (240, 234, 222))
        item.fill(rect(-4, -6, 4, -3.4), lighter(colour, 0.6))
        reach, rows = 6.4, [2.0, 4.2, 6.4]
    for i, row in enumerate(rows):
        edge = -inward * reach
        knuckle = smooth(
            [(edge * 1.12, row), (edge * 0.5, row - 0.2), (edge * 0.5 + inward * 2.0, row)]
        )
        item.fill(ribbon(knuckle, (2.3, 2.1, 1.6 - 0.08 * i), caps=True), skin)
        item.line(shift(knuckle, 0, 1.05), (0.1, 0.3, 0.1), shade, 0.9)


def _draw_phone(item: Canvas, colour: Colour) -> None:
    case = blob([(-3.7, -7.6), (0, -8.1), (3.7, -7.6), (3.9, 0), (3.7, 7.4), (0, 7.9), (-3.7, 7.4),
                 (-3.9, 0)])  # fmt: skip
    with item.clipped(case) as phone:
        phone.flood(colour)
        phone.fill([(-4, 8), (1.5, -8.5), (4, -8.5), (4, -6), (-2, 8)], (255, 255, 255), 0.16)
        phone.fill(
            blob([(-3.0, -6.8), (-0.2, -6.8), (-0.2, -2.6), (-3.0, -2.6)]), darker(colour, 0.5)
        )
        for cx, cy in ((-2.3, -5.8), (-0.9, -4.7), (-2.3, -3.6)):
            phone.oval(cx, cy, 0.66, 0.66, (18, 18, 24))
            phone.oval(cx - 0.15, cy - 0.2, 0.24, 0.24, (120, 140, 170))
