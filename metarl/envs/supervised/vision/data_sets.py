"""Data sets of images in files: one layout, looked at before anything is learnt from it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metarl.envs.supervised.vision.drawings import N_DRAWINGS, SIDE, drawings
from metarl.errors import ConfigError, shorten
from metarl.files.writing import read_npz

NAMES = ("train_images", "train_labels", "test_images", "test_labels")
N_TEST_DRAWINGS = 5
LARGEST_SIDE = 512
LARGEST = 2**30
"""Bytes of a data set, unpacked, at most: SVHN has a third of it."""


class DataSet(NamedTuple):
    """Images of classes, in two parts: ``train`` is learnt from, ``test`` is for queries and scores."""

    train_images: np.ndarray
    """uint8, ``[image, height, width, channel]``, of one channel or three."""
    train_labels: np.ndarray
    """int64, ``[image]``, from 0."""
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels


def read_data_set(path: Path) -> DataSet:
    """Return the data set of an ``.npz`` file; one that has not changed since is not read again.

    The file holds ``train_images`` and ``test_images``, uint8 ``[image, height, width]`` or ``[image, height, width,
    channel]`` with one or three channels; ``train_labels`` and ``test_labels``, integers ``[image]`` from 0; and, if
    anything, ``class_names``, text ``[class]``. Other arrays are left alone. :mod:`.convert` writes such files.

    :raises ConfigError: another layout, or labels that no class has.
    :raises CheckpointError: a file that cannot be read, or holds Python objects.
    """
    try:
        stat = path.stat()
    except OSError:
        return _read(str(path), 0, 0)  # which says why
    return _read(str(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=32)
def _read(path: str, changed: int, size: int) -> DataSet:
    return data_set_of(shorten(path, quote=False), read_npz(path, LARGEST))


def data_set_of(name: str, arrays: Mapping[str, np.ndarray]) -> DataSet:
    """Return arrays as a data set, once they are looked at.

    :param name: of the file, for the error message.
    :raises ConfigError: another layout, or labels that no class has.
    """
    for needed in NAMES:
        if needed not in arrays:
            raise ConfigError(f"{name} has no {needed}: a data set has {', '.join(NAMES)}, and may have class_names")
    given = arrays.get("class_names")
    names = None if given is None else tuple(map(str, given.ravel()))
    images = {part: _images(name, f"{part}_images", arrays[f"{part}_images"]) for part in ("train", "test")}
    if images["train"].shape[1:] != images["test"].shape[1:]:
        shapes = " and ".join(str(list(each.shape[1:])) for each in images.values())
        raise ConfigError(f"{name}: train_images and test_images are of two shapes, {shapes}")
    n_classes = None if names is None else len(names)
    labels = {}
    for part, own in images.items():
        labels[part] = _labels(name, f"{part}_labels", arrays[f"{part}_labels"], len(own), n_classes)
        if n_classes is None:
            n_classes = int(labels[part].max()) + 1
    assert n_classes is not None
    if n_classes < 2:
        raise ConfigError(f"{name} has one class: at least two are told apart")
    names = names or tuple(map(str, range(n_classes)))
    return DataSet(images["train"], labels["train"], images["test"], labels["test"], names)


def _images(name: str, which: str, array: np.ndarray) -> np.ndarray:
    found = f"{list(array.shape)} {array.dtype}"
    channels = array.shape[3:] if array.ndim == 4 else (1,)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or channels[0] not in (1, 3):
        raise ConfigError(
            f"{name}: {which} is {found}, not uint8 [image, height, width] or [image, height, width, channel] with one "
            "channel or three"
        )
    if 0 in array.shape or max(array.shape[1:3]) > LARGEST_SIDE:
        raise ConfigError(f"{name}: {which} is {found}: at least one image, of 1 to {LARGEST_SIDE} pixels each way")
    array = array.reshape(*array.shape[:3], *channels)
    array.flags.writeable = False  # it is shared by all that read the file
    return array


def _labels(name: str, which: str, array: np.ndarray, n_images: int, n_classes: int | None) -> np.ndarray:
    if array.shape != (n_images,) or array.dtype.kind not in "iu":
        raise ConfigError(
            f"{name}: {which} is {list(array.shape)} {array.dtype}, not integers [{n_images}], one an image"
        )
    top = np.iinfo(np.int32).max if n_classes is None else n_classes - 1
    outside = (array < 0) | (array > top)
    if outside.any():
        known = "counted from 0" if n_classes is None else f"0 to {top}, as train_labels or class_names have it"
        raise ConfigError(f"{name}: {which} has {array[outside][0]}, and classes are {known}")
    return array.astype(np.int64)


@functools.cache
def alphabet_as_data_set(alphabet: int) -> DataSet:
    """Return an alphabet of Omniglot as a data set: 15 drawings of each character for training, 5 for testing."""
    known = drawings()
    characters = known.characters(alphabet)
    pixels = known.pixels[:, :-1].reshape(-1, N_DRAWINGS, SIDE, SIDE, 1)[characters] * np.uint8(255)
    labels = np.repeat(np.arange(len(characters))[:, None], N_DRAWINGS, axis=1)
    test = slice(0, N_TEST_DRAWINGS), slice(N_TEST_DRAWINGS, N_DRAWINGS)
    (held_out, of_held_out), (shown, of_shown) = (
        (pixels[:, part].reshape(-1, SIDE, SIDE, 1), labels[:, part].ravel()) for part in test
    )
    return DataSet(shown, of_shown, held_out, of_held_out, tuple(map(str, range(len(characters)))))
