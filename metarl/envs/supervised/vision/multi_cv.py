"""MultiCV: data sets of images as tasks, each with classes of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from metarl.checks import NONE, integer
from metarl.envs.registry import register_family
from metarl.envs.supervised.vision.classification import Classification
from metarl.envs.supervised.vision.data_sets import LARGEST_SIDE, DataSet, alphabet_as_data_set, read_data_set
from metarl.envs.supervised.vision.drawings import alphabet_index, drawings
from metarl.envs.tasks import Task, Tasks
from metarl.errors import ConfigError, shorten, unknown_name

OMNIGLOT = "omniglot/"
"""Begins the name of an alphabet of Omniglot."""
CONVERTER = "python -m metarl.envs.supervised.vision.convert"


class MultiCV(Classification):
    """Data sets of images, one for each task: Leap's Multi-CV (Flennerhag et al., 2019, section 4.2), on what is there.

    **Task.** ``dataset``, the index of a data set, or its name: that of its file without ``.npz``, or
    ``omniglot/Greek`` for an alphabet of Omniglot, which are part of the package. Without a folder and a list the
    alphabets are all there is.

    **Splits.** ``held_out`` names the data sets for testing; all others are for training and for validation. Without
    it they are cut as those of other finite families are: of 10 or more, 60 % are for training; fewer are in every
    split.

    **Examples.** Of the support those of a data set's training part, of the query and of scores those of its test part;
    without replacement as far as there are some.

    **Observation.** uint8, ``[channel, size, size]``. Smaller images have zeros around; where any are in colours, grey
    ones have three equal channels.

    **Action.** Discrete: the class. Data sets have unequal numbers of them, and so a last layer of its own each, which
    is drawn anew for a task and not meta-learnt, as in the paper.

    Reward, loss and episode are those of ``Omniglot-v0``. There is no augmentation, as in the paper; what is not done
    here is its normalisation by each data set's mean and deviation: pixels are scaled to [0, 1] by the policy.

    ::

        family = make_family("MultiCV-v0", datasets=["omniglot/Greek", "omniglot/Braille", "omniglot/Latin"])
        assert [family.describe({"dataset": index}) for index in range(2)] == ["omniglot/Greek", "omniglot/Braille"]
        assert family.spaces({"dataset": 0})[1].n == 24

    ``python -m metarl.envs.supervised.vision.convert mnist/ data/mnist.npz`` makes such files of those that MNIST,
    Fashion-MNIST, CIFAR and SVHN come as, and of folders of PNGs.

    **Versions.** v0: first version.

    :param folder: has the data sets, ``*.npz``; see :func:`~metarl.envs.supervised.vision.data_sets.read_data_set`.
    :param datasets: names of those to take, a list or one text with commas; None: all of the folder.
    :param held_out: names of those to test on.
    :param size: height and width of an image, pixels; None: those of the largest.
    :raises ConfigError: no data set, one that cannot be taken, or images larger than ``size``.
    """

    id = "MultiCV-v0"

    def __init__(
        self,
        *,
        folder: str | None = None,
        datasets: str | Sequence[str] | None = None,
        held_out: str | Sequence[str] | None = None,
        size: int | None = None,
    ) -> None:
        self.names, self._read = _found(folder, datasets)
        test = [] if held_out is None else _names_of("held_out", held_out)
        for name in test:
            if name not in self.names:
                raise unknown_name("data set", name, self.names)
        self._test = np.flatnonzero(np.isin(self.names, test))
        if len(self._test) == len(self.names):
            raise ConfigError(f"held_out={shorten(test)}: no data set is left to train on")
        found = [read() for read in self._read]
        largest = max(max(each.shape[:2]) for each in found)
        self.size = (integer(1, LARGEST_SIDE) | NONE)("size", size) or largest
        if self.size < largest:
            name = self.names[int(np.argmax([max(each.shape[:2]) for each in found]))]
            raise ConfigError(f"size={self.size}: images of {name} have {largest} pixels")
        self._n_shown = max(len(each.train_labels) for each in found)
        self._n_held_out = max(len(each.test_labels) for each in found)
        self._n_classes = [len(each.class_names) for each in found]
        channels = max(each.shape[2] for each in found)
        self.task_space = Dict({"dataset": Discrete(len(found))})
        self.observation_space = Box(0, 255, (channels, self.size, self.size), np.uint8)
        self.action_space = Discrete(self._n_classes[int(self.finite_split("train")[0])])
        self.with_query_family()

    # ----------------------------------------------------------------------------------------------------------- tasks
    @property
    def splits_coincide(self) -> bool:
        return not len(self._test) and super().splits_coincide

    def finite_tasks(self) -> Tasks:
        return {"dataset": np.arange(len(self.names))}

    def finite_split(self, split: str) -> np.ndarray:
        if not len(self._test):
            return super().finite_split(split)
        return self._test.copy() if split == "test" else np.setdiff1d(np.arange(len(self.names)), self._test)

    def validate_tasks(self, tasks: Mapping[str, Any]) -> Tasks:
        """Return data sets as a batch of tasks.

        :raises UnknownNameError: a name that no data set has.
        :raises TaskError: something else that is none.
        """
        given = tasks.get("dataset") if isinstance(tasks, Mapping) else None
        if isinstance(given, list | tuple | np.ndarray):
            tasks = {**tasks, "dataset": [self._index(each) if isinstance(each, str) else each for each in given]}
        return super().validate_tasks(tasks)

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise unknown_name("data set", name, self.names)
        return self.names.index(name)

    def describe(self, task: Task) -> str:
        return self.names[int(task["dataset"])]

    def spaces(self, task: Task) -> tuple[Box, Discrete]:
        return self.observation_space, Discrete(self._n_classes[int(task["dataset"])])

    # -------------------------------------------------------------------------------------------------------- examples
    @property
    def n_images(self) -> int:
        return self._n_held_out if self.held_out else self._n_shown

    def examples(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n: int) -> tuple[np.ndarray, np.ndarray]:
        inputs = np.zeros((len(rngs), n, *self.observation_space.shape), np.uint8)
        labels = np.zeros((len(rngs), n), np.int64)
        for task, (index, rng) in enumerate(zip(tasks["dataset"].tolist(), rngs, strict=True)):
            found = self._read[index]()
            part = (found.test_images, found.test_labels) if self.held_out else (found.train_images, found.train_labels)
            images, of_images = part
            rounds, rest = divmod(n, len(images))
            drawn = [rng.permutation(len(images)) for _ in range(rounds)]
            picked = np.concatenate([*drawn, rng.choice(len(images), rest, replace=False)])
            height, width, _ = found.shape
            top, left = (self.size - height) // 2, (self.size - width) // 2
            # One channel is spread over all.
            inputs[task, :, :, top : top + height, left : left + width] = images[picked].transpose(0, 3, 1, 2)
            labels[task] = of_images[picked]
        return inputs, labels


def _names_of(argument: str, given: str | Sequence[str]) -> list[str]:
    names = given.split(",") if isinstance(given, str) else list(given)
    names = [each.strip() if isinstance(each, str) else each for each in names]
    if not names or not all(isinstance(each, str) and each for each in names):
        raise ConfigError(f"{argument}={shorten(given)}: names of data sets, a list or one text with commas")
    if len(set(names)) < len(names):
        raise ConfigError(f"{argument}={shorten(given)} has a name twice")
    return names


def _found(folder: str | None, datasets: str | Sequence[str] | None) -> tuple[list[str], list[Callable[[], DataSet]]]:
    """Return the names of the data sets that are asked for, and what reads each."""
    files: dict[str, Path] = {}
    if folder is not None:
        if not isinstance(folder, str | Path) or not Path(folder).is_dir():
            raise ConfigError(f"folder={shorten(folder)}: there is no such folder of data sets")
        files = {path.stem: path for path in sorted(Path(folder).glob("*.npz"))}
        if not files:
            raise ConfigError(f"folder={shorten(folder)} has no data set, *.npz: {CONVERTER} makes them")
    of_omniglot = [OMNIGLOT + name for name in drawings().names]
    names = _names_of("datasets", datasets) if datasets is not None else list(files) or of_omniglot
    readers: list[Callable[[], DataSet]] = []
    for name in names:
        if name in files:
            readers.append(functools.partial(read_data_set, files[name]))
        elif name.startswith(OMNIGLOT):
            readers.append(functools.partial(alphabet_as_data_set, alphabet_index(name.removeprefix(OMNIGLOT))))
        elif folder is None:
            raise ConfigError(f"data set {shorten(name)}: folder says where {shorten(name, quote=False)}.npz is")
        else:
            raise unknown_name("data set", name, [*files, f"{OMNIGLOT}<alphabet>"])
    return names, readers


register_family(MultiCV.id, MultiCV)
