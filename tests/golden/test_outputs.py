"""What every command prints for a tiny run is what it printed when outputs.txt was written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

from tests.golden.outputs import COMMANDS, OUTPUTS

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"((?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?)")


def flowing(text: str) -> list[str]:
    """Return lines without what depends on the width of columns: spaces, and the lines that tables are drawn with."""
    lines = (re.sub(r"[\s\u2500-\u257f]+", " ", re.sub(r"-{3,}", "", line)).strip() for line in text.splitlines())
    return [line for line in lines if line]


def same(before: str | None, after: str | None) -> bool:
    """Whether two lines are the same, but for one unit of the last place that a number with decimals is printed to."""
    if before is None or after is None:
        return before is after
    old, new = NUMBER.split(before), NUMBER.split(after)
    return len(old) == len(new) and all(a == b or _near(a, b) for a, b in zip(old, new, strict=True))


def _near(a: str, b: str) -> bool:
    if not (NUMBER.fullmatch(a) and NUMBER.fullmatch(b) and "." in a and "." in b):
        return False
    digits = min(len(x.partition("e")[0].partition(".")[2]) for x in (a, b))
    return abs(float(a.replace(",", "")) - float(b.replace(",", ""))) <= 1.01 * 10.0**-digits


def blocks(path: Path) -> list[str]:
    """Return what each command printed."""
    return re.split(r"(?m)^(?=\$ metarl )", path.read_text(encoding="utf-8"))[1:]


def test_every_command_prints_what_it_printed(tmp_path: Path) -> None:
    """After a change that is meant: python -m tests.golden.outputs writes the file anew, and git shows what changed."""
    # In a process of its own, where no other test has registered families.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    program = [sys.executable, "-m", "tests.golden.outputs", str(tmp_path / "outputs.txt")]
    subprocess.run(program, cwd=ROOT, env=environment, check=True, timeout=300)
    stored, found = blocks(OUTPUTS), blocks(tmp_path / "outputs.txt")
    wrong = []
    for command, before, after in zip(COMMANDS, stored, found, strict=True):
        if "--help" in command and sys.version_info >= (3, 13):  # argparse words its options otherwise
            continue
        for old, new in zip_longest(flowing(before), flowing(after)):
            if not same(old, new):
                wrong.append(f"{command}: {old!r} → {new!r}")
                break
    assert wrong == []


def test_a_difference_is_seen() -> None:
    assert same("return -4.80 → -4.58", "return -4.79 → -4.59")
    assert not same("return -4.80 → -4.58", "return -4.78 → -4.58")
    assert not same("240 env steps", "241 env steps")
    assert not same("Saved a", "Saved b")
    assert not same("one line", None)
    assert flowing("┏━━┓\n┃ a  ┃ 1.0 ┃\n-----\n| b   |") == ["a 1.0", "| b |"]
