"""A tiny PointMass run that the tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.utils.tensorboard import writer

from metarl.zoo.__main__ import main
from tests.zoo.cards import blank
from tests.zoo.experiments.smoke import ALGOS, SMOKE

TINY = [
    *["train", "--env", "PointMass-v0", "--seed", "0", "--num-threads", "1", "--n-eval-tasks", "3", "-n", "400"],
    *["--env-kwargs", "horizon:10", "--eval-freq", "160", "--verbose", "0"],
    *["-params", "meta_batch_size:2", "n_episodes:2", "policy_kwargs.net_arch:[8]"],
]
"""80 env steps a meta-iteration (fewer where a goal is reached), 6 or so in all, evaluated every second one."""


def tiny(*words: str) -> list[str]:
    """Return :data:`TINY` with further words, whose k:v pairs stand in place of those of the same names."""
    names = {word.partition(":")[0] for word in words if ":" in word}
    kept = [word for word in TINY if word.partition(":")[0] not in names]
    empty = [
        i
        for i, word in enumerate(kept)
        if word in ("--env-kwargs", "-params") and ":" not in "".join(kept[i + 1 : i + 2])
    ]
    return [*(word for i, word in enumerate(kept) if i not in empty), *words]


Refused = Callable[..., str]


DRAWN = writer.figure_to_image


@pytest.fixture(scope="session", autouse=True)
def _cards_are_blank() -> Iterator[None]:
    """Drawing the figures of each evaluation for TensorBoard is half of a tiny run; ``trained`` does it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "figure_to_image", blank)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished FOMAML run; tests must not write into it."""
    logs = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "figure_to_image", DRAWN)
        assert main([*TINY, "--algo", "fomaml", "-f", str(logs)]) == 0
    return logs / "fomaml" / "PointMass-v0_1"


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of four algorithms on two families, with their results; tests must not write into it."""
    folder = tmp_path_factory.mktemp("reproduce")
    assert main([*SMOKE, "-f", str(folder), "--only-env", "PointMass-v0", "AntVel-v0", "--only-algo", *ALGOS]) == 0
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused; return its one line."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 2
        error = capsys.readouterr().err
        assert error.startswith("metarl: error: ")
        assert error.count("\n") == 1
        return error

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
