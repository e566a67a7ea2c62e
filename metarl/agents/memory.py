"""How much memory there is for what may be kept or computed again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MACHINE, OWN_GROUPS, GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
"""What a control group may take and what it has, as Linux calls them now and as it did before 2016."""


def available_memory() -> int:
    """Return how many bytes this process may still take, of the machine's memory and of its control groups' (Linux).

    A container's limit is that of a control group. Files that the system keeps in memory count as taken there, although
    they would be given up. Where the system does not say, the answer is 0.
    """
    return max(0, min([*_of_machine(), *_of_groups()], default=0))


def _of_machine() -> Iterator[int]:
    for line in _text(MACHINE).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.removesuffix("kB")) * 1024


def _of_groups() -> Iterator[int]:
    for line in _text(OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        place, (limit, usage) = GROUPS / controllers, LIMITS[bool(controllers)]
        own = PurePosixPath(path.lstrip("/"))
        for group in (own, *own.parents):  # inside of a container its own group is what lies at the top
            most, taken = _text(place / group / limit).strip(), _text(place / group / usage).strip()
            if most.isdecimal() and taken.isdecimal():
                yield int(most) - int(taken)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
