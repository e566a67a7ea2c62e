"""What the returns of a family are called, and how they are read: an error is shown positive, and lower is better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from metarl.errors import ConfigError, shorten


@dataclass(frozen=True)
class Score:
    """How tables and figures show a return.

    Numbers are kept as returns everywhere, so that higher is better in every file and every comparison. Only what is
    shown changes: of minus an error the error, and what adaptation adds to it as a reduction::

        error = Score("distance to the goal", sign=-1)
        assert error.gain == "reduction"
        assert Score().gain == "gain"

    :param name: what is shown.
    :param sign: 1 where a return is shown as it is; -1 where it is minus what is shown, and lower is better.
    :param budget: what training and adaptation spend, which an env step is one of.
    :raises ConfigError: an empty name or budget, another sign.
    """

    name: str = "return"
    sign: Literal[1, -1] = 1
    budget: str = "env steps"

    def __post_init__(self) -> None:
        """Look at the values."""
        for what, value in (("name", self.name), ("budget", self.budget)):
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{what}={shorten(value)} of a Score: use a word or several")
        if self.sign not in (1, -1):
            raise ConfigError(f"sign={shorten(self.sign)} of a Score: use 1, or -1 where lower is better")

    @property
    def lower_is_better(self) -> bool:
        """Whether what is shown is minus the return."""
        return self.sign < 0

    @property
    def gain(self) -> str:
        """What is had by adaptation, above 0 where it helps."""
        return "reduction" if self.lower_is_better else "gain"

    @property
    def axis(self) -> str:
        """The caption of an axis."""
        return f"{self.name}, lower is better" if self.lower_is_better else self.name

    def amount(self, n: float) -> str:
        """Return so much of what is spent in words, in adaptation or in training: ``6,000,000 examples``."""
        return f"{int(n):,} {self.budget}"

    def change(self, before: float, after: float) -> str:
        """Return what two returns are shown as, before and after adaptation, in a few words."""
        return f"{self.name} {' → '.join(fixed(self.sign * value) for value in (before, after))}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be said below a table."""
        return (self.axis,) if self.lower_is_better else ()


def fixed(value: float, digits: int = 2) -> str:
    """Return a number with so many digits behind the point, as tables show it: no minus before a 0."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


RETURN = Score()
"""A return as it is."""

SCORES = {
    "squared_error": Score("mean squared error", -1, "examples"),
    "cross_entropy": Score("accuracy", 1, "examples"),
}
"""By declared loss: rewards are minus the squared error, or 1 for the right class."""


def common_score(scores: Iterable[Score]) -> Score:
    """Return how several are shown together: as each is where all are alike, else as the returns that all are."""
    found = set(scores)
    return found.pop() if len(found) == 1 else RETURN
