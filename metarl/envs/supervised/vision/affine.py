"""Random affine maps of images, all images of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ROTATION = 360.0
"""Largest angle, degrees; the smallest is 0."""
TRANSLATION = 0.2
"""Largest shift along each axis, either way, of an image's side."""
SCALE = 0.8, 1.2
N_NUMBERS = 4
"""Numbers that a map is drawn from: of the angle, the scale and the two shifts."""
AT_ONCE = 1024
"""Images that are mapped together: more do not fit a processor's cache."""


class Affine(NamedTuple):
    """Maps of images: each is turned and scaled around its middle, then shifted. Each field is ``[image]``."""

    angle: np.ndarray
    """Rad, counted as ``arctan2`` does."""
    scale: np.ndarray
    shift_x: np.ndarray
    """Pixels to the right; whole, as torchvision rounds them."""
    shift_y: np.ndarray
    """Pixels down."""

    @classmethod
    def of(cls, numbers: np.ndarray, side: int) -> Affine:
        """Return maps of the ranges above.

        :param numbers: ``[image, 4]`` within [0, 1]: where in each range a map is, see :data:`N_NUMBERS`; others
            go on beyond it.
        :param side: height and width of an image, pixels.
        """
        turn, size, right, down = numbers.T
        shifts = (np.rint((2.0 * each - 1.0) * TRANSLATION * side) for each in (right, down))
        return cls(np.deg2rad(ROTATION * turn), SCALE[0] + (SCALE[1] - SCALE[0]) * size, *shifts)

    def sources(self, side: int) -> np.ndarray:
        """Return which pixel of the original each pixel shows, ``[image, side · side]``: at the nearest neighbour.

        With p a pixel's middle and c that of the image, p shows ``R(−angle) (p − c − shift) / scale + c``.

        :return: indices into the flat image; ``side · side`` for what lies outside.
        """
        place = (np.arange(side) + 0.5 - side / 2).astype(np.float32)
        cos, sin = ((f(self.angle) / self.scale).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        x = place[None, None, :] - self.shift_x.astype(np.float32)[:, None, None]
        y = place[None, :, None] - self.shift_y.astype(np.float32)[:, None, None]
        column = np.floor(cos * x + sin * y + np.float32(side / 2)).astype(np.int32)
        row = np.floor(cos * y - sin * x + np.float32(side / 2)).astype(np.int32)
        inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
        return np.where(inside, row * side + column, side * side).reshape(len(self.angle), -1)


def symmetries(side: int) -> np.ndarray:
    """Return which pixel of the original each pixel shows under the symmetries of the square, ``[8, side · side + 1]``.

    0 to 3 are turns by so many quarters, 4 to 7 the same of the mirror image; the last entry is what lies outside.
    """
    grid = np.arange(side * side).reshape(side, side)
    turned = [np.rot90(each, quarter).ravel() for each in (grid, grid[:, ::-1]) for quarter in range(4)]
    return np.concatenate([np.stack(turned), np.full((8, 1), side * side)], axis=1)


def numbers_of(rngs: Sequence[np.random.Generator], n: int) -> np.ndarray:
    """Return what maps of ``n`` images of every task are drawn from, ``[task, n, 4]``."""
    return np.stack([rng.random((n, N_NUMBERS)) for rng in rngs])
