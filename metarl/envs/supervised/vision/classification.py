"""Classification of images: what its families share."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from gymnasium import spaces

from metarl.envs.family import State
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Tasks

Self = TypeVar("Self", bound="Classification")
PICTURE = 12
"""Pixels of a picture for each of an image, and width of the frame that says whether a prediction is right."""
MOST_SHOWN = 100
"""How often one batch shows an image, at most, augmented or not: as many times the memory and the time."""
FRAMES = {"asked": (150, 150, 150), "right": (44, 160, 44), "wrong": (214, 39, 40)}


class Pool(NamedTuple):
    """The images that examples of a batch of tasks are drawn from."""

    images: np.ndarray
    """``[task, class, image]``: numbers of images, as :meth:`Pooled.pictures` knows them."""
    counts: np.ndarray
    """``[task]``: how many of each class there are; what comes after them does not count."""


class Classification(OneStep):
    """Base of families of images to be classified.

    Some images of a task are for the support, others for the query and for scores, which are those of the
    ``query_family``. ``observes_task`` is true, because images tell what the classes are; in a single Gymnasium
    environment, whose episodes come one by one, examples are drawn independently.
    """

    loss = "cross_entropy"
    observes_task = True
    draws_in_steps = False
    render_fps = 2
    held_out: bool = False
    """Whether examples are those of the query and of scores."""
    action_space: spaces.Discrete

    @property
    @abstractmethod
    def n_images(self) -> int:
        """Images of a task that examples are drawn from, of the largest task."""

    @property
    def n_examples(self) -> int | None:  # type: ignore[override]
        """Different examples of a task: its images."""
        return self.n_images

    @property
    def largest_batch(self) -> int | None:  # type: ignore[override]
        """Most examples of a task that one batch holds."""
        return MOST_SHOWN * self.n_images

    def with_query_family(self: Self) -> Self:
        """Return the family, with itself on the images that are held out as its ``query_family``."""
        self.query_family = copy.copy(self)
        self.query_family.id, self.query_family.held_out = f"{self.id}/query", True
        return self

    def render(self, tasks: Tasks, trail: Sequence[State], task: int, env: int) -> np.ndarray:
        """Return the image in a frame, which is green once it is classified, if that was right, and red if not."""
        state = {name: value[task, env] for name, value in trail[-1].items()}
        kind = "asked" if len(trail) == 1 else "right" if state["prediction"] == state["target"] else "wrong"
        return framed(state["input"], FRAMES[kind])


class Pooled(Classification):
    """Base of those whose tasks are a few classes with equally many images each.

    Examples are drawn without replacement as long as there are some: ``n`` of them hold each image of the pool at most
    ``⌈n / size of the pool⌉`` times. Where ``balanced``, they hold equally many of each class, or one less. Subclasses
    set the spaces and say which images a task has, and how they look.
    """

    balanced: bool = False

    @abstractmethod
    def pool(self, tasks: Tasks) -> Pool:
        """Return the images that are drawn from; those held out where ``held_out``."""

    @abstractmethod
    def pictures(self, tasks: Tasks, images: np.ndarray, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """Return images, ``[task, n, *observation]``, uint8.

        :param images: ``[task, n]``, their numbers.
        :param rngs: one generator for each task, for what is random about them.
        """

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        pool = self.pool(tasks)
        n_classes = pool.images.shape[1]
        draw = draw_balanced if self.balanced else draw_any
        drawn = [draw(rng, n, n_classes, int(count)) for rng, count in zip(rngs, pool.counts, strict=True)]
        labels, places = (np.stack(each) for each in zip(*drawn, strict=True))
        images = pool.images[np.arange(len(labels))[:, None], labels, places]
        return self.pictures(tasks, images, rngs), labels


def draw_any(rng: np.random.Generator, n: int, n_classes: int, n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes and the images within them of ``n`` examples, drawn from all alike."""
    size = n_classes * n_images
    picked = np.concatenate([rng.permutation(size) for _ in range(-(-n // size))])[:n]
    return picked // n_images, picked % n_images


def draw_balanced(rng: np.random.Generator, n: int, n_classes: int, n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the same with equally many examples of each class, or one less: round by round, one of each."""
    rounds = -(-n // n_classes)
    labels = rng.permuted(np.tile(np.arange(n_classes), (rounds, 1)), axis=1)
    order = np.tile(np.arange(n_images), (-(-rounds // n_images), n_classes, 1))
    order = rng.permuted(order, axis=2).transpose(0, 2, 1).reshape(-1, n_classes)[:rounds]
    return labels.ravel()[:n], np.take_along_axis(order, labels, axis=1).ravel()[:n]


def framed(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return an image ``[channel, height, width]``, uint8, as a picture ``[height, width, 3]`` with a frame."""
    large = np.kron(image.transpose(1, 2, 0), np.ones((PICTURE, PICTURE, 1), np.uint8))
    height, width, channels = large.shape
    picture = np.full((height + 2 * PICTURE, width + 2 * PICTURE, 3), colour, np.uint8)
    picture[PICTURE:-PICTURE, PICTURE:-PICTURE] = large if channels == 3 else large[..., :1]
    return picture
