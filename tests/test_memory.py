"""How much memory there is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from metarl.agents import memory


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_of_a_system_that_says_nothing_there_is_none(system: Path) -> None:
    assert memory.available_memory() == 0
    write(system / "meminfo", "MemTotal:  24 kB\n")
    assert memory.available_memory() == 0


def test_the_machine_s(system: Path) -> None:
    write(system / "meminfo", "MemTotal:       24684096 kB\nMemAvailable:   20028188 kB\nHugePages_Total:       0\n")
    assert memory.available_memory() == 20028188 * 1024


@pytest.mark.parametrize(
    ("own", "folder", "names"),
    [
        ("0::/user/job\n", "", ("memory.max", "memory.current")),
        ("7:cpu:/\n4:memory:/user/job\n0::/\n", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_the_least_that_a_control_group_leaves(system: Path, own: str, folder: str, names: tuple[str, str]) -> None:
    write(system / "meminfo", "MemAvailable:   2000000 kB\n")
    write(system / "own", own)
    place = system / "groups" / folder

    def limit(group: str, most: object, taken: int) -> int:
        write(place / group / names[0], f"{most}\n")
        write(place / group / names[1], f"{taken}\n")
        return memory.available_memory()

    assert limit("user/job", "max", 10**6) == 2000000 * 1024
    assert limit("user/job", 9 * 10**8, 10**8) == 8 * 10**8
    assert limit("user", 5 * 10**8, 2 * 10**8) == 3 * 10**8
    assert limit("", 10**8, 10**7) == 9 * 10**7
    assert limit("", 10**8, 2 * 10**8) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_this_machine_has_some() -> None:
    assert memory.available_memory() > 10**7
