"""A copy of the tiny run, for the commands that write into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

QUICK = ["--n-eval-tasks", "3", "--n-inner-steps", "2"]


@pytest.fixture
def logs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the log folder that may be written into."""
    shutil.copytree(trained.parents[1], tmp_path / "logs")
    return tmp_path / "logs"
