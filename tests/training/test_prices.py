from __future__ import annotations

import pytest

from vibematch.errors import InputError
from vibematch_training.annotation.endpoint import Usage
from vibematch_training.annotation.prices import (
    Estimate,
    Price,
    image_tokens,
    known_price,
    stated_price,
)


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        # OpenAI's documented examples (1024 x 1024: four tiles; 2048 x 4096: six), at GPT-5's rate
        ("gpt-5.1", (1024, 1024), 70 + 4 * 140),
        ("gpt-5.1", (2048, 4096), 70 + 6 * 140),
        ("gpt-5.1", (64, 48), 70 + 140),
        ("gemini-2.5-flash", (384, 384), 258),
        ("gemini-2.5-flash", (768, 1024), 2 * 258),
        ("Qwen/Qwen3-VL-8B-Instruct", (768, 1024), 24 * 32),
    ],
)
def test_image_tokens(model, size, tokens):
    assert image_tokens(model, *size) == tokens


def test_costs():
    usage = Usage(requests=2, input_tokens=2_000_000, output_tokens=100_000)
    assert known_price("gpt-5.1").cost_usd(usage) == pytest.approx(2 * 1.25 + 1.0)
    assert Price(per_image=0.04).cost_usd(usage) == pytest.approx(0.08)
    assert known_price("somebody's model").cost_usd(usage) is None
    assert Price(input_per_million=1.0).cost_usd(usage) is None


def test_an_estimate_says_where_the_photos_go_and_what_is_unknown():
    usage = Usage(3, 3000, 480)
    known = str(Estimate("x", "gpt-5.1", "https://a/v1", usage, Price(1, 10), "list price"))
    assert "https://a/v1" in known and "$0.01" in known and "3,000 input" in known
    assert "unknown" in str(Estimate("x", "m", "https://a/v1", usage, Price(), ""))


def test_half_a_stated_price_is_completed_or_refused():
    assert stated_price("gpt-5.1", 2.0, None) == Price(2.0, 10.0)
    assert stated_price("m", 2.0, 0.0) == Price(2.0, 0.0)
    with pytest.raises(InputError, match="--output-price"):
        stated_price("m", 2.0, None)


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_impossible_prices_are_refused(price):
    for name in ("input_per_million", "output_per_million", "per_image"):
        with pytest.raises(InputError, match="price"):
            Price(**{name: price})
