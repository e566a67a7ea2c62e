"""Demonstrations: what they depend on, and what is kept of them in memory and on the disk."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarl.envs import make_family
from metarl.envs.family import Family
from metarl.envs.imitation import demonstrations
from metarl.envs.imitation.demonstrations import cache_folder
from metarl.envs.imitation.expert import Expert
from metarl.envs.imitation.point_mass import PointMassImitation, Straight
from metarl.envs.tasks import take_tasks
from metarl.errors import MetaRLWarning
from metarl.files.writing import read_npz, write_npz_atomic
from tests.contract.kinds import WalkHome


class Counted(Straight):
    """Counts how often it is asked."""

    asked = 0

    def act(self, tasks: Any, obs: np.ndarray) -> np.ndarray:
        type(self).asked += 1
        return super().act(tasks, obs)


class Taught(PointMassImitation):
    """Is shown by an expert that counts."""

    def make_expert(self, real: Family) -> Expert:
        return Counted(real)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are kept."""
    monkeypatch.setenv("METARL_CACHE", str(tmp_path))
    monkeypatch.setattr(Counted, "asked", 0)
    return tmp_path / "demonstrations"


def make(**kwargs: Any) -> Taught:
    return Taught(**{"n_tasks": 3, "n_demonstrations": 2, "real_kwargs": {"horizon": 10}, **kwargs})


def test_pairs_do_not_depend_on_the_batch_in_which_they_are_asked_for(folder: Path) -> None:
    family = make()
    tasks = family.tasks("test", 4)
    together = make().demonstrations.of(tasks)
    for i in (3, 1):
        (alone,) = make().demonstrations.of(take_tasks(tasks, slice(i, i + 1)))
        for ours, theirs in zip(alone, together[i], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    twice = family.demonstrations.of(take_tasks(tasks, np.array([2, 2, 0])))
    np.testing.assert_array_equal(twice[0].obs, twice[1].obs)


def test_they_are_made_once_and_read_again(folder: Path) -> None:
    family = make()
    drawn = take_tasks(family.pool, np.array([1]))  # type: ignore[arg-type]
    (pairs,) = family.demonstrations.of(drawn)
    asked = Counted.asked
    assert 0 < asked <= 10  # the whole pool, in one batch
    family.demonstrations.of(family.pool)  # type: ignore[arg-type]
    (file,) = folder.iterdir()
    assert file.name.startswith("PointMass-v0-")
    (again,) = make().demonstrations.of(drawn)
    assert Counted.asked == asked
    for ours, theirs in zip(again, pairs, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype


@pytest.mark.parametrize(
    "kwargs",
    [
        {"n_demonstrations": 3},
        {"n_states": 4},
        {"acting_noise": 0.5},
        {"real_kwargs": {"horizon": 11}},
        {"n_tasks": 4},
    ],
)
def test_other_arguments_have_other_files(folder: Path, kwargs: dict[str, Any]) -> None:
    for family in (make(), make(**kwargs), make(n_eval_episodes=2, action_noise=0.1)):
        family.demonstrations.of(family.pool)  # type: ignore[arg-type]
    assert len(list(folder.iterdir())) == 2  # the last one's are those of the first


def test_another_expert_has_other_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        monkeypatch.setattr(Counted, "fingerprint", name)
        family = make()
        family.demonstrations.of(family.pool)  # type: ignore[arg-type]
    assert len(list(folder.iterdir())) == 2


def test_code_that_was_changed_has_other_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("", "# changed"):
        source = demonstrations.inspect.getsource
        monkeypatch.setattr(demonstrations.inspect, "getsource", lambda module, s=suffix, f=source: f(module) + s)
        family = make()
        family.demonstrations.of(family.pool)  # type: ignore[arg-type]
    assert len(list(folder.iterdir())) == 2


def _truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def _changed(file: Path) -> None:
    arrays = read_npz(file)
    arrays["actions"][0] += 0.25
    write_npz_atomic(file, **arrays)


def _foreign(file: Path) -> None:
    write_npz_atomic(file, obs=np.zeros(3))


def _of_others(file: Path) -> None:
    arrays = read_npz(file)
    write_npz_atomic(file, **{**arrays, "made_from": "0" * 64})


@pytest.mark.parametrize("damage", [_truncated, _changed, _foreign, _of_others])
def test_a_damaged_file_is_said_and_made_anew(folder: Path, damage: Any) -> None:
    family = make()
    whole = family.demonstrations.of(family.pool)  # type: ignore[arg-type]
    (file,) = folder.iterdir()
    content = file.read_bytes()
    damage(file)
    with pytest.warns(MetaRLWarning, match="the expert shows it again") as said:
        again = make().demonstrations.of(family.pool)  # type: ignore[arg-type]
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    assert file.read_bytes() == content
    np.testing.assert_array_equal(again[2].obs, whole[2].obs)


def test_nothing_is_kept_where_it_cannot_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARL_CACHE", "")
    family = make()
    family.demonstrations.of(family.pool)  # type: ignore[arg-type]
    assert cache_folder() is None
    blocked = folder.parent / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("METARL_CACHE", str(blocked))
    family = make()
    family.demonstrations.of(family.pool)  # type: ignore[arg-type]
    assert not folder.exists()
    # The real family of this one is not registered: its arguments are not known.
    monkeypatch.setenv("METARL_CACHE", str(folder.parent))
    walk = WalkHome()
    walk.demonstrations.of(walk.pool)  # type: ignore[arg-type]
    assert not folder.exists()


def test_the_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("METARL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "metarl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache_folder()).endswith(os.path.join(".cache", "metarl"))


def test_writers_at_once_leave_one_whole_file(folder: Path) -> None:
    families = [make() for _ in range(4)]
    threads = [threading.Thread(target=lambda f=f: f.demonstrations.of(f.pool)) for f in families]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asked = Counted.asked
        make().demonstrations.of(families[0].pool)  # type: ignore[arg-type]
    assert Counted.asked == asked
    assert len(list(folder.iterdir())) == 1


def test_threads_share_what_is_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARL_CACHE", "")
    monkeypatch.setattr(demonstrations, "MOST_KEPT", 3000)
    family, failed = make(), []
    tasks = family.tasks("test", 12)

    def work(k: int) -> None:
        try:
            for i in range(24):
                one = take_tasks(tasks, slice((i * k) % 12, (i * k) % 12 + 1))
                assert len(family.demonstrations.of(one)) == 1
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in (1, 5, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sum(pairs.n_bytes for pairs in family.demonstrations._known.values()) <= 3000


def test_the_oldest_files_give_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstrations, "MOST_KEPT", 1500)
    for k in range(1, 6):
        family = make(n_demonstrations=k)
        family.demonstrations.of(family.pool)  # type: ignore[arg-type]
        for age, file in enumerate(sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime_ns)):
            os.utime(file, (age, age))
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4 * 1500
    asked = Counted.asked
    make(n_demonstrations=5).demonstrations.of(family.pool)  # type: ignore[arg-type]
    assert Counted.asked == asked  # the newest is there
    assert len(family.demonstrations._known) == 1  # in memory too, the last one at least


def test_a_large_pool_is_shown_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstrations, "MOST_TOGETHER", 4)
    family = make(n_tasks=10)
    pool: Any = family.pool
    family.demonstrations.of(take_tasks(pool, np.array([9, 5])))
    assert len(list(folder.iterdir())) == 2
    assert len(family.demonstrations._known) == 6  # the second part, and what is left of the third
    others = make_family("PointMass-v0").tasks("test", 5)
    assert [len(pairs.obs) > 0 for pairs in family.demonstrations.of(others)] == [True] * 5
