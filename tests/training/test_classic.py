from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from skimage.color import rgb2hsv

from vibematch_training.annotation.classic import Recipe

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, width=st.integers(1, 120), height=st.integers(1, 120))
def test_any_photo_becomes_a_photo_without_empty_corners(seed, width, height):
    content = Recipe.draw(seed).apply(Image.new("RGB", (width, height), (250, 250, 250)))
    image = Image.open(io.BytesIO(content))
    image.load()
    assert image.format == "JPEG" and image.mode == "RGB"
    assert image.width <= width and image.height <= height
    if min(width, height) >= 16:
        # rotation leaves black corners; the darkest allowed factor leaves far more than that
        assert np.asarray(image).min() > 100


@given(seeds)
def test_the_same_seed_gives_the_same_recipe(seed):
    assert Recipe.draw(seed) == Recipe.draw(seed)
    assert str(Recipe.draw(seed))


def test_bytes_are_repeatable_and_differ_between_seeds():
    image = Image.fromarray(data.astronaut()).resize((128, 128))
    contents = [Recipe.draw(seed).apply(image) for seed in range(20)]
    assert contents == [Recipe.draw(seed).apply(image) for seed in range(20)]
    assert len({*contents}) == 20


@pytest.mark.parametrize("seed", range(10))
def test_colours_of_clothes_stay(seed):
    orange = np.zeros((64, 64, 3), np.uint8)
    orange[:] = (200, 100, 20)
    content = Recipe.draw(seed).apply(Image.fromarray(orange))
    pixels = np.asarray(Image.open(io.BytesIO(content))).reshape(-1, 3)
    hue = rgb2hsv(pixels.mean(axis=0)[None] / 255)[0, 0]
    assert abs(hue - rgb2hsv(orange[:1, 0] / 255)[0, 0]) < 0.04
