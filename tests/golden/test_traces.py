"""Golden traces: small trainings give the numbers that they gave when the traces were made.

On other processors sums round otherwise. With the instructions of 2006 and of 2013 in place of today's, the largest
difference in any case was 0.7e-6 of the scales below.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.golden.cases import SINGLE, digest, names, run
from tests.golden.make import TRACES

TOLERANCE = 1e-6
"""Of a tensor's norm, or of a number's size."""
SMALLEST_SCALE = {
    "theta": 0.3,  # tensors that begin at 0
    "log/meta/meta_loss": 1.0,  # a mean of standardised advantages, which cancel
    "log/train/policy_objective": 1.0,
    "log/meta/adapt_gain": 4.0,  # a difference of returns of this size
    "log/meta/second_order_share": 1.0,  # of two gradients
    "log/train/kl_divergence_loss": 0.2,  # a difference of logarithms and ratios near 1
}
"""Where rounding does not shrink with the number itself: the size from which it is measured."""

STORED: dict[str, Any] = json.loads(TRACES.read_text(encoding="utf-8"))["cases"]


def differences(stored: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Say which quantities of a trace differ; what is logged besides does not count."""
    wrong = []
    for key, old in stored.items():
        if key not in found:
            wrong.append(f"{key} is missing")
            continue
        floor = SMALLEST_SCALE.get("theta" if key.startswith("theta/") else key, 0.0)
        for k, (a, b) in enumerate(zip(old, found[key], strict=True), start=1):
            before, after = (x if isinstance(x, list) else [x] for x in (a, b))
            norm = before[0] if len(before) == 7 else math.hypot(*before)
            worst = max(_distance(x, y) for x, y in zip(before, after, strict=True))
            if not worst <= TOLERANCE * max(norm, floor):
                wrong.append(f"{key}, {k}: {worst:.2g} off at a norm of {norm:.6g}: {before} → {after}")
    return wrong


def _distance(a: float, b: float) -> float:
    return 0.0 if math.isnan(a) and math.isnan(b) else abs(a - b)


def test_a_trace_is_stored_for_every_case() -> None:
    assert sorted(STORED) == sorted(names())
    assert set(SINGLE) < set(STORED)


@pytest.mark.parametrize("name", names())
def test_the_numbers_are_those_of_the_trace(name: str) -> None:
    assert differences(STORED[name], digest(run(name))) == []


def test_a_difference_is_seen() -> None:
    stored = {"theta/a": [[1.0, 0.0]], "log/loss": [2.0], "log/train/kl_divergence_loss": [0.01]}
    near = {"theta/a": [[1.0, 9e-7]], "log/loss": [2.0 + 1e-6], "log/train/kl_divergence_loss": [0.01 + 1e-7], "b": [1]}
    assert differences(stored, near) == []
    far = {"theta/a": [[1.0, 2e-6]], "log/loss": [math.nan], "log/train/kl_divergence_loss": [0.01 + 3e-7]}
    assert len(differences(stored, far)) == 3
    assert differences(stored, {}) == [f"{key} is missing" for key in stored]
