"""Worker processes: the bits of one process, stops inside, and processes that end too early or too late."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

import metarl
from metarl.envs.registry import _REGISTRY, make_family, register_family
from metarl.errors import ConfigError, DivergedError, MetaRLError, WorkerError
from metarl.meta.algorithms.leap import Leap
from metarl.meta.algorithms.maml import FOMAML
from metarl.meta.algorithms.reptile import Reptile
from metarl.meta.progress import UnitCallback, Work
from metarl.meta.workers import pool
from metarl.meta.workers.messages import parse, receive, send
from metarl.meta.workers.modules import modules_of
from metarl.meta.workers.pool import Workers
from tests.meta.small import equal
from tests.processes import ROOT

STOCK: dict[str, Any] = {"env": "PointMass-v0", "env_kwargs": {"horizon": 8}, "policy_kwargs": {"net_arch": [12]}}
STOCK |= {"learner": "sb3_a2c", "n_transitions": 20}
SEGMENTS = {**STOCK, "learner_kwargs": {"segments": True}}
PPO = {**STOCK, "learner": "sb3_ppo", "learner_kwargs": {"n_epochs": 2, "batch_size": 20}}
GAMES: dict[str, Any] = {
    "policy": "CnnPolicy",
    "env": "Atari-v0",
    "env_kwargs": {"games": ["Atlantis", "Pong"], "screen_size": 36, "max_frames": 200},
    "learner": "a2c",
    "learner_kwargs": {"n_steps": 5, "n_envs": 1},
    "task_local": ["action_net", "value_net"],
    "meta_batch_size": 2,
    "n_transitions": 10,
}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "leap": (Leap, STOCK),
    "reptile": (Reptile, PPO),
    "fomaml": (FOMAML, PPO),
    "segments": (Leap, SEGMENTS),
    "games": (Leap, GAMES),
}
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in CASES if case != "leap"]


def make(case: str, n_workers: int = 1) -> Any:
    cls, options = CASES[case]
    return cls(
        **{"n_inner_steps": 2, "meta_batch_size": 3, "n_threads": 1, "seed": 3, "n_workers": n_workers, **options}
    )


class Stop(UnitCallback):
    """Stops after some units, or after two meta-iterations."""

    def __init__(self, units: int = 0) -> None:
        super().__init__()
        self.units = units
        self.heard: list[Work] = []

    def on_unit(self, work: Work) -> bool:
        self.heard.append(work)
        return len(self.heard) != self.units

    def _on_step(self) -> bool:
        return self.model.n_iterations < 2  # type: ignore[attr-defined]


def learn(model: Any, stop: Stop) -> Stop:
    model.learn(10**6 - model.num_timesteps, stop, reset_num_timesteps=False)
    return stop


@pytest.mark.parametrize("case", ["leap", *SLOW])
def test_two_workers_that_are_stopped_inside_and_one_process_give_the_same_bits(case: str, tmp_path: Path) -> None:
    whole = make(case)
    n_units = len(learn(whole, Stop()).heard)
    model = make(case, n_workers=2)
    stop = n_units // 2 + 1
    assert len(learn(model, Stop(stop)).heard) == stop
    assert model.n_iterations == 1
    again = metarl.load(model.save(tmp_path / "halfway"))
    assert again.n_workers == 1
    assert len(learn(again, Stop()).heard) == n_units - stop
    assert equal(again.state()[0], whole.state()[0])
    assert again.num_timesteps == whole.num_timesteps


def test_a_family_that_only_this_process_has_is_refused() -> None:
    model = Reptile(**{**STOCK, "env": make_family("PointMass-v0", horizon=8), "env_kwargs": None}, n_workers=2)
    before = dict(model.params)
    with pytest.raises(ConfigError, match="PointMass-v0, which was given as an object: register it"):
        model.learn(1)
    assert all(model.params[name] is tensor for name, tensor in before.items())


def test_modules_that_register_what_a_model_consists_of_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarl.envs.registry._REGISTRY", dict(_REGISTRY))
    try:
        register_family("OwnPoint-v0", type(make_family("PointMass-v0")))
        family = make_family("OwnPoint-v0")
        assert modules_of(family, [Reptile]) == [__name__]
        assert modules_of(make_family("PointMass-v0"), [Reptile, Leap]) == []
        with pytest.raises(ConfigError, match="cannot import the program that runs, in which OwnPoint-v0"):
            modules_of(family, [type("Mine", (), {"__module__": "__main__"})])
    finally:
        gymnasium.registry.pop("OwnPoint-v0", None)


def test_messages_keep_names_in_order_and_bits(tmp_path: Path) -> None:
    tensors = {"b": torch.tensor([1.0, float("nan")]), "a": torch.arange(6).view(2, 3).T, "c": torch.zeros(0)}
    reading, writing = os.pipe()
    send(writing, {"k": [1, 2.5]}, tensors)
    send(writing, {}, {})
    os.close(writing)
    frame = receive(reading)
    assert frame is not None
    document, found = parse(frame)
    assert document == {"k": [1, 2.5]}
    assert list(found) == ["b", "a", "c"]
    assert all(torch.equal(found[name].nan_to_num(7.0), tensors[name].nan_to_num(7.0)) for name in tensors)
    assert parse(receive(reading) or (b"", b"")) == ({}, {})
    assert receive(reading) is None
    os.close(reading)


ANSWER = """
import json, struct, sys, time
text = json.dumps({"document": DOCUMENT, "tensors": []}).encode()
sys.stdout.buffer.write(struct.pack("<QQ", len(text), 0) + text)
sys.stdout.flush()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("program", "kind", "words"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            WorkerError,
            "worker process 1 was ended by SIGKILL, as the system ends",
        ),
        ("raise SystemExit(3)", WorkerError, "worker process 1 was ended with exit code 3"),
        (
            ANSWER.replace("DOCUMENT", str({"error": "DivergedError", "words": "too far"})),
            DivergedError,
            "^too far$",
        ),
        (
            ANSWER.replace("DOCUMENT", str({"error": "KeyError", "words": "'a'"})),
            WorkerError,
            "^worker process 1 failed: KeyError: 'a'$",
        ),
    ],
)
def test_a_worker_that_ends_becomes_one_error(
    program: str, kind: type[MetaRLError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "PROGRAM", program)
    workers = Workers()
    with pytest.raises(kind, match=words):
        workers.start(lambda: ({}, {}), 0, [], 1, 1)
    assert workers._workers == []


KILLED = """
import json, os, signal, sys
from metarl.meta.progress import UnitCallback
from tests.meta.workers.test_workers import make

class Kill(UnitCallback):
    def on_unit(self, work):
        self.model.save(sys.argv[1])
        pids = [worker._process.pid for worker in self.model._workers.get()._workers]
        print(json.dumps(pids), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def _on_step(self):
        return True

make("reptile", n_workers=2).learn(10**6, Kill())
"""


@pytest.mark.slow
def test_no_worker_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "halfway.safetensors"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, env=environment, timeout=300, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pids = json.loads(done.stdout)
    assert len(pids) == 2
    until = time.monotonic() + 30.0
    while any(alive(pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(pids))
    whole = make("reptile")
    learn(whole, Stop())
    again = metarl.load(path, n_workers=2)
    learn(again, Stop())
    assert equal(again.state()[0], whole.state()[0])


def alive(pids: list[int]) -> Iterator[bool]:
    """Say of processes whether they run."""
    for pid in pids:
        try:
            yield "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except OSError:
            yield False
