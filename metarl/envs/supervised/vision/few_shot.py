"""Omniglot as the few-shot papers have it: N characters, K drawings of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from metarl.checks import COUNT, NONE, integer
from metarl.envs.family import SPLITS
from metarl.envs.supervised.vision.characters import N_IMAGES, OmniglotProtocol
from metarl.envs.supervised.vision.classification import Pool
from metarl.envs.supervised.vision.drawings import N_CHARACTERS, N_DRAWINGS, SIDE, drawings
from metarl.envs.tasks import Task, Tasks, concatenate_tasks
from metarl.errors import ConfigError, TaskError
from metarl.streams import stream

SIZES = {"train": 1100, "validation": 100, "test": 423}
"""Characters of each split, as MAML's code cuts them."""
N_SYMMETRIES = 4
"""Turns by quarters, of which each makes another class of a character; as many mirror images are shifted ones."""
N_CLASSES = N_SYMMETRIES * N_CHARACTERS


class OmniglotFewShot(OmniglotProtocol):
    """N-way K-shot classification: the protocol of MAML (Finn et al., 2017), Reptile and ANIL.

    **Task.** ``classes``, ``ways`` of them: a class is ``character + 1623 · quarters``, a character turned by so many
    quarters, and no two of a task are of one character; and ``drawings``, for each class the K drawings, 0 to 19, that
    the support shows. The query, and scores, are of the others.

    **Splits.** 1100 characters for training, 100 for validation and 423 for testing, in an order that ``split_seed``
    draws. Shifted: mirror images of test characters, turned, ``classes`` from 6492 on.

    **Support.** Equally many examples of each class: with ``n_episodes`` of N · K it holds each of the K drawings once.
    Wrappers that learn from larger supports in training than in tests, as Reptile does, have ``train_shots``. The query
    and scores are balanced, too, where their sizes are multiples of N.

    5-way 1-shot, with a query of 15 images::

        family = make_family("Omniglot-v0", protocol="few-shot", ways=5, shots=1)
        tasks = family.tasks("test", 1)
        images, labels = family.examples(tasks, [np.random.default_rng(0)], 5)
        assert sorted(labels[0]) == [0, 1, 2, 3, 4]
        query, _ = family.query_family.examples(tasks, [np.random.default_rng(1)], 15)
        assert not (images[0, :, None] == query[0]).all((2, 3, 4)).any()

    Published for 5-way 1-shot and 20-way 1-shot: MAML 98.7 and 95.8 %, Reptile 95.4 and 88.1 % (97.7 and 89.4 %
    transductive), ANIL 96.2 % of 20 ways.

    :param ways: classes of a task, N.
    :param shots: drawings of each class in the support, K.
    :param train_shots: the same in training; None: as many.

    The other parameters are those of :class:`~metarl.envs.supervised.vision.characters.OmniglotProtocol`.
    """

    balanced = True

    def __init__(
        self,
        *,
        ways: int = 5,
        shots: int = 1,
        train_shots: int | None = None,
        augment: bool = False,
        ink: str = "white",
        size: int = SIDE,
        split_seed: int = 0,
    ) -> None:
        super().__init__(integer(2)("ways", ways), augment, ink, size, split_seed)
        self._parts = _cut(self.split_seed)
        for split, part in self._parts.items():
            if self.ways > len(part):
                raise ConfigError(f"ways={self.ways}: Omniglot has {len(part)} characters for {split}, at most as many")
        self.shots, own = COUNT("shots", shots), (COUNT | NONE)("train_shots", train_shots)
        self.train_shots = self.shots if own is None else own
        for name, value in (("shots", self.shots), ("train_shots", self.train_shots)):
            if value >= N_DRAWINGS:
                raise ConfigError(
                    f"{name}={value}: Omniglot has {N_DRAWINGS} drawings of a character, one of which at least is the "
                    f"query's, so that {N_DRAWINGS - 1} are the most"
                )
        shown = Box(0, N_DRAWINGS - 1, (self.ways, max(self.shots, self.train_shots)), np.int64)
        self.task_space = Dict({"classes": Box(0, N_CLASSES - 1, (self.ways,), np.int64), "drawings": shown})
        mirrored = Box(N_CLASSES, 2 * N_CLASSES - 1, (self.ways,), np.int64)
        self.shifted_space = Dict({"classes": mirrored, "drawings": shown})
        self._trains = np.isin(np.arange(N_CHARACTERS), self._parts["train"])
        self.with_query_family()

    # ----------------------------------------------------------------------------------------------------------- tasks
    def sample_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        return self._drawn("train", rng, n)

    def sample_shifted_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        tasks = self._drawn("test", rng, n)
        return {**tasks, "classes": tasks["classes"] + N_CLASSES}

    def in_training_range(self, tasks: Tasks) -> np.ndarray:
        of_training = self._trains[tasks["classes"] % N_CHARACTERS].all(1)
        return np.asarray(super().in_training_range(tasks) & of_training)

    def tasks(self, split: str, n: int = 40) -> Tasks:
        if split not in SPLITS or split == "shifted":
            return super().tasks(split, n)
        return concatenate_tasks([self._drawn(split, self._split_stream(split, i), 1) for i in range(COUNT("n", n))])

    def _drawn(self, split: str, rng: np.random.Generator, n: int) -> Tasks:
        part, shown = self._parts[split], self.task_space["drawings"].shape
        assert shown is not None
        keys = rng.random((n, len(part)))
        characters = part[np.argpartition(keys, self.ways - 1, axis=1)[:, : self.ways]]
        characters = rng.permuted(characters, axis=1)
        quarters = rng.integers(N_SYMMETRIES, size=characters.shape)
        order = rng.permuted(np.tile(np.arange(N_DRAWINGS), (n, self.ways, 1)), axis=2)
        return {"classes": characters + N_CHARACTERS * quarters, "drawings": order[..., : shown[1]]}

    def validate_tasks(self, tasks: Mapping[str, Any]) -> Tasks:
        """Return a batch of tasks.

        :raises TaskError: values outside their range, two classes of one character, or a drawing twice.
        """
        found = super().validate_tasks(tasks)
        for name, values in (("classes", found["classes"] % N_CHARACTERS), ("drawings", found["drawings"])):
            ordered = np.sort(values, axis=-1)
            twice = (ordered[..., 1:] == ordered[..., :-1]).reshape(len(values), -1).any(1)
            if twice.any():
                value = found[name][int(np.argmax(twice))].tolist()
                what = "characters" if name == "classes" else "drawings of a class"
                raise TaskError(f"{name}={value}: the {what} of a task of {self.id} differ")
        return found

    def describe(self, task: Task) -> str:
        known = drawings()
        names = {known.names[known.alphabet[each % N_CHARACTERS]].replace("_", " ") for each in task["classes"]}
        return f"{self.ways} characters of {', '.join(sorted(names)[:3])}{' and others' if len(names) > 3 else ''}"

    # -------------------------------------------------------------------------------------------------------- examples
    @property
    def n_images(self) -> int:
        shown = max(self.shots, self.train_shots)
        return self.ways * (N_DRAWINGS - shown if self.held_out else shown)

    def pool(self, tasks: Tasks) -> Pool:
        classes, shown = tasks["classes"], tasks["drawings"]
        trains = self._trains[classes[:, 0] % N_CHARACTERS]
        if self.held_out:
            is_shown = np.zeros((*classes.shape, N_DRAWINGS), bool)
            np.put_along_axis(is_shown, shown, True, axis=2)
            chosen = np.argsort(is_shown, axis=2, kind="stable")
            counts = N_DRAWINGS - is_shown.sum(2).max(1)
        else:
            chosen, counts = shown, np.where(trains, self.train_shots, self.shots)
        quarters, character = np.divmod(classes, N_CHARACTERS)
        first = quarters * N_IMAGES + character * N_DRAWINGS
        return Pool(first[..., None] + chosen, counts)


def _cut(seed: int) -> dict[str, np.ndarray]:
    """Return the characters of each split."""
    order = stream(seed, "omniglot/few-shot").permutation(N_CHARACTERS)
    return dict(zip(SIZES, np.split(order, np.cumsum(list(SIZES.values()))[:-1]), strict=True))
