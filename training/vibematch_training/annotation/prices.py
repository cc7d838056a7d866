"""What a run will cost, about: counted before anything is sent, so that a person can say no."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vibematch.errors import InputError
from vibematch_training.annotation.endpoint import Usage

_CHARACTERS_PER_TOKEN: Final = 4
"""Of English text; the rule of thumb that providers give."""


def text_tokens(text: str) -> int:
    """Estimated tokens of an English text."""
    return math.ceil(len(text) / _CHARACTERS_PER_TOKEN)


def _gpt_5_image_tokens(width: int, height: int) -> int:
    """OpenAI's rule for GPT-5 at ``detail: high``: 70 tokens and 140 for each tile of 512 pixels.

    The image is first scaled down to 2048 x 2048, then until its shorter side has 768 pixels.
    """
    scale = min(1, 2048 / max(width, height))
    scale *= min(1, 768 / (scale * min(width, height)))
    return 70 + 140 * math.ceil(width * scale / 512) * math.ceil(height * scale / 512)


def _gemini_image_tokens(width: int, height: int) -> int:
    """Google's rule: 258 tokens, for each tile of 768 pixels if a side is longer than 384."""
    if max(width, height) <= 384:
        return 258
    return 258 * math.ceil(width / 768) * math.ceil(height / 768)


def _patch_image_tokens(width: int, height: int) -> int:
    """One token for 32 x 32 pixels, as Qwen3-VL counts: the guess for any other model."""
    return math.ceil(width / 32) * math.ceil(height / 32)


@dataclass(frozen=True)
class Price:
    """What a model costs, in US dollars; ``None`` is unknown.

    Attributes:
        input_per_million: per million input tokens.
        output_per_million: per million output tokens, reasoning included.
        per_image: per generated image, instead of both.

    Raises:
        InputError: on construction, if one is negative or not finite.
    """

    input_per_million: float | None = None
    output_per_million: float | None = None
    per_image: float | None = None

    def __post_init__(self) -> None:
        for price in (self.input_per_million, self.output_per_million, self.per_image):
            if price is not None and not (math.isfinite(price) and price >= 0):
                raise InputError(f"a price must be a number of at least 0, got {price}")

    def cost_usd(self, usage: Usage) -> float | None:
        """The price of this usage; ``None`` where it is unknown."""
        if self.per_image is not None:
            return self.per_image * usage.requests
        if self.input_per_million is None or self.output_per_million is None:
            return None
        return (
            usage.input_tokens * self.input_per_million
            + usage.output_tokens * self.output_per_million
        ) / 1e6


@dataclass(frozen=True)
class _Model:
    price: Price
    image_tokens: Callable[[int, int], int]


# Read on 2026-11-20, standard tier, without discounts for batches or cached input:
# https://developers.openai.com/api/docs/models/gpt-5.1
# https://ai.google.dev/gemini-api/docs/pricing and /tokens
# Providers change prices; an estimate from this table is no promise.
PRICES_READ_ON: Final = "2026-11-20"
_MODELS: Final = {
    "gpt-5.1": _Model(Price(1.25, 10.00), _gpt_5_image_tokens),
    "gemini-2.5-flash": _Model(Price(0.30, 2.50), _gemini_image_tokens),
}


def known_price(model: str) -> Price:
    """What the table says of a model; all unknown if it is not there."""
    return _MODELS[model].price if model in _MODELS else Price()


def stated_price(
    model: str, input_per_million: float | None, output_per_million: float | None
) -> Price:
    """The price that a person states; a half left out comes from the table.

    Raises:
        InputError: the table does not know the half left out, or a price is impossible.
    """
    listed = known_price(model)
    price = Price(
        listed.input_per_million if input_per_million is None else input_per_million,
        listed.output_per_million if output_per_million is None else output_per_million,
    )
    if price.input_per_million is None or price.output_per_million is None:
        raise InputError(
            f"the other price of {model} is unknown; state both --input-price and --output-price"
        )
    return price


def image_tokens(model: str, width: int, height: int) -> int:
    """Estimated tokens of one image of that size in pixels."""
    rule = _MODELS[model].image_tokens if model in _MODELS else _patch_image_tokens
    return rule(width, height)


@dataclass(frozen=True)
class Estimate:
    """What is about to be asked for.

    Attributes:
        what: in words, e.g. ``labels of 12 photos``.
        model: the model's name.
        address: where the photos go.
        usage: requests and tokens, estimated.
        price: of the model.
        price_source: where the price comes from, in words.
    """

    what: str
    model: str
    address: str
    usage: Usage
    price: Price
    price_source: str

    def __str__(self) -> str:
        cost_usd = self.price.cost_usd(self.usage)
        lines = [f"about to ask {self.model} at {self.address} for {self.what}"]
        if self.usage.input_tokens:
            lines.append(
                f"  about {self.usage.input_tokens:,} input and {self.usage.output_tokens:,} "
                "output tokens; a model that reasons writes more"
            )
        if cost_usd is None:
            lines.append("  price: unknown for this model (state it with the price options)")
        else:
            lines.append(f"  price: about ${cost_usd:,.2f} ({self.price_source}); an estimate only")
        lines.append("  the photos are sent to that address")
        return "\n".join(lines)
