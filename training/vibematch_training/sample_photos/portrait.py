"""Draws heads: face, ears, hair, beards and glasses.

Units are about centimetres; the crown is near y = 1, the chin near y = 25 and x = 0 is the middle.
"""

from __future__ import annotations

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    Colour,
    Outline,
    blob,
    darker,
    lighter,
    luminance,
    mix,
    on_side,
    oval,
    ribbon,
    smooth,
)
from vibematch_training.sample_photos.people import Person

_WARM: Colour = (214, 72, 62)
_LONG = {"long_straight": 50.0, "long_wavy": 51.0, "shoulder_wavy": 37.0, "braids": 30.0}


def face_outline(person: Person) -> Outline:
    """Returns the outline of the face and forehead."""
    w = person.face_width
    half = [
        (-5.4 * w, 2.0), (-8.6 * w, 6.5), (-9.2 * w, 12.5), (-8.6 * w, 17.5),
        (-person.jaw * w, 21.6), (-2.7 * w, person.chin - 0.5),
    ]  # fmt: skip
    right = [(-x, y) for x, y in reversed(half)]
    return blob([(0, 0.9), *half, (0, person.chin), *right])


def draw_head(canvas: Canvas, person: Person, light: float, smile: float, gaze: float) -> None:
    """Draws the face without hair; `light` is -1 or 1, the side the light comes from."""
    skin, shade = person.skin, mix(person.skin, (96, 30, 38), 0.26)
    w = person.face_width
    for side in (-1, 1):
        canvas.fill(
            oval(side * 9.3 * w, 14.2, 1.9, 3.2, side * 8), shade if side != light else skin
        )
        canvas.fill(oval(side * 9.2 * w, 14.3, 1.0, 2.1, side * 8), shade)
    outline = face_outline(person)
    with canvas.clipped(outline) as face:
        face.flood(skin)
        face.gradient((light * 3, 12), (-light * 15, 16), shade, 0.62)
        face.gradient((0, 17), (0, 30), shade, 0.4)
        face.gradient((light * 2, 14), (light * 16, 4), lighter(skin, 0.6), 0.4)
        for side in (-1, 1):
            face.oval(side * 5.6, 18, 2.9, 1.9, _WARM, 0.10)
            face.oval(side * 5.7, 18, 2.0, 1.3, _WARM, 0.10)
            face.oval(side * 4.0, 13.4, 3.0, 2.1, shade, 0.25)
        if person.freckles:
            for i in range(14):
                x = (i % 7 - 3) * 1.5 + 0.4 * (i // 7)
                face.oval(x, 17 + 0.6 * ((i * 5) % 4) - 0.5, 0.22, 0.22, (150, 84, 52), 0.6)
        _draw_beard(face, person)
    _draw_features(canvas, person, light, shade, smile, gaze)


def _draw_features(
    canvas: Canvas, person: Person, light: float, shade: Colour, smile: float, gaze: float
) -> None:
    skin = person.skin
    ink = darker(mix(person.hair, (40, 26, 24), 0.7), 0.2)
    for side in (-1, 1):
        _draw_eye(canvas.moved(side * 4.05 * person.face_width, 13.7), person, side, ink, gaze)
    n = person.nose
    canvas.fill(smooth([(-light * 0.5, 12.6), (-light * 1.2 * n, 15.4), (-light * 2.0 * n, 17.9),
                        (-light * 0.6, 18.4), (0, 18.2)]), shade, 0.75)  # fmt: skip
    canvas.curve([(-1.7 * n, 17.9), (-0.9 * n, 18.6), (0, 18.4), (0.9 * n, 18.6), (1.7 * n, 17.9)],
                 (0.2, 0.5, 0.5, 0.5, 0.2), darker(shade, 0.28))  # fmt: skip
    canvas.oval(light * 0.5, 16.9, 0.55, 0.7, lighter(skin, 0.6), 0.5)
    _draw_mouth(canvas, person, smile)
    if person.age in ("older", "middle-aged"):
        strength = 0.7 if person.age == "older" else 0.4
        for side in (-1, 1):
            canvas.curve([(side * 2.6, 18.3), (side * 3.9, 20), (side * 4.1, 21.6)],
                         (0.1, 0.42, 0.1), darker(shade, 0.15), strength)  # fmt: skip
            canvas.curve([(side * 2.6, 15.9), (side * 4.2, 16.5), (side * 5.6, 15.9)],
                         (0.1, 0.36, 0.1), darker(shade, 0.12), strength)  # fmt: skip
        canvas.curve([(-4, 7.6), (0, 7.1), (4, 7.6)], (0.1, 0.36, 0.1), shade, strength)


def _draw_eye(canvas: Canvas, person: Person, side: int, ink: Colour, gaze: float) -> None:
    s = person.eye_size
    almond = blob([(-1.95 * s, 0.25), (-1.0 * s, -0.75 * s), (0.2, -1.05 * s), (1.3 * s, -0.6 * s),
                   (1.95 * s, 0.1), (0.9 * s, 0.8 * s), (-0.8 * s, 0.85 * s)])  # fmt: skip
    with canvas.clipped(almond) as eye:
        eye.flood((248, 244, 240))
        eye.oval(gaze, 0, 1.02 * s, 1.1 * s, person.eyes)
        eye.oval(gaze, 0, 0.5 * s, 0.55 * s, (16, 12, 14))
        eye.oval(gaze + 0.35, -0.38, 0.26, 0.26, (255, 255, 255))
        eye.fill([(-3, -2), (3, -2), (3, -0.6), (-3, -0.6)], (60, 40, 50), 0.25)
    lash = 0.75 if person.gender == "woman" else 0.5
    canvas.curve([(-side * 1.9 * s, 0.2), (-side * 0.8 * s, -0.85 * s), (side * 0.5 * s, -1.05 * s),
                  (side * 2.1 * s, -0.2 - 0.25 * lash)], (0.2, lash, lash, 0.25), ink)  # fmt: skip
    canvas.curve([(-1.5 * s, -1.5 * s), (0, -1.95 * s), (1.6 * s, -1.45 * s)], (0.1, 0.26, 0.1),
                 mix(person.skin, (80, 30, 30), 0.45))  # fmt: skip
    brow = mix(person.hair, (40, 30, 28), 0.35)
    canvas.curve(
        [(-side * 2.3, -3.3), (-side * 0.5, -3.95), (side * 1.3, -4.05), (side * 2.9, -3.1)],
        (person.brow * 0.8, person.brow, person.brow * 0.8, 0.15),
        brow,
    )


def _draw_mouth(canvas: Canvas, person: Person, smile: float) -> None:
    skin, plump = person.skin, person.lips
    rosy = (188, 62, 76) if person.gender == "woman" else (166, 76, 70)
    lip = mix(skin, rosy, 0.6 if person.gender == "woman" else 0.38)
    wide, lift = 2.7 + 0.8 * smile, 0.55 * smile
    left, right = (-wide, 21.2 - lift), (wide, 21.2 - lift)
    bottom = 22.2 + 0.35 * plump + 0.3 * smile
    canvas.fill(
        smooth(
            [
                left,
                (-0.9, 20.75 - 0.3 * plump),
                (0, 20.95),
                (0.9, 20.75 - 0.3 * plump),
                right,
                (0, bottom + 0.5),
                left,
            ]
        ),
        lip,
    )
    if smile > 0.55:
        teeth = smooth(
            [
                (-wide * 0.8, 21.15 - lift * 0.7),
                (0, 21.35),
                (wide * 0.8, 21.15 - lift * 0.7),
                (0, bottom - 0.1),
                (-wide * 0.8, 21.15 - lift * 0.7),
            ]
        )
        canvas.fill(teeth, (250, 246, 240))
    else:
        canvas.curve([left, (-1, 21.5), (0, 21.45), (1, 21.5), right], (0.2, 0.4, 0.4, 0.4, 0.2),
                     darker(lip, 0.45))  # fmt: skip
    canvas.oval(0, bottom - 0.2, 0.9, 0.28, lighter(lip, 0.5), 0.4)


def _draw_beard(face: Canvas, person: Person) -> None:
    if not person.beard:
        return
    colour = darker(person.hair, 0.1)
    w = person.face_width
    moustache = blob([(-3.7, 21.4), (-2.6, 19.8), (0, 19.3), (2.6, 19.8), (3.7, 21.4), (1.6, 20.7),
                      (0, 20.5), (-1.6, 20.7)])  # fmt: skip
    if person.beard == "moustache":
        face.fill(moustache, colour)
        return
    top = 18.6 if person.beard == "full beard" else 19.4
    jaw = np.vstack(
        [
            smooth(
                [(-9.8 * w, 12.5), (-8.2 * w, 15.5), (-6.6 * w, top + 0.6), (-3.6, 20.2), (0, 19.4)]
            ),
            smooth(
                [(0, 19.4), (3.6, 20.2), (6.6 * w, top + 0.6), (8.2 * w, 15.5), (9.8 * w, 12.5)]
            ),
            [(10.5 * w, 28), (-10.5 * w, 28)],
        ]
    )
    stubble = person.beard == "stubble"
    face.fill(jaw, colour, 0.22 if stubble else 0.93)
    if not stubble:
        for i in range(-4, 5):
            face.curve([(i * 1.7, 20.5 + abs(i) * -0.25), (i * 1.5, 25)], (0.2, 0.35, 0.1),
                       lighter(colour, 0.2), 0.5)  # fmt: skip
        face.fill(oval(0, 21.6, 3.0, 1.5), person.skin)


def _wavy(points: list[tuple[float, float]], amount: float) -> Outline:
    curve = smooth(points)
    phase = np.cumsum(np.hypot(*np.gradient(curve, axis=0).T)) / 1.6
    curve[:, 0] += np.sin(phase) * amount
    return curve


def _cloud(radius: float, puff: float, lowest: float) -> list[Outline]:
    """Returns the overlapping puffs of a curly head of hair."""
    angles = np.linspace(-lowest, 180 + lowest, 15) * np.pi / 180
    return [
        oval(radius * np.cos(a), 10.5 - radius * 1.02 * np.sin(a), puff, puff, steps=16)
        for a in angles
    ] + [oval(0, 7.5, radius, radius * 0.95)]


def draw_hair_back(canvas: Canvas, person: Person) -> None:
    """Draws the hair behind the neck and shoulders."""
    hair = darker(person.hair, 0.25)
    style = person.hair_style
    if style in _LONG:
        low = _LONG[style]
        amount = 0.0 if style == "long_straight" else 0.7
        half = _wavy(
            [(-2, -0.6), (-7.0, 2.5), (-10.9, 11), (-12, 20), (-12.6, low - 8), (-11, low)], amount
        )
        canvas.fill(np.vstack([half, half[::-1] * (-1, 1)]), hair)
    elif style in ("bob", "fringe_bob"):
        canvas.fill(blob([(0, -1.4), (-8.5, 1), (-11.4, 9), (-12, 19), (-11, 27), (-6, 28), (6, 28),
                          (11, 27), (12, 19), (11.4, 9), (8.5, 1)]), hair)  # fmt: skip
    elif style == "ponytail":
        tail = smooth([(2, 3), (11, 6), (14.5, 16), (12.5, 30), (15, 40)])
        canvas.fill(ribbon(tail, (5, 8, 7.5, 6, 1)), hair)
    elif style in ("bun", "man_bun"):
        y, r = (-4.2, 5.2) if style == "bun" else (-2.2, 3.6)
        canvas.oval(0, y, r, r * 0.92, hair)
        canvas.curve([(-r * 0.8, y), (0, y - r * 0.55), (r * 0.8, y)], (0.2, 0.7, 0.2),
                     lighter(person.hair, 0.2))  # fmt: skip
    elif style == "afro":
        for puff in _cloud(11.5, 4.6, 42):
            canvas.fill(puff, person.hair)
    elif style == "curly":
        for puff in _cloud(9.8, 3.4, 28 if person.gender == "man" else 55):
            canvas.fill(puff, person.hair)


def _scalp(
    person: Person, rise: float, hairline: list[tuple[float, float]], sideburn: float
) -> Outline:
    """Returns a cap of hair between the top of the head and a hairline, given left to right."""
    w = person.face_width
    top = [(-9.5 * w, sideburn), (-10.1 * w, 8.5), (-8.4 * w, 2.2 - rise * 0.6), (-4, -0.6 - rise),
           (0.5, -1.3 - rise), (4.6, -0.7 - rise), (8.5 * w, 2.0 - rise * 0.6), (10.1 * w, 8.5),
           (9.5 * w, sideburn)]  # fmt: skip
    return np.vstack([smooth(top), smooth(hairline[::-1])])


_HAIRLINE = [(-8.9, 12.5), (-8.0, 8.6), (-6, 5.9), (0, 5.0), (6, 5.9), (8.0, 8.6), (8.9, 12.5)]
_SWEPT = [(-8.9, 12.5), (-8.3, 8.2), (-5.0, 4.6), (0, 6.6), (5.0, 7.6), (8.0, 8.8), (8.9, 12.5)]
_FRINGE = [(-8.9, 13.5), (-8.6, 11), (-5, 9.9), (0, 9.5), (5, 9.9), (8.6, 11), (8.9, 13.5)]


def draw_hair_front(canvas: Canvas, person: Person, light: float) -> None:
    """Draws the hair over the forehead and beside the face."""
    style, hair = person.hair_style, person.hair
    if style == "bald":
        canvas.fill(oval(light * 3.0, 3.6, 3.4, 1.3), (255, 255, 255), 0.22)
        return
    if style == "buzz":
        with canvas.clipped(_scalp(person, -0.7, _HAIRLINE, 12)) as scalp:
            scalp.flood(mix(person.skin, hair, 0.72))
            scalp.texture("fleece", hair, 0.7, 0.4)
        return
    if style in ("curly", "afro"):
        canvas.fill(_scalp(person, 1.0, _HAIRLINE, 12), hair)
        for i, x in enumerate(np.linspace(-8.3, 8.3, 8)):
            y = 3.6 + 0.075 * x * x + 0.5 * (i % 2)
            canvas.oval(float(x), y, 2.2, 2.3, hair)
            canvas.curve([(x - 1.1, y - 0.2), (x, y - 1.2), (x + 1.1, y - 0.2)], (0.1, 0.42, 0.1),
                         _shine(hair), 0.8)  # fmt: skip
        _curls(canvas, hair, 9.8 if style == "curly" else 12.5)
        return
    if style in ("long_straight", "long_wavy", "shoulder_wavy", "bob"):
        _draw_curtains(canvas, person)
        return
    line, rise, burn = {
        "crop": (_HAIRLINE, 0.3, 13.0),
        "pixie": (_SWEPT, 0.5, 13.5),
        "side_part": (_SWEPT, 0.9, 13.0),
        "quiff": (_HAIRLINE, 3.0, 12.5),
        "fringe": (_FRINGE, 0.8, 13.0),
        "fringe_bob": (_FRINGE, 0.6, 22.0),
    }.get(style, (_HAIRLINE, 0.0, 12.0))
    with canvas.clipped(_scalp(person, rise, line, burn)) as cap:
        cap.flood(hair)
        root = (-4.0, 0.0) if line is _SWEPT else (0.0, -2.0 - rise)
        for x in np.linspace(-9.5, 9.5, 13):
            end = (x * 1.05, 9.5) if line is not _HAIRLINE else (x, 7.0)
            bend = ((root[0] + x) / 2 + 0.12 * x, 0.5 + 0.03 * x * x - rise * 0.6)
            cap.curve([root, bend, end], (0.1, 0.4, 0.1), _shine(hair), 0.22)
        cap.fill(oval(light * 4, 1.0, 4.0, 1.0), lighter(hair, 0.5), 0.25)
        cap.gradient((light * 2, 4), (-light * 12, 8), darker(hair, 0.5), 0.5)
    if style == "braids":
        _draw_braids(canvas, hair)


def _shine(hair: Colour) -> Colour:
    return lighter(hair, 0.28) if luminance(hair) < 120 else darker(hair, 0.3)


def _curls(canvas: Canvas, hair: Colour, radius: float) -> None:
    """Draws small curl strokes over a puffy head of hair."""
    for i in range(22):
        angle = np.pi * (i * 0.618 % 1.0)
        distance = radius * (0.82 + 0.36 * ((i * 0.414) % 1.0))
        x, y = distance * np.cos(angle), 10 - distance * np.sin(angle)
        if y < 3.5 or abs(x) > 9.5:
            canvas.curve([(x - 1.1, y + 0.3), (x, y - 1.0), (x + 1.1, y + 0.3)], (0.1, 0.42, 0.1),
                         _shine(hair), 0.7)  # fmt: skip


def _draw_curtains(canvas: Canvas, person: Person) -> None:
    """Draws hair parted near the middle that falls on both sides of the face."""
    hair, style, w = person.hair, person.hair_style, person.face_width
    low = {"bob": 26.5, "shoulder_wavy": 34.0}.get(style, 36.0)
    part = 2.0 if person.nose > 1 else -1.5
    wave = 0.0 if style in ("long_straight", "bob") else 0.55
    for side in (-1, 1):
        root = part * side
        outer = _wavy(
            [(root, -1.5), (6, -0.4), (10.2, 4.5), (11.2, 12), (11.6, 20), (11.8, low)], wave
        )
        inner = _wavy(
            [(9.0, low + 0.5), (8.6, 22), (9.0 * w, 16), (8.4 * w, 9), (5.4, 5.2), (root, 2.6)],
            wave,
        )
        lock = np.vstack([outer, inner]) * (side, 1)
        with canvas.clipped(lock) as curtain:
            curtain.flood(hair)
            for i in range(5):
                x = 5.5 + i * 1.25
                strand = _wavy(
                    [
                        (root + 0.6 * i, -0.8 + 0.7 * i),
                        (x, 2 + 0.4 * i),
                        (x + 3.2, 9),
                        (x + 4.2, 20),
                        (x + 4.3, low),
                    ],
                    wave,
                )
                curtain.line(strand * (side, 1), (0.2, 0.55, 0.3), _shine(hair), 0.45)


def _draw_braids(canvas: Canvas, hair: Colour) -> None:
    for side in (-1, 1):
        for i in range(9):
            x = side * (10.4 + 0.35 * np.sin(i) + 0.1 * i)
            canvas.fill(oval(x, 16 + i * 3.1, 2.3 - 0.1 * i, 2.1, side * 25), hair)
            canvas.curve([(x - 1.6, 15 + i * 3.1), (x, 16.6 + i * 3.1), (x + 1.6, 15 + i * 3.1)],
                         (0.1, 0.45, 0.1), _shine(hair), 0.8)  # fmt: skip


def draw_glasses(canvas: Canvas, shape: str, tinted: bool, frame: Colour) -> None:
    """Draws spectacles or, tinted, sunglasses."""
    for side in (-1, 1):
        if shape == "round":
            lens = oval(side * 4.3, 14.1, 3.3, 3.1)
        else:
            lens = blob(
                on_side(
                    side,
                    [
                        (1.1, 12.0),
                        (4.2, 11.4),
                        (7.9, 11.8),
                        (7.9, 14.6),
                        (6.6, 16.7),
                        (2.6, 16.8),
                        (1.1, 15),
                    ],
                )
            )
        with canvas.clipped(lens) as glass:
            if tinted:
                glass.flood((28, 24, 30), 0.93)
                glass.gradient((0, 12), (0, 18), (150, 130, 120), 0.45)
            glass.fill(
                [
                    (side * 4 - 2.2, 18),
                    (side * 4 + 0.8, 10),
                    (side * 4 + 2.2, 10),
                    (side * 4 - 0.8, 18),
                ],
                (255, 255, 255),
                0.28 if tinted else 0.2,
            )
        canvas.line(np.vstack([lens, lens[:2]]), 0.75 if tinted else 0.6, frame)
        canvas.line([(side * 7.6, 13.2), (side * 9.8, 13.4)], 0.7, frame)
    canvas.curve([(-1.4, 13.5), (0, 13.0), (1.4, 13.5)], 0.65, frame)
