"""Files of a stranger: every reader takes them or refuses them in one line, whatever they hold."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from metarl import load
from metarl.errors import CheckpointError, MetaRLError
from metarl.files import checkpoint, writing
from metarl.files.checkpoint import load_checkpoint, save_checkpoint
from metarl.files.logging import cut_events, cut_logs, make_logger
from metarl.files.writing import read_npz, write_npz_atomic
from tests.meta.small import small
from tests.strangers import changed, damages, few, fixed, read
from tests.zoo.conftest import contents


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose outer optimiser has a state."""
    model = small(outer="adam", policy_kwargs={"net_arch": [4]}, n_episodes=2)
    model.learn(1)
    path: Path = model.save(tmp_path_factory.mktemp("strangers") / "m")
    return path


# ---------------------------------------------------------------------------------------------------------- checkpoints
@few
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


@pytest.mark.parametrize("name", ["policy/log_std", "outer/first/policy/log_std", "outer/second/policy/log_std"])
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
        ("outer/first/policy/log_std", torch.zeros(2, dtype=torch.float64)),
        ("outer/second/policy/log_std", torch.full((2,), -1.0)),
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
        ({"arguments.n_episodes": 10**6, "arguments.meta_batch_size": 10**4}, "is a batch of"),
        ({"arguments.n_episodes": 10**10}, "n_episodes=10000000000 is not an integer in [1, 1e+06]"),
        (
            {
                "arguments.learner": "sb3_ppo",
                "arguments.learner_kwargs": {"n_envs": 10**9},
                "arguments.surrogate": None,
            },
            "n_envs=1000000000 is not an integer in [1, 10000]",
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
    with pytest.raises(MetaRLError, match=re.escape(words)) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_headers_are_read_to_a_limit(saved: Path) -> None:
    path = saved.with_name("long.safetensors")
    for text in ("[" * checkpoint.MAX_HEADER, '{"a":' * 100_000, "{" + '"' * 10**6):
        content = "{" + text[1:]
        path.write_bytes(len(content).to_bytes(8, "little") + content.encode())
        assert not read(lambda: load_checkpoint(path))


# --------------------------------------------------------------------------------------------------------------- arrays
def test_arrays_that_are_no_plain_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    pair = np.zeros(2, dtype=[("a", "i4"), ("b", "f4")])
    for array in (np.zeros(2, "datetime64[s]"), pair, np.zeros(2, complex), np.zeros(3, "S2")):
        np.savez(path, x=array)
        with pytest.raises(CheckpointError, match="an array of"):
            read_npz(path)


def test_arrays_whose_sizes_lie_are_refused_before_they_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for shape in ((10**12,), (10**6, 10**6), (-1,), (2**70,), (0,)):
        member = io.BytesIO()
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", member.getvalue() + bytes(8))
        with pytest.raises(CheckpointError, match="is not that of"):
            read_npz(path)


def test_zips_that_unpack_to_more_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(10**6))
    assert read_npz(path)["x"].shape == (10**6,)
    monkeypatch.setattr(writing, "MAX_ARRAYS", 10**6)
    assert path.stat().st_size < 10**6
    with pytest.raises(CheckpointError, match="it unpacks to more than 1,000,000 bytes"):
        read_npz(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    write_npz_atomic(tmp_path / "a.npz", x=np.zeros(2))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("x.npy", archive.read("x.npy"))
    with pytest.raises(CheckpointError, match="a name is given twice"):
        read_npz(tmp_path / "a.npz")


@fixed
@given(data=st.data())
def test_arrays_that_are_damaged(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    write_npz_atomic(path, steps=np.arange(3), post=np.ones((3, 2)), names=np.array(["a", "bc"]))
    path.write_bytes(data.draw(damages)(path.read_bytes()))
    read(lambda: read_npz(path))


# ----------------------------------------------------------------------------------------------------------------- logs
def test_garbage_in_an_event_file_is_left_out(tmp_path: Path) -> None:
    logger = make_logger(tmp_path, ["tensorboard"])
    for step in (1, 2):
        logger.record("x", float(step))
        logger.dump(step)
    logger.close()
    (path,) = tmp_path.glob("events*")
    whole = path.read_bytes()
    end = 16 + struct.unpack_from("<Q", whole)[0]  # of the first record, which has the file's version
    payload = b"\xff" * 20
    length = struct.pack("<Q", len(payload))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, payload))
    garbage = length + next(sums) + payload + next(sums)
    path.write_bytes(whole[:end] + garbage + whole[end:])
    assert cut_events(tmp_path, 2) == {path: whole}


@few
@given(data=st.data())
def test_logs_that_are_damaged(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("logs")
    logger = make_logger(folder, ["csv", "json", "tensorboard"])
    for step in (1, 2):
        logger.record("x", float(step))
        logger.dump(step)
    logger.close()
    for path in folder.iterdir():
        path.write_bytes(data.draw(damages)(path.read_bytes()))
    before = contents(folder)
    read(lambda: cut_logs(folder, ["csv", "json", "tensorboard"], folder, 1))
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n" + "x" * 200_000 + ",2\n", "no table of comma-separated values: field larger than"),
        ('a,b\n"' + "x" * 200_000 + "\n", "no table of comma-separated values: field larger than"),
    ],
)
def test_tables_beyond_the_limit_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "progress.csv").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        cut_logs(tmp_path, ["csv"], tmp_path, 1)
    assert (tmp_path / "progress.csv").read_text() == text
