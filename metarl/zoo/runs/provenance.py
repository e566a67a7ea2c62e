"""Where a result was made: the commit, the cores and the versions, but no host names and no paths."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import metarl
from metarl.agents.parallel import available_cores
from metarl.meta.documents import versions


def provenance() -> dict[str, Any]:
    """Return what a result depends on, for a record."""
    return {"commit": commit(), "machine": {"cores": available_cores()}, "versions": versions()}


def commit() -> str | None:
    """Return the commit of this package, with ``+`` where its files differ from it; None outside a clone."""
    package = Path(metarl.__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:
            return None  # installed into an environment that lies in somebody else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
