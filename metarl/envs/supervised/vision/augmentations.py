"""Omniglot in families of augmentations, as the text on learning to meta-learn proposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from metarl.checks import COUNT, integer
from metarl.envs.family import SPLITS
from metarl.envs.supervised.vision.affine import N_NUMBERS, numbers_of
from metarl.envs.supervised.vision.characters import OmniglotProtocol
from metarl.envs.supervised.vision.classification import Pool
from metarl.envs.supervised.vision.drawings import N_ALPHABETS, N_DRAWINGS, SIDE, alphabet_index, drawings
from metarl.envs.tasks import Task, Tasks, concatenate_tasks, n_tasks
from metarl.envs.two_levels import TwoLevels
from metarl.errors import TaskError
from metarl.streams import stream

N_TRAINING, N_VALIDATION = 30, 10
"""Alphabets; the other 10 are for testing."""
OF_NUMBERS = ("angle", "scale", "shift to the right", "shift down")
SCALED = OF_NUMBERS.index("scale")
BEYOND = 1.5
"""Where the held numbers of shifted families end; those of others are within [0, 1]."""


class OmniglotAugmentations(TwoLevels, OmniglotProtocol):
    """Labels from augmentations: a class is one drawing, and its examples are that drawing, augmented.

    So it is proposed in section 4.2 of Devos and Dandi (2020), after unsupervised meta-learning (Khodadadeh et al.,
    2019): some numbers of the augmentation are a family's, so that among its tasks a model is to be sensitive to them,
    and within each task invariant to the others.

    **Family of tasks.** ``alphabet``, and of the augmentation's four numbers (angle, scale, shift to the right, shift
    down) one to three that it holds: ``held`` ``[4]`` is 1 there, and ``augmentation`` ``[4]`` says where in its range
    each is, from 0 to 1. The others are drawn for each example.

    **Task.** Those of its family, and ``drawings``, ``ways`` different ones of the alphabet, which are counted
    character by character: ``20 · character + drawing``.

    **Splits.** 30 alphabets for training, 10 for validation and 10 for testing, in an order that ``split_seed`` draws.
    Shifted: families of test alphabets that hold the scale, at least, beyond its range, up to 1.4, as all that they
    hold.

    Support, query and scores are of the same drawings, augmented anew, and balanced::

        family, rng = make_family("OmniglotFamilies-v0"), np.random.default_rng(0)
        families = family.sample_families(rng, 3)
        tasks = family.sample_tasks(rng, 5, families=families)  # five of each
        images, labels = family.examples(tasks, [np.random.default_rng(task) for task in range(15)], 10)
        assert (np.bincount(labels[0]) == 2).all()

    The text names the numbers of no experiment, nor which augmentations are taken: these are those of Leap's.

    :param ways: classes of a task.

    The other parameters are those of :class:`~metarl.envs.supervised.vision.characters.OmniglotProtocol`.
    """

    balanced = True

    def __init__(self, *, ways: int = 5, ink: str = "white", size: int = SIDE, split_seed: int = 0) -> None:
        known = drawings()
        self._sizes = known.sizes * N_DRAWINGS
        self._first = (np.cumsum(known.sizes) - known.sizes) * N_DRAWINGS
        super().__init__(integer(2, int(self._sizes.min()))("ways", ways), True, ink, size, split_seed)
        order = stream(self.split_seed, "omniglot/augmentations").permutation(N_ALPHABETS)
        parts = np.split(order, (N_TRAINING, N_TRAINING + N_VALIDATION))
        self._parts = dict(zip(("train", "validation", "test"), parts, strict=True))
        shared = {
            "alphabet": Discrete(N_ALPHABETS),
            "held": Box(0, 1, (N_NUMBERS,), np.int64),
            "augmentation": Box(0.0, 1.0, (N_NUMBERS,), np.float64),
        }
        shown = Box(0, int(self._sizes.max()) - 1, (self.ways,), np.int64)
        self.family_space = Dict(shared)
        self.task_space = Dict({**shared, "drawings": shown})
        beyond = Box(1.0, BEYOND, (N_NUMBERS,), np.float64)
        self.shifted_space = Dict({**shared, "augmentation": beyond, "drawings": shown})

    # ----------------------------------------------------------------------------------------------------------- tasks
    def sample_families(self, rng: np.random.Generator, n: int) -> Tasks:
        return self._families("train", rng, n)

    def _families(self, split: str, rng: np.random.Generator, n: int) -> Tasks:
        order = rng.permuted(np.tile(np.arange(N_NUMBERS), (n, 1)), axis=1)
        held = (order < rng.integers(1, N_NUMBERS, n)[:, None]).astype(np.int64)
        alphabet = self._parts[split][rng.integers(len(self._parts[split]), size=n)]
        return {"alphabet": alphabet, "held": held, "augmentation": rng.random((n, N_NUMBERS))}

    def tasks_within(self, rng: np.random.Generator, families: Tasks) -> Tasks:
        shown = [rng.choice(self._sizes[each], self.ways, replace=False) for each in families["alphabet"]]
        return {**{name: value.copy() for name, value in families.items()}, "drawings": np.stack(shown)}

    def sample_shifted_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        families = self._families("test", rng, n)
        families["held"][:, SCALED] = 1
        families["augmentation"] = 1.0 + (BEYOND - 1.0) * families["augmentation"]
        return self.tasks_within(rng, families)

    def in_training_range(self, tasks: Tasks) -> np.ndarray:
        return np.asarray(super().in_training_range(tasks) & np.isin(tasks["alphabet"], self._parts["train"]))

    def families(self, split: str, n: int = 40) -> Tasks:
        if split not in SPLITS[:3]:
            return super().families(split, n)
        streams = (self._split_stream(f"families/{split}", i) for i in range(COUNT("n", n)))
        return concatenate_tasks([self._families(split, rng, 1) for rng in streams])

    def tasks(self, split: str, n: int = 40) -> Tasks:
        if split not in SPLITS or split == "shifted":
            return super().tasks(split, n)
        streams = [self._split_stream(split, i) for i in range(COUNT("n", n))]
        return concatenate_tasks([self.tasks_within(rng, self._families(split, rng, 1)) for rng in streams])

    def validate_tasks(self, tasks: Mapping[str, Any]) -> Tasks:
        """Return a batch of tasks.

        :raises UnknownNameError: a name that no alphabet has.
        :raises TaskError: values outside their range, a drawing twice, or one that the alphabet has not.
        """
        given = tasks.get("alphabet") if isinstance(tasks, Mapping) else None
        if isinstance(given, list | tuple | np.ndarray):
            tasks = {**tasks, "alphabet": [alphabet_index(each) if isinstance(each, str) else each for each in given]}
        found = super().validate_tasks(tasks)
        for alphabet, shown in zip(found["alphabet"].tolist(), found["drawings"].tolist(), strict=True):
            if max(shown) >= self._sizes[alphabet]:
                name = drawings().names[alphabet]
                raise TaskError(f"drawings={shown}: {name} has {self._sizes[alphabet]}, counted from 0")
            if len(set(shown)) < len(shown):
                raise TaskError(f"drawings={shown}: the drawings of a task of {self.id} differ")
        return found

    def describe(self, task: Task) -> str:
        held = [name for name, is_held in zip(OF_NUMBERS, task["held"], strict=True) if is_held]
        return f"{drawings().names[int(task['alphabet'])].replace('_', ' ')}: {' and '.join(held) or 'nothing'} held"

    # -------------------------------------------------------------------------------------------------------- examples
    @property
    def n_images(self) -> int:
        return self.ways

    def pool(self, tasks: Tasks) -> Pool:
        alphabet = tasks["alphabet"]
        shown = tasks["drawings"] % self._sizes[alphabet][:, None]
        images = self._first[alphabet][:, None] + shown
        return Pool(images[..., None], np.ones(n_tasks(tasks), np.int64))

    def maps(self, tasks: Tasks, n: int, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        held, own = (tasks[name][:, None] for name in ("held", "augmentation"))
        return np.where(held == 1, own, numbers_of(rngs, n))
