"""Drawing in the plane, with smooth edges and nothing but NumPy: a frame takes some milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Colour = tuple[int, int, int]


class Canvas:
    """A white picture of the plane around the origin, x to the right and y up.

    :param size: width, pixels.
    :param reach: the plane is shown from -reach to reach along x, and in the same scale along y.
    :param height: pixels; None for a square.
    """

    def __init__(self, size: int, reach: float, height: int | None = None) -> None:
        self._size, self._scale = np.array([size, size if height is None else height]), size / (2 * reach)
        self._pixels = np.full((self._size[1], size, 3), 255.0)

    def disc(self, centre: Sequence[float] | np.ndarray, radius: float, colour: Colour) -> None:
        """Fill a circle.

        :param centre: in the plane.
        :param radius: pixels.
        """
        self.line(centre, centre, 2 * radius, colour)

    def square(self, half: float, width: float, colour: Colour) -> None:
        """Draw the outline of a square around the origin, from -half to half."""
        corners = [(-half, -half), (half, -half), (half, half), (-half, half)]
        for a, b in zip(corners, [*corners[1:], corners[0]], strict=True):
            self.line(a, b, width, colour)

    def rectangle(self, low: Sequence[float], high: Sequence[float], colour: Colour) -> None:
        """Fill a rectangle with sides along the axes.

        :param low: its lower left corner, in the plane.
        :param high: its upper right corner.
        """
        (left, bottom), (right, top) = self._to_pixels(low), self._to_pixels(high)
        # Of each pixel the part that lies inside.
        x, y = np.arange(self._size[0]), np.arange(self._size[1])[:, None]
        cover_x = np.clip(np.minimum(x + 1, right) - np.maximum(x, left), 0.0, 1.0)
        cover_y = np.clip(np.minimum(y + 1, bottom) - np.maximum(y, top), 0.0, 1.0)
        self._pixels += (cover_x * cover_y)[..., None] * (np.array(colour) - self._pixels)

    def line(
        self, start: Sequence[float] | np.ndarray, end: Sequence[float] | np.ndarray, width: float, colour: Colour
    ) -> None:
        """Draw a line with round ends.

        :param start: in the plane, as ``end``.
        :param width: pixels.
        """
        a, b = self._to_pixels(start), self._to_pixels(end)
        margin = width / 2 + 1
        low = np.clip(np.floor(np.minimum(a, b) - margin), 0, self._size).astype(int)
        high = np.clip(np.ceil(np.maximum(a, b) + margin), 0, self._size).astype(int)
        x = np.arange(low[0], high[0]) + 0.5 - a[0]
        y = np.arange(low[1], high[1])[:, None] + 0.5 - a[1]
        along = b - a
        square = along @ along
        # The nearest point of the line, as a part of its length.
        part = np.clip((x * along[0] + y * along[1]) / square, 0.0, 1.0) if square else 0.0
        distance = np.hypot(x - part * along[0], y - part * along[1])
        cover = np.clip(width / 2 - distance + 0.5, 0.0, 1.0)[..., None]
        patch = self._pixels[low[1] : high[1], low[0] : high[0]]
        patch += cover * (np.array(colour) - patch)

    def image(self) -> np.ndarray:
        """Return the picture, ``[height, width, 3]``, uint8."""
        return np.round(self._pixels).astype(np.uint8)

    def _to_pixels(self, point: Sequence[float] | np.ndarray) -> np.ndarray:
        x, y = np.asarray(point, dtype=np.float64) * self._scale
        return np.asarray(self._size / 2 + np.array([x, -y]))
