"""Draws casual clothes: tees, knits, henleys, open shirts and cardigans."""

from __future__ import annotations

import numpy as np

from vibematch_training.sample_photos.canvas import (
    Canvas,
    contrast,
    darker,
    lighter,
    rect,
    ribbon,
    smooth,
)
from vibematch_training.sample_photos.clothes.cloth import cloth
from vibematch_training.sample_photos.clothes.tailoring import (
    Drawer,
    broken_line,
    buttons,
    collar_band,
    hem_band,
    inner_shadow,
    jacket_fronts,
    panel_seams,
    torso,
    trunk_folds,
    wide_collar,
)
from vibematch_training.sample_photos.figure import SIDES, Body
from vibematch_training.sample_photos.wardrobe import Garment


def _tee(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (6.8, 31.0, 35.6)
    with cloth(canvas, body, garment, torso(body, 1.4, 88, neck)) as layer:
        trunk_folds(layer, body, garment.colour)
        if garment.motif % 3 == 0:
            pocket = broken_line((4, 46), (11, 46), (11, 53), (7.5, 54.5), (4, 53), (4, 46))
            layer.line(pocket, 0.4, darker(garment.colour, 0.5), 0.8)
    collar_band(canvas, garment, neck, 1.5)


def _knit(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (6.8, 30.6, 34.6)
    with cloth(canvas, body, garment, torso(body, 2.4, 88, neck, drop=1.4)) as layer:
        trunk_folds(layer, body, garment.colour)
        hem_band(layer, 88, 5.5, garment)
    collar_band(canvas, garment, neck, 2.8)


def _henley(canvas: Canvas, body: Body, garment: Garment) -> None:
    neck = (6.8, 31.0, 35.2)
    with cloth(canvas, body, garment, torso(body, 1.2, 88, neck)) as layer:
        trunk_folds(layer, body, garment.colour)
        layer.fill(rect(-1.7, 35, 1.7, 50), lighter(garment.colour, 0.12))
        for x in (-1.7, 1.7):
            layer.line([(x, 35), (x, 50)], 0.35, darker(garment.colour, 0.5))
        buttons(layer, 0, np.array([38.5, 43, 47.5]), lighter(garment.accent, 0.5))
    collar_band(canvas, garment, neck, 1.7)


def _open_shirt(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (4.0, 6.5, 9.0)
    panels = jacket_fronts(body, 2.8, 92, gap)
    inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        panel_seams(layer, body, garment, gap, 92)
        for y in np.arange(46, 92, 8.0):
            layer.oval(8.6, y, 0.7, 0.7, lighter(garment.colour, 0.7))
        pocket = broken_line((-17, 47), (-10, 47), (-10, 55), (-13.5, 57), (-17, 55), (-17, 47))
        layer.line(pocket, 0.4, darker(garment.colour, 0.5))
    wide_collar(canvas, body, garment)


def _cardigan(canvas: Canvas, body: Body, garment: Garment) -> None:
    gap = (5.0, 4.0, 5.0)
    panels = jacket_fronts(body, 2.8, 90, gap)
    inner_shadow(canvas, panels)
    with cloth(canvas, body, garment, *panels) as layer:
        trunk_folds(layer, body, garment.colour)
        for side in SIDES:
            edge = smooth([(side * 6.4, 30), (side * 6.4, 40), (side * 5.6, 54), (side * 6.4, 90)])
            with layer.clipped(ribbon(edge, 3.4)) as band:
                band.flood(darker(garment.colour, 0.08))
                band.texture("rib", contrast(garment.colour, 0.45), 0.85, 0.8, 90)
        hem_band(layer, 90, 5, garment)
        buttons(layer, 5.9, np.arange(56, 88, 7.0), lighter(garment.accent, 0.3), 1.0)


TOPS: dict[str, Drawer] = {"tee": _tee, "knit": _knit, "henley": _henley}
OUTERS: dict[str, Drawer] = {"open_shirt": _open_shirt, "cardigan": _cardigan}
