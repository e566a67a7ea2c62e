"""Makes data sets of ``MultiCV-v0`` of the files that others come as::

    python -m metarl.envs.supervised.vision.convert SOURCE OUT.npz

SOURCE is a folder that holds one of these; which one, its names tell:

- **idx**, as MNIST and its family come: ``train-images*ubyte``, ``train-labels*ubyte``, ``t10k-images*ubyte`` and
  ``t10k-labels*ubyte``, packed (``.gz``) or not;
- **CIFAR binary**: ``data_batch_*.bin`` and ``test_batch.bin`` of CIFAR-10, or ``train.bin`` and ``test.bin`` of
  CIFAR-100, whose fine labels are taken;
- **SVHN**: ``train_32x32.mat`` and ``test_32x32.mat``, for which scipy has to be installed;
- **PNG folders**: ``train/<class>/*.png`` and ``test/<class>/*.png``, of images of one size.

Nothing is unpickled: CIFAR's Python files are not taken. The layout is that of
:func:`~metarl.envs.supervised.vision.data_sets.read_data_set`.
"""

from __future__ import annotations

import gzip
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from metarl.envs.supervised.vision.data_sets import DataSet, data_set_of
from metarl.errors import ConfigError, MetaRLError, shorten
from metarl.files.untrusted import read_bytes
from metarl.files.writing import write_npz_atomic

Part = tuple[np.ndarray, np.ndarray]
"""Images and labels."""
UNPACKED = 2**30
"""Bytes of an unpacked file, at most."""
USAGE = "python -m metarl.envs.supervised.vision.convert SOURCE OUT.npz (--help says more)"
FORMATS = "idx (MNIST), CIFAR binary, SVHN .mat or folders of PNGs"


def convert(source: str | Path, target: str | Path) -> DataSet:
    """Write the data set of a folder into one ``.npz`` file; see :mod:`metarl.envs.supervised.vision.convert`.

    :param source: the folder.
    :param target: the file, which ends in ``.npz``.
    :return: what was written.
    :raises ConfigError: a folder that holds none of the formats, or files that are not what their names say.
    """
    source, target = Path(source), Path(target)
    if not source.is_dir():
        raise ConfigError(f"no such folder: {shorten(source, quote=False)}")
    if target.suffix != ".npz":
        raise ConfigError(f"{shorten(target, quote=False)}: a data set is an .npz file")
    for read in (_idx, _cifar, _svhn, _folders):
        found = read(source)
        if found is not None:
            break
    else:
        raise ConfigError(f"{shorten(source, quote=False)} holds none of {FORMATS}")
    data = data_set_of(shorten(source, quote=False), found)
    write_npz_atomic(target, **found)
    return data


