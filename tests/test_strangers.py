"""Files of a stranger: every reader takes them or refuses them in one line, whatever they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metarl import checkpoint, load
from metarl.checkpoint import load_checkpoint, save_checkpoint
from metarl.errors import CheckpointError, MetaRLError
from tests.meta.small import small
from tests.strangers import changed, read

fixed = settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose outer optimiser has a state."""
    model = small(outer="adam", policy_kwargs={"net_arch": [4]}, n_episodes=2)
    model.learn(1)
    path: Path = model.save(tmp_path_factory.mktemp("strangers") / "m")
    return path


# ---------------------------------------------------------------------------------------------------------- checkpoints
@fixed
@given(data=st.data())
def test_checkpoints_of_other_documents(saved: Path, data: st.DataObject) -> None:
    tensors, document = load_checkpoint(saved)
    path = saved.with_name("document.safetensors")
    try:
        save_checkpoint(path, tensors, data.draw(changed(document)))
    except CheckpointError:  # too deep to be written
        return
    read(lambda: load(path, n_threads=1))


@fixed
@given(data=st.data())
def test_safetensors_headers_that_lie(saved: Path, data: st.DataObject) -> None:
    whole = saved.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    if data.draw(st.booleans()):
        header = data.draw(changed(header))
    else:
        own = json.loads(header["__metadata__"]["metarl"])
        header["__metadata__"]["metarl"] = json.dumps(data.draw(changed(own)))
    path = saved.with_name("header.safetensors")
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[end:])
    if read(lambda: load_checkpoint(path)):
        # Only what nothing depends on may differ: JSON's keys in another place, or numbers written otherwise.
        assert json.dumps(load_checkpoint(path)[1], sort_keys=True) == json.dumps(
            load_checkpoint(saved)[1], sort_keys=True
        )


@pytest.mark.parametrize("name", ["policy/log_std", "outer/first/log_std", "outer/second/log_std"])
def test_tensors_that_hold_no_numbers_are_named(saved: Path, name: str) -> None:
    tensors, document = load_checkpoint(saved)
    path = saved.with_name("nan.safetensors")
    for value in (float("nan"), float("inf")):
        save_checkpoint(path, {**tensors, name: torch.tensor([value, 0.0])}, document)
        with pytest.raises(CheckpointError, match=f"1 of the 2 numbers of tensor '{name}' are NaN or infinite"):
            load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("outer/count", torch.tensor(1.0)),
        ("outer/count", torch.tensor(-1)),
        ("outer/count", torch.tensor(2**62)),
        ("outer/count", torch.tensor([1, 2])),
        ("outer/first/log_std", torch.zeros(2, dtype=torch.float64)),
        ("outer/second/log_std", torch.full((2,), -1.0)),
        ("policy/log_std", torch.zeros(2, dtype=torch.complex64)),
        ("policy/log_std", torch.zeros(0)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved: Path, name: str, value: torch.Tensor) -> None:
    tensors, document = load_checkpoint(saved)
    path = saved.with_name("tensor.safetensors")
    save_checkpoint(path, {**tensors, name: value}, document)
    assert not read(lambda: load(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_timesteps": -1}, "is damaged: num_timesteps=-1"),
        ({"n_iterations": None}, "is damaged: n_iterations=None"),
        ({"arguments": []}, "is damaged: arguments="),
        ({"env": ["AntVel-v0"]}, "is damaged: env="),
        ({"versions": {"torch": 2}}, "is damaged: versions.torch=2"),
        ({"arguments.policy_kwargs": "net_arch"}, "policy_kwargs='net_arch' is of the wrong type"),
        ({"arguments.env": "AntVel-v0"}, "env='AntVel-v0' is not read from a file"),
        ({"arguments.tensorboard_log": "/tmp/x"}, "tensorboard_log='/tmp/x' is not read from a file"),
        ({"arguments.policy_kwargs": {"net_arch": [10**9]}}, "are the most"),
        ({"arguments.policy_kwargs": {"net_arch": [1] * 1000}}, "a network of 1,000 layers"),
        ({"arguments.meta_batch_size": 10**12}, "meta_batch_size=1000000000000 is not an integer in"),
        ({"arguments.n_inner_steps": 10**12}, "n_inner_steps=1000000000000 is not an integer in"),
        ({"arguments.n_episodes": 10**10}, "is a batch of"),
        (
            {
                "arguments.learner": "sb3_ppo",
                "arguments.learner_kwargs": {"n_envs": 10**9},
                "arguments.surrogate": None,
            },
            "from 1 to 10,000",
        ),
    ],
)
def test_what_no_constructor_should_see_is_refused_by_name(saved: Path, change: dict[str, Any], words: str) -> None:
    tensors, document = load_checkpoint(saved)
    for place, value in change.items():
        *way, last = place.split(".")
        (document[way[0]] if way else document)[last] = value
    path = saved.with_name("change.safetensors")
    save_checkpoint(path, tensors, document)
    with pytest.raises(MetaRLError, match=words.replace("[", ".")) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_headers_are_read_to_a_limit(saved: Path) -> None:
    path = saved.with_name("long.safetensors")
    for text in ("[" * checkpoint.MAX_HEADER, '{"a":' * 100_000, "{" + '"' * 10**6):
        content = "{" + text[1:]
        path.write_bytes(len(content).to_bytes(8, "little") + content.encode())
        assert not read(lambda: load_checkpoint(path))
