"""Reading what a stranger may have written: files, YAML and JSON, with limits on size, depth and length.

Everything that metarl reads as text goes through here, so that nothing is ever run and nothing takes for ever: only
regular files are opened (no device, no pipe), a file has a largest size, a document a largest depth and number of
values, and whatever a parser raises becomes one line. What comes out is plain data whose types nobody has checked:
:mod:`metarl.files.schema` does that.
"""

from __future__ import annotations

import copy
import csv
import functools
import io
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from metarl.errors import CheckpointError, MetaRLError, shorten

MAX_FILE = 2**31
"""Bytes of the largest file that is read; the largest checkpoint of a convolution network has a hundredth of it."""
MAX_YAML = 2**18
"""Bytes of the largest YAML text. The longest file that ships has 4 kB; reading this many takes about a second."""
MAX_JSON = 2**25
"""Bytes of the largest JSON text. The record of all runs of a paper has 1 MB."""
MAX_LOG = 2**28
"""Bytes of the largest log in text; a meta-iteration writes less than 1 kB."""
MAX_DEPTH = 40
"""Lists and mappings inside one another."""
MAX_VALUES = 50_000
"""Values of a YAML document once its aliases are written out."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""What a clone has in the place of large files until they are fetched."""
_FLOAT = re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


# ---------------------------------------------------------------------------------------------------------------- files
def read_bytes(path: str | Path, limit: int = MAX_FILE, error: type[MetaRLError] = CheckpointError) -> bytes:
    """Return the content of a regular file.

    :param limit: the largest size in bytes.
    :param error: what is raised.
    :raises MetaRLError: of the class ``error``: a file that is missing, no regular file (a folder, a device, a pipe),
        too large or unreadable.
    """
    shown = shorten(path, quote=False)
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"no such file: {shown}") from None
    except (OSError, ValueError) as reason:
        raise error(f"cannot read {shown}: {getattr(reason, 'strerror', None) or reason}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise error(f"cannot read {shown}: it is {kind}, not a file")
    try:
        with open(descriptor, "rb") as file:
            data = file.read(limit + 1)
    except OSError as reason:
        raise error(f"cannot read {shown}: {reason.strerror or reason}") from None
    if len(data) > limit:
        raise error(f"cannot read {shown}: it is larger than {limit:,} bytes")
    if data.startswith(_LFS_POINTER):
        raise error(
            f"cannot read {shown}: it is a pointer of Git LFS, which `git lfs pull` replaces with the file itself"
        )
    return data


def read_text(path: str | Path, limit: int = MAX_JSON, error: type[MetaRLError] = CheckpointError) -> str:
    """Return the text of a regular UTF-8 file, every line's end as ``\\n``; parameters as in :func:`read_bytes`."""
    data = read_bytes(path, limit, error)
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as reason:
        raise error(f"{shorten(path, quote=False)} is not UTF-8 text: {_words(reason)}") from None


# ----------------------------------------------------------------------------------------------------------------- JSON
def parse_json(text: str, source: str, error: type[MetaRLError] = CheckpointError, limit: int = MAX_JSON) -> Any:
    """Return what strict JSON says: no NaN, no infinity, no key twice.

    :param source: where ``text`` is from, for the error message.
    :param error: what is raised.
    :param limit: the largest length in characters.
    """
    try:
        _require_length(text, limit)
        _require_flat(text)
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates
        )
    except (ValueError, TypeError, RecursionError, OverflowError) as reason:
        raise error(f"{source} is not JSON: {_words(reason)}") from None


def _require_flat(text: str) -> None:
    """Refuse brackets that are too deep, before a parser that calls itself reaches them."""
    depth = 0
    # A string that never ends is matched as well: looking for its end again from every quote in it takes hours.
    for token in re.finditer(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', text, re.DOTALL):
        if token[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"it is more than {MAX_DEPTH} levels deep")
        elif token[0] in "]}":
            depth -= 1


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{shorten(key)} is given twice")
        result[key] = value
    return result


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{shorten(text, quote=False)} is more than a number holds")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


# ------------------------------------------------------------------------------------------------------------------ CSV
def parse_csv(text: str, source: str, error: type[MetaRLError] = CheckpointError) -> list[list[str]]:
    """Return the rows of comma-separated values, blank lines left out; rows may differ in length.

    :param source: where ``text`` is from, for the error message.
    :param error: what is raised.
    """
    try:
        return [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as reason:
        raise error(f"{source} is no table of comma-separated values: {_words(reason)}") from None


# ----------------------------------------------------------------------------------------------------------------- YAML
class _Loader(yaml.SafeLoader):
    """A safe loader that reads ``1e-3`` as a number, as everybody means it (YAML 1.1 wants ``1.0e-3``).

    A key that is given twice is an error: one of the two values would be lost. Dates are text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  (as PyYAML declares it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, having counted how deep it is."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"it is more than {MAX_DEPTH} levels deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, before anything is merged into it."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ValueError(f"{shorten(key.value)} is given twice")
                seen.add(key.value)
        return node

    def get_single_node(self) -> Any:
        """Compose the document, having counted what its aliases stand for."""
        node = super().get_single_node()
        if node is not None and _size(node, {}, set()) > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        return node


class _Dumper(yaml.SafeDumper):
    """The safe dumper that quotes what :class:`_Loader` would take for a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _size(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Return how many values a node holds when every alias in it is written out.

    :param known: the sizes of the nodes that were met, by identity.
    :param above: the nodes that this one is in.
    """
    if id(node) in above:
        raise ValueError("an alias stands inside what it stands for")
    if id(node) not in known:
        above.add(id(node))
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 if isinstance(parts, str) else 1 + sum(_size(part, known, above) for part in parts)
        above.remove(id(node))
    return known[id(node)]


def parse_yaml(text: str, source: str, error: type[MetaRLError], limit: int = MAX_YAML) -> Any:
    """Return what YAML says, as plain Python values; nothing is run.

    :param source: where ``text`` is from, for the error message.
    :param error: what is raised.
    :param limit: the largest length in characters.
    """
    try:
        _require_length(text, limit)
        return copy.deepcopy(_parsed(text))
    except Exception as reason:  # PyYAML's constructors raise whatever int(), float() and datetime raise
        raise error(f"{source} is not plain YAML: {_words(reason)}") from None


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """The records of a run are read again and again, and reading takes milliseconds."""
    return yaml.load(text, Loader=_Loader)


def dump_yaml(value: Any) -> str:
    """Return YAML that :func:`parse_yaml` reads back equal; its last line is ``...``, so that a cut shows."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=True, default_flow_style=None, explicit_end=True))


# ------------------------------------------------------------------------------------------------------------ in common
def _require_length(text: str, limit: int) -> None:
    if len(text) > limit:
        raise ValueError(f"it has {len(text):,} characters, {limit:,} are read")


def _words(reason: BaseException) -> str:
    """Return what an exception says, in one short line."""
    return shorten(str(reason) or type(reason).__name__, quote=False, limit=300)
