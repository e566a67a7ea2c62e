"""The drawings of Omniglot, which are part of the package."""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metarl.errors import ConfigError, shorten, unknown_name

SIDE = 28
"""Height and width of a drawing, pixels."""
N_DRAWINGS = 20
"""Of each character."""
N_CHARACTERS = 1623
N_ALPHABETS = 50
ARCHIVE = Path(__file__).with_name("data") / "omniglot.npz"
SHA256 = "636205a4c466726cafdcfc1f69c692153a6ef7d7390a51b769ba499f9163e6ca"


class Drawings(NamedTuple):
    """All of Omniglot; the arrays are read-only, because everybody shares them."""

    pixels: np.ndarray
    """``[character · 20 + drawing, 28 · 28 + 1]``, uint8: 1 where there is ink; the last entry is 0, paper."""
    alphabet: np.ndarray
    """``[character]``: the alphabet that it belongs to; characters of one are neighbours."""
    names: tuple[str, ...]
    """Of the alphabets."""

    def characters(self, alphabet: int) -> np.ndarray:
        """Return the characters of an alphabet."""
        return np.flatnonzero(self.alphabet == alphabet)

    @property
    def sizes(self) -> np.ndarray:
        """How many characters each alphabet has, ``[alphabet]``."""
        return np.bincount(self.alphabet, minlength=len(self.names))


@functools.cache
def drawings() -> Drawings:
    """Return the drawings that ship with the package; they are read once in a process.

    :raises ConfigError: the file is missing or damaged.
    """
    return _read(ARCHIVE)


def _read(path: Path) -> Drawings:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the drawings of Omniglot, which are part of metarl, cannot be read: {shorten(error, quote=False)}"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ConfigError(
            f"{shorten(path, quote=False)} is not the file that metarl comes with: its SHA-256 is {found}, not {SHA256}"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        packed, alphabet, names = (arrays[name] for name in ("images", "alphabet", "alphabet_names"))
    pixels = np.zeros((N_CHARACTERS * N_DRAWINGS, SIDE * SIDE + 1), np.uint8)
    pixels[:, :-1] = np.unpackbits(packed.reshape(len(pixels), -1), axis=-1)
    alphabet = alphabet.astype(np.int64)
    for array in (pixels, alphabet):
        array.flags.writeable = False
    return Drawings(pixels, alphabet, tuple(names.tolist()))


def alphabet_index(name: Any) -> int:
    """Return the index of an alphabet: ``"Greek"``, ``"Burmese (Myanmar)"`` or the latter as it is written on disk.

    :raises UnknownNameError: there is no such alphabet.
    """
    known = drawings().names
    spelt = {_plain(each): index for index, each in enumerate(known)}
    index = spelt.get(_plain(str(name)))
    if index is None:
        raise unknown_name("alphabet", name, known)
    return index


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()
