"""Omniglot as Leap has it: each alphabet is a task of 20 characters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Dict, Discrete

from metarl.checks import COUNT, integer
from metarl.envs.supervised.vision.characters import OmniglotProtocol
from metarl.envs.supervised.vision.classification import Pool
from metarl.envs.supervised.vision.drawings import N_ALPHABETS, N_DRAWINGS, SIDE, alphabet_index, drawings
from metarl.envs.tasks import Task, Tasks
from metarl.errors import ConfigError
from metarl.streams import stream

N_TEST = 10


class OmniglotAlphabets(OmniglotProtocol):
    """Alphabets as tasks: the protocol of Leap (Flennerhag et al., 2019, section 4.1 and appendix D).

    **Task.** ``alphabet``, its index, or its name, such as ``"Greek"``; alphabets with fewer than ``ways`` characters
    are left out, four of the 50. Of those with more, ``ways`` characters are chosen once.

    **Splits.** In an order that ``split_seed`` draws: 10 for testing, ``n_alphabets`` for training, and the rest for
    validation, the last of which ``n_test`` may take for testing too. A meta-batch holds each training alphabet as
    often as any other, or once more. Shifted: the characters of the test alphabets, dealt into as many tasks anew, so
    that a task's characters come from all of them.

    **Examples.** Of each character the first 5 drawings are held out, for the query and for scores, and the other 15
    are the support's.

    ::

        family = make_family("Omniglot-v0")
        greek = family.validate_tasks({"alphabet": ["Greek"]})
        images, labels = family.examples(greek, [np.random.default_rng(0)], 20)
        assert images.shape == (1, 20, 1, 28, 28) and labels.max() < 20

    What differs from the code that goes with the paper: there the flag that says which drawings are shown is asked in
    such a way that the error on held-out drawings is one on the support's; every batch here is drawn by itself, and
    those of one task there share an order of all drawings.

    :param n_alphabets: for training, 1 to 25 in the paper.
    :param ways: classes of a task.
    :param n_held_out: drawings of each character that are held out.
    :param n_test: alphabets for testing: the paper's 10 or, where intervals are to be over more, further ones. Those
        for training are the same whatever it is.

    The other parameters are those of :class:`~metarl.envs.supervised.vision.characters.OmniglotProtocol`.
    """

    def __init__(
        self,
        *,
        n_alphabets: int = 25,
        ways: int = 20,
        n_held_out: int = 5,
        n_test: int = N_TEST,
        augment: bool = True,
        ink: str = "black",
        size: int = SIDE,
        split_seed: int = 0,
    ) -> None:
        known = drawings()
        largest = int(known.sizes.max())
        super().__init__(integer(2, largest)("ways", ways), augment, ink, size, split_seed)
        self.n_held_out = integer(1, N_DRAWINGS - 1)("n_held_out", n_held_out)
        found = np.flatnonzero(known.sizes >= self.ways)
        self.n_alphabets = COUNT("n_alphabets", n_alphabets)
        self.n_test = integer(N_TEST, N_ALPHABETS)("n_test", n_test)
        if self.n_alphabets + self.n_test >= len(found):
            raise ConfigError(
                f"n_alphabets={self.n_alphabets}, n_test={self.n_test} with ways={self.ways}: {len(found)} alphabets "
                f"have so many characters, one of which is for validation: together at most {max(0, len(found) - 1)}"
            )
        self._alphabets = found
        order = stream(self.split_seed, "omniglot/alphabets").permutation(len(found))
        # The first test alphabets are the same ones whatever n_alphabets is, those for training whatever n_test is.
        first, train, validation, more = np.split(
            order, (N_TEST, N_TEST + self.n_alphabets, len(found) - (self.n_test - N_TEST))
        )
        self._parts = {"test": np.concatenate([first, more[::-1]]), "train": train, "validation": validation}
        chosen = np.zeros((N_ALPHABETS + self.n_test, self.ways), np.int64)
        for alphabet in found.tolist():
            characters = stream(self.split_seed, "omniglot/characters", alphabet).permutation(
                known.characters(alphabet)
            )
            chosen[alphabet] = characters[: self.ways]
        dealt = chosen[found[self._parts["test"]]].ravel()
        chosen[N_ALPHABETS:] = stream(self.split_seed, "omniglot/dealt").permutation(dealt).reshape(-1, self.ways)
        self._characters = chosen
        self.task_space = Dict({"alphabet": Discrete(N_ALPHABETS)})
        self.shifted_space = Dict({"alphabet": Discrete(self.n_test, start=N_ALPHABETS)})
        self.with_query_family()

    # ----------------------------------------------------------------------------------------------------------- tasks
    def finite_tasks(self) -> Tasks:
        return {"alphabet": self._alphabets.copy()}

    def finite_split(self, split: str) -> np.ndarray:
        return self._parts[split].copy()

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Tasks:
        part = self._alphabets[self._parts["train"]]
        return {"alphabet": np.concatenate([rng.permutation(part) for _ in range(-(-n // len(part)))])[:n]}

    def validate_tasks(self, tasks: Mapping[str, Any]) -> Tasks:
        """Return alphabets as a batch of tasks.

        :raises UnknownNameError: a name that no alphabet has.
        :raises TaskError: something else that is no alphabet of at least ``ways`` characters.
        """
        given = tasks.get("alphabet") if isinstance(tasks, Mapping) else None
        if isinstance(given, list | tuple | np.ndarray):
            tasks = {**tasks, "alphabet": [alphabet_index(each) if isinstance(each, str) else each for each in given]}
        return super().validate_tasks(tasks)

    def describe(self, task: Task) -> str:
        index = int(task["alphabet"])
        if index >= N_ALPHABETS:
            return f"mixture {index - N_ALPHABETS + 1} of test alphabets"
        return drawings().names[index].replace("_", " ")

    # -------------------------------------------------------------------------------------------------------- examples
    @property
    def n_images(self) -> int:
        return self.ways * (self.n_held_out if self.held_out else N_DRAWINGS - self.n_held_out)

    def pool(self, tasks: Tasks) -> Pool:
        shown = np.arange(self.n_held_out) if self.held_out else np.arange(self.n_held_out, N_DRAWINGS)
        images = self._characters[tasks["alphabet"]][..., None] * N_DRAWINGS + shown
        return Pool(images, np.full(len(images), len(shown)))
