"""What a stranger may have made of a document: one value replaced, lost, doubled or renamed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from metarl.errors import MetaRLError

fixed = settings(
    max_examples=80, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
"""The same examples each time, and not many: all targets together take less than half a minute of one core."""
few = settings(fixed, max_examples=25)
"""The same for readers that take longer."""


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


VALUES: list[Any] = [
    *[None, True, 0, 1, -1, 3, 10**6, 10**12, 2**63, 10**400, -(10**30), 0.5, 1e-300, 1e300],
    *["", "x", "1", "auto", "a\nb", "é\u2028", "x" * 5000, "/etc/passwd", "../../x"],
    *[[], [1], [None], ["a"], [[1]], [1] * 500, [10**9], {}, {"a": 1}, {"a": {"b": [1]}}, nested(30), nested(60)],
]
"""Of every type JSON has, and of sizes that nobody means."""


def places(document: Any) -> list[tuple[Any, ...]]:
    """Return the way to every value of a document, but only to the first few of a list."""
    keys = (
        document if isinstance(document, dict) else range(min(3, len(document))) if isinstance(document, list) else ()
    )
    return [(key, *way) for key in keys for way in [(), *places(document[key])]]


def changed(document: Any) -> st.SearchStrategy[Any]:
    """Return documents that differ from ``document`` in one place."""
    ways = places(document)

    def change(way: tuple[Any, ...], how: str, value: Any) -> Any:
        result = copy.deepcopy(document)
        parent = result
        for key in way[:-1]:
            parent = parent[key]
        key = way[-1]
        if how == "replace":
            parent[key] = copy.deepcopy(value)
        elif how == "lose":
            del parent[key]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[how] = parent.pop(key)
        return result

    hows = st.sampled_from(["replace"] * 6 + ["lose", "x", "env", "rest", "tensorboard_log"])
    return st.builds(change, st.sampled_from(ways), hows, st.sampled_from(VALUES))


def read(reader: Callable[[], Any]) -> bool:
    """Return whether a reader took a file; what it refuses, it refuses in one short line."""
    try:
        reader()
    except MetaRLError as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) < 2000
        return False
    return True


def _damage(share: float, how: str, bit: int, more: bytes) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        place = int(share * len(data))
        if how == "flip":
            return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
        if how == "lose":
            return data[:place] + data[place + len(more) :]
        return data[:place] + (more + data[place:] if how == "insert" else b"")

    return apply


damages = st.builds(
    _damage,
    st.floats(0.0, 1.0, exclude_max=True),
    st.sampled_from(["flip", "lose", "insert", "cut"]),
    st.integers(0, 7),
    st.binary(min_size=1, max_size=20),
)
"""What may happen to bytes: one of them changes, some are lost, some come in, or the end is cut off."""
