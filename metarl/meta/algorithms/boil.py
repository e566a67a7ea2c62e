"""BOIL: body only update in inner loop (Oh, Yoo, Kim and Yun, 2021)."""

from __future__ import annotations

from typing import ClassVar

from metarl.agents.networks.layers import head_of
from metarl.meta.algorithms.anil import ANIL
from metarl.params import Params


class BOIL(ANIL):
    """MAML whose inner steps move the body only; the head is meta-learnt, and the same for all tasks.

    With h the head and b the body, an inner step is b ← b − α ∇_b L(h, b): representations change, the read-out does
    not. It is ANIL with the other modules::

        model = BOIL("MlpPolicy", "PointMass-v0", inner_lr=0.1)
        model.learn(100_000)

    The arguments are those of :class:`~metarl.meta.algorithms.anil.ANIL`; where ``inner_modules`` is None they are all
    but the head.
    """

    name: ClassVar[str] = "boil"

    def _default_modules(self, theta: Params) -> list[str]:
        head = head_of(self.adaptations.names)
        return [name for name in self.adaptations.names if name not in head]
