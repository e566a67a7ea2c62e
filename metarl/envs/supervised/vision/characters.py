"""What the protocols of Omniglot share: how drawings look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium.spaces import Box, Discrete

from metarl.checks import SEED, SWITCH, choice, integer
from metarl.envs.supervised.vision.affine import AT_ONCE, Affine, numbers_of, symmetries
from metarl.envs.supervised.vision.classification import Pooled
from metarl.envs.supervised.vision.drawings import N_CHARACTERS, N_DRAWINGS, SIDE, drawings
from metarl.envs.tasks import Tasks

INKS = {"white": 0, "black": 255}
"""Colours of ink, each with that of paper."""
LARGEST = 512
"""Height and width of an image, pixels, at most."""
N_IMAGES = N_CHARACTERS * N_DRAWINGS
"""Numbers of images: a drawing's is ``20 · character + drawing``, and of its symmetries so many more each."""
_SYMMETRIES = symmetries(SIDE)


class OmniglotProtocol(Pooled):
    """Base of the protocols: what drawings look like.

    :param ways: classes of a task.
    :param augment: whether each example is turned by any angle, scaled by 0.8 to 1.2 and shifted by up to a fifth of
        its side, anew each time that it is shown.
    :param ink: ``"white"``: ink is 255 and paper 0, as in MAML's code; ``"black"``: ink is 0 and paper 255, and what an
        augmented drawing shows from beside the paper is 0, as in Leap's.
    :param size: height and width of an image, pixels: 28, or more, for networks that need it, with paper around; a
        ``CnnPolicy`` takes images from 36 on.
    :param split_seed: of the cut into training, validation and test.
    """

    id = "Omniglot-v0"

    def __init__(self, ways: int, augment: bool, ink: str, size: int, split_seed: int) -> None:
        self.ways = ways
        self.augment = SWITCH("augment", augment)
        self.ink = choice(*INKS)("ink", ink)
        self.split_seed = SEED("split_seed", split_seed)
        self.size = integer(SIDE, LARGEST)("size", size)
        self.observation_space = Box(0, 255, (1, self.size, self.size), np.uint8)
        self.action_space = Discrete(ways)
        self.observed = {"ink": self.ink}

    @property
    def n_examples(self) -> int | None:  # type: ignore[override]
        return None if self.augment else self.n_images

    def pictures(self, tasks: Tasks, images: np.ndarray, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        flat = images.ravel()
        maps = self.maps(tasks, images.shape[1], rngs).reshape(len(flat), -1) if self.augment else None
        shown = np.empty((len(flat), SIDE * SIDE), np.uint8)
        for first in range(0, len(flat), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            shown[part] = self._shown(flat[part], None if maps is None else Affine.of(maps[part], SIDE))
        shown = shown.reshape(*images.shape, 1, SIDE, SIDE)
        if self.size == SIDE:
            return shown
        before = (self.size - SIDE) // 2
        wide = np.full((*images.shape, *self.observation_space.shape), INKS[self.ink], np.uint8)
        wide[..., before : before + SIDE, before : before + SIDE] = shown
        return wide

    def maps(self, tasks: Tasks, n: int, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """Return what says how examples are augmented, ``[task, n, 4]``; see :meth:`Affine.of`."""
        return numbers_of(rngs, n)

    def _shown(self, images: np.ndarray, affine: Affine | None) -> np.ndarray:
        """Return drawings as they are seen, ``[image, pixel]``."""
        turned = _SYMMETRIES[images // N_IMAGES]
        sources = turned[:, :-1] if affine is None else np.take_along_axis(turned, affine.sources(SIDE), axis=1)
        ink = drawings().pixels[(images % N_IMAGES)[:, None], sources]
        if self.ink == "white":
            return np.asarray(ink * np.uint8(255))
        return np.where(sources == SIDE * SIDE, 0, (1 - ink) * np.uint8(255)).astype(np.uint8)
