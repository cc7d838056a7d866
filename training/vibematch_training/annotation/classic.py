"""Classic augmentation: the same picture as another camera, another moment might have taken it.

Nothing that makes the style is touched: hue stays, and so do the clothes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vibematch_training.annotation.upload import jpeg

GENERATOR: Final = "classic-1"
"""Changes whenever the same seed gives other pixels."""


@dataclass(frozen=True)
class Recipe:
    """One set of changes, drawn from a seed.

    Attributes:
        mirrored: left and right swapped.
        angle_deg: rotation; the empty corners are cropped away.
        zoom: share of the picture's sides that is kept, in (0, 1].
        shift: where the crop lies in what is left, ``(x, y)`` in [0, 1].
        brightness: factor.
        contrast: factor.
        warmth: factor of red, and of blue inversely: colour temperature.
        blur: standard deviation of the Gaussian, in thousandths of the longer side.
        noise: standard deviation, in grey levels.
        jpeg_quality: 1 to 95.
        noise_seed: of the noise.
    """

    mirrored: bool
    angle_deg: float
    zoom: float
    shift: tuple[float, float]
    brightness: float
    contrast: float
    warmth: float
    blur: float
    noise: float
    jpeg_quality: int
    noise_seed: int

    @classmethod
    def draw(cls, seed: int) -> Recipe:
        """The recipe of a seed."""
        rng = np.random.default_rng(seed)
        return cls(
            mirrored=bool(rng.random() < 0.5),
            angle_deg=round(float(rng.uniform(-8, 8)), 1),
            zoom=round(float(rng.uniform(0.75, 1.0)), 3),
            shift=(round(float(rng.random()), 3), round(float(rng.random()), 3)),
            brightness=round(float(rng.uniform(0.75, 1.25)), 2),
            contrast=round(float(rng.uniform(0.8, 1.2)), 2),
            warmth=round(float(rng.uniform(0.9, 1.1)), 2),
            blur=round(float(rng.choice([0.0, 0.0, rng.uniform(0.5, 1.5)])), 2),
            noise=round(float(rng.choice([0.0, 0.0, rng.uniform(2, 6)])), 1),
            jpeg_quality=int(rng.integers(60, 96)),
            noise_seed=int(rng.integers(2**31)),
        )

    def __str__(self) -> str:
        changes = [
            "mirrored" if self.mirrored else "",
            f"rotated {self.angle_deg:+.1f} deg",
            f"zoom {self.zoom:.3f} at {self.shift[0]:.3f} {self.shift[1]:.3f}",
            f"brightness {self.brightness:.2f}",
            f"contrast {self.contrast:.2f}",
            f"warmth {self.warmth:.2f}",
            f"blur {self.blur:.2f}" if self.blur else "",
            f"noise {self.noise:.1f}" if self.noise else "",
            f"JPEG {self.jpeg_quality}",
        ]
        return "; ".join(filter(None, changes))

    def apply(self, image: Image.Image) -> bytes:
        """Change an RGB picture and return it as JPEG."""
        if self.mirrored:
            image = ImageOps.mirror(image)
        image = self._turned_and_cropped(image)
        image = ImageEnhance.Brightness(image).enhance(self.brightness)
        image = ImageEnhance.Contrast(image).enhance(self.contrast)
        factors = (self.warmth, 1.0, 1 / self.warmth)
        image = image.point([min(255, round(v * f)) for f in factors for v in range(256)])
        if self.blur:
            radius = self.blur * max(image.size) / 1000
            image = image.filter(ImageFilter.GaussianBlur(radius))
        if self.noise:
            image = self._noisy(image)
        return jpeg(image, self.jpeg_quality)

    def _turned_and_cropped(self, image: Image.Image) -> Image.Image:
        angle = math.radians(abs(self.angle_deg))
        # The largest rectangle of the same shape inside the rotated one.
        ratio = max(image.width / image.height, image.height / image.width)
        inner = 1 / (math.cos(angle) + ratio * math.sin(angle))
        starts, sides = [], []
        for side, shift in zip(image.size, self.shift, strict=True):
            margin = math.ceil(side * (1 - inner) / 2)
            usable = max(1, side - 2 * margin)
            kept = max(1, int(usable * self.zoom))
            starts.append((side - usable) // 2 + round(shift * (usable - kept)))
            sides.append(kept)
        (left, top), (width, height) = starts, sides
        turned = image.rotate(self.angle_deg, Image.Resampling.BICUBIC)
        return turned.crop((left, top, left + width, top + height))

    def _noisy(self, image: Image.Image) -> Image.Image:
        pixels = np.asarray(image, dtype=np.float32)
        rng = np.random.default_rng(self.noise_seed)
        grain = rng.normal(0, self.noise, pixels.shape[:2]).astype(np.float32)
        return Image.fromarray(np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8))