def _arrays(train: Part, test: Part, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    parts = {"train": train, "test": test}
    found = {f"{part}_images": images for part, (images, _) in parts.items()}
    found |= {f"{part}_labels": labels for part, (_, labels) in parts.items()}
    return found if names is None else {**found, "class_names": np.array(names)}


# ----------------------------------------------------------------------------------------------------------------- idx
def _idx(source: Path) -> dict[str, np.ndarray] | None:
    parts = []
    for prefix in ("train", "t10k"):
        pair = [_one_of(source, f"{prefix}-{what}*ubyte*") for what in ("images", "labels")]
        if None in pair:
            return None
        parts.append(tuple(_read_idx(path) for path in pair if path is not None))
    (train, test) = parts
    return _arrays((train[0], train[1]), (test[0], test[1]))


def _one_of(source: Path, pattern: str) -> Path | None:
    return next(iter(sorted(source.glob(pattern))), None)


def _read_idx(path: Path) -> np.ndarray:
    """Return the bytes of an idx file in their shape: two zeros, 8 for bytes, the number of axes, and their lengths."""
    data = read_bytes(path, error=ConfigError)
    if path.suffix == ".gz":
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(UNPACKED)
        except (OSError, EOFError) as error:
            raise ConfigError(f"{shorten(path, quote=False)} is no gzip file: {shorten(error, quote=False)}") from None
    n_axes = data[3] if len(data) > 3 else 0
    start = 4 + 4 * n_axes
    shape = np.frombuffer(data[4:start], ">u4").tolist() if len(data) >= start else []
    if data[:3] != b"\0\0\x08" or n_axes not in (1, 3) or int(np.prod(shape)) != len(data) - start:
        raise ConfigError(f"{shorten(path, quote=False)} is no idx file of bytes with one axis or three")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


# --------------------------------------------------------------------------------------------------------------- CIFAR
def _cifar(source: Path) -> dict[str, np.ndarray] | None:
    if (source / "test_batch.bin").is_file():
        train, n_labels = sorted(source.glob("data_batch_*.bin")), 1
        test = [source / "test_batch.bin"]
    elif (source / "train.bin").is_file() and (source / "test.bin").is_file():
        train, n_labels, test = [source / "train.bin"], 2, [source / "test.bin"]
    else:
        return None
    if not train:
        raise ConfigError(f"{shorten(source, quote=False)} has test_batch.bin and no data_batch_*.bin")
    return _arrays(_read_cifar(train, n_labels), _read_cifar(test, n_labels))


def _read_cifar(paths: Sequence[Path], n_labels: int) -> Part:
    """Return what binary batches hold: of each image its labels, the fine one last, and three planes of 32 by 32."""
    size, rows = n_labels + 3 * 32 * 32, []
    for path in paths:
        data = read_bytes(path, error=ConfigError)
        if not data or len(data) % size:
            raise ConfigError(
                f"{shorten(path, quote=False)} has {len(data)} bytes, no multiple of {size}: no such batch"
            )
        rows.append(np.frombuffer(data, np.uint8).reshape(-1, size))
    found = np.concatenate(rows)
    return found[:, n_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), found[:, n_labels - 1].copy()


# ---------------------------------------------------------------------------------------------------------------- SVHN
def _svhn(source: Path) -> dict[str, np.ndarray] | None:
    paths = [source / f"{part}_32x32.mat" for part in ("train", "test")]
    if not all(path.is_file() for path in paths):
        return None
    try:
        # It is no dependency: only these files need it.
        loadmat: Callable[..., dict[str, np.ndarray]] = importlib.import_module("scipy.io").loadmat
    except ImportError:
        raise ConfigError("SVHN's .mat files are read by scipy, which is not installed: pip install scipy") from None
    parts = []
    for path in paths:
        try:
            found = loadmat(io.BytesIO(read_bytes(path, error=ConfigError)), variable_names=["X", "y"])
            images, labels = np.asarray(found["X"]), np.asarray(found["y"]).ravel()
        except (ValueError, TypeError, KeyError, NotImplementedError) as error:
            words = shorten(error, quote=False)
            raise ConfigError(f"{shorten(path, quote=False)} is no .mat file of X and y: {words}") from None
        if images.ndim != 4:
            raise ConfigError(f"{shorten(path, quote=False)}: X is {list(images.shape)}, not [32, 32, 3, image]")
        # Ten stands for the digit 0.
        parts.append((images.transpose(3, 0, 1, 2).copy(), labels.astype(np.int64) % 10))
    train, test = parts
    return _arrays(train, test)


# ---------------------------------------------------------------------------------------------------------------- PNGs
def _folders(source: Path) -> dict[str, np.ndarray] | None:
    if not all((source / part).is_dir() for part in ("train", "test")):
        return None
    names = sorted(path.name for path in (source / "train").iterdir() if path.is_dir())
    for path in sorted((source / "test").iterdir()):
        if path.is_dir() and path.name not in names:
            raise ConfigError(f"{shorten(path, quote=False)} is a class that train has not")
    return _arrays(_read_folder(source / "train", names), _read_folder(source / "test", names), names)


def _read_folder(folder: Path, names: Sequence[str]) -> Part:
    images: list[np.ndarray] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        for path in sorted((folder / name).glob("*.png")):
            image = _read_png(path)
            if images and image.shape != images[0].shape:
                shapes = f"{list(image.shape)}, others {list(images[0].shape)}"
                raise ConfigError(f"{shorten(path, quote=False)} is {shapes}: images of a data set have one size")
            images.append(image)
            labels.append(label)
    if not images:
        raise ConfigError(f"{shorten(folder, quote=False)} has no PNG: {folder.name}/<class>/*.png")
    return np.stack(images), np.array(labels)


def _read_png(path: Path) -> np.ndarray:
    """Return a PNG, uint8 ``[height, width]`` or ``[height, width, 3]``; what is seen through is left out."""
    # Matplotlib takes a second to be imported.
    from matplotlib.image import imread

    try:
        image = np.asarray(imread(io.BytesIO(read_bytes(path, error=ConfigError)), format="png"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{shorten(path, quote=False)} is no PNG: {shorten(error, quote=False)}") from None
    image = np.rint(255.0 * image).astype(np.uint8)
    if image.ndim == 3 and (image.shape[2] == 1 or (image[..., :1] == image[..., :3]).all()):
        return np.ascontiguousarray(image[..., 0])
    return np.ascontiguousarray(image[..., :3])


def main(argv: Sequence[str]) -> int:
    """Convert a folder; return the exit code."""
    if "-h" in argv or "--help" in argv:
        print(__doc__)
        return 0
    try:
        if len(argv) != 2:
            raise ConfigError(f"{len(argv)} of two arguments: {USAGE}")
        data = convert(*argv)
    except (MetaRLError, OSError) as error:
        print("metarl: error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    height, width, channels = data.shape
    sizes = f"{len(data.train_labels)} + {len(data.test_labels)} images of {height} by {width} by {channels}"
    print(f"{argv[1]}: {len(data.class_names)} classes, {sizes}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
