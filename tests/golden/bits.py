"""Compare the bits of two states of the code on one machine: a tool for moves and rebuildings, no test.

::

    python -m tests.golden.bits                 # print a hash of each case's bits; > FILE keeps them
    python -m tests.golden.bits COMMIT          # compare with a commit, which is checked out among temporary files
    python -m tests.golden.bits FOLDER          # compare with the code in another checkout
    python -m tests.golden.bits FILE            # compare with what was printed before

The cases are those of this checkout in either state. The exit status is 1 where a bit differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "golden" / "cases.py"


def bits_of(folder: Path) -> dict[str, str]:
    """Return the hashes of all cases with the metarl that lies in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(CASES)], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def bits_at(commit: str) -> dict[str, str]:
    """Return the hashes of all cases with the metarl of a commit."""
    git = ["git", "-C", str(ROOT)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "metarl"
        subprocess.run([*git, "worktree", "add", "-q", "--detach", str(folder), commit], check=True)
        try:
            return bits_of(folder)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(folder)], check=True)


def main(arguments: list[str]) -> int:
    """Print the hashes of this checkout, or compare them; return the exit status."""
    if not arguments:
        print(json.dumps(bits_of(ROOT), indent=1))
        return 0
    other = Path(arguments[0])
    if other.is_file():
        before = json.loads(other.read_text(encoding="utf-8"))
    else:
        before = bits_of(other.resolve()) if other.is_dir() else bits_at(arguments[0])
    after = bits_of(ROOT)
    names = list(dict.fromkeys([*before, *after]))
    differing = [name for name in names if before.get(name) != after.get(name)]
    for name in differing:
        print(f"{name}: {before.get(name, 'missing')[:12]} → {after.get(name, 'missing')[:12]}")
    print(f"{len(names) - len(differing)} of {len(names)} cases have the same bits")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
