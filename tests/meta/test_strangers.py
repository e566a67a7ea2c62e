"""Reports and exports of a stranger: taken, or refused in one line, whatever they hold."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarl import load
from metarl.errors import CheckpointError, MetaRLError
from metarl.files.checkpoint import load_checkpoint
from metarl.files.writing import read_npz
from metarl.meta.algorithms.reptile import Reptile
from metarl.meta.evaluation.report import Report
from metarl.meta.export import sidecar
from metarl.meta.export.sb3 import export_sb3, load_sb3, save_sb3
from metarl.zoo.runs.folder import open_run
from tests.meta.small import small
from tests.strangers import changed, damages, fixed, read


# -------------------------------------------------------------------------------------------------------------- reports
@pytest.fixture(scope="module")
def report() -> Any:
    """The document of a report."""
    return json.loads(small().evaluate(n_inner_steps=1, n_tasks=3, n_episodes=2).to_json())


@fixed
@given(data=st.data())
def test_reports_of_other_values(report: Any, data: st.DataObject) -> None:
    text = json.dumps(data.draw(changed(report)))

    def use() -> None:
        found = Report.from_json(text)
        assert found.table().rows
        found.to_json()

    read(use)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"returns": [[[1.0, None]]]}, "returns[0][0][1]=None"),
        ({"returns": "many"}, "returns='many'"),
        ({"returns": []}, "returns has shape (0,)"),
        ({"returns": [[[1e300, 0.0]] * 3]}, "returns[0][0][0]=1e+300 is out of range"),
        ({"seeds": [-1]}, "seeds[0]=-1 is out of range"),
        ({"tasks": {"goal": [{}] * 3}}, "a task parameter holds object, not numbers"),
        ({"meta": {"num_timesteps": -5}}, "meta of the text is damaged: num_timesteps=-5"),
        ({"meta": {"env_kwargs": "horizon"}}, "meta of the text is damaged: env_kwargs='horizon'"),
    ],
)
def test_wrong_values_of_reports_are_named(report: Any, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Report.from_json(json.dumps({**report, **change}))
    assert said in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- exports
@pytest.fixture(scope="module", params=["vpg", "sb3_ppo"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, of a learner that normalises as well."""
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [4]}, "n_episodes": 2}
    if request.param == "vpg":
        model = small(**kwargs)
    else:
        kwargs |= {"learner": "sb3_ppo", "learner_kwargs": {"n_steps": 20, "batch_size": 20, "normalize": True}}
        model = small(Reptile, **kwargs)
    return save_sb3(export_sb3(model, value_tasks=0), tmp_path_factory.mktemp("exported") / "e.zip")


def changed_export(path: Path, data: bytes, document: Any) -> Path:
    """Write an export whose sidecar has the zip's SHA-256."""
    other = path.with_name("other.zip")
    other.write_bytes(data)
    if isinstance(document.get("sha256"), str):
        document["sha256"] = hashlib.sha256(data).hexdigest()
    other.with_suffix(".json").write_text(json.dumps(document))
    return other


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return buffer.getvalue()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@fixed
@given(data=st.data())
def test_sidecars_of_other_values(exported: Path, data: st.DataObject) -> None:
    document = json.loads(exported.with_suffix(".json").read_text())
    part = data.draw(st.sampled_from(["", "policy_kwargs", "hyperparameters", "source", "action_space"]))
    document = {**document, part: data.draw(changed(document[part]))} if part else data.draw(changed(document))
    path = changed_export(exported, exported.read_bytes(), document)
    read(lambda: load_sb3(path))


@fixed
@given(data=st.data())
def test_zips_that_are_damaged(exported: Path, data: st.DataObject) -> None:
    document = json.loads(exported.with_suffix(".json").read_text())
    damage = data.draw(damages)
    if data.draw(st.booleans()):
        content = damage(exported.read_bytes())
    else:
        parts = members(exported)
        name = data.draw(st.sampled_from(sorted(parts)))
        content = zipped({**parts, name: damage(parts[name])})
    path = changed_export(exported, content, document)
    read(lambda: load_sb3(path))


class Loud:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def with_tensor(change: Callable[[torch.Tensor], Any]) -> Callable[[Path], bytes]:
    """Return the policy with another first tensor."""

    def make(path: Path) -> bytes:
        state = torch.load(io.BytesIO(members(path)["policy.pth"]), weights_only=True)
        name = next(iter(state))
        return saved({**state, name: change(state[name])})

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: b"", "is damaged, or no zip"),
        (lambda _: saved([1]), "no mapping from names to tensors"),
        (lambda _: saved({1: torch.zeros(1)}), "no mapping from names to tensors"),
        (lambda _: saved({}), "does not fit its sidecar: tensor"),
        (with_tensor(lambda _: "text"), "no mapping from names to tensors"),
        (with_tensor(lambda t: t.to_sparse()), "no mapping from names to tensors"),
        (with_tensor(lambda t: t.double()), "is torch.float64, not torch.float32"),
        (with_tensor(lambda _: torch.zeros(1).expand(10**12)), "does not fit its sidecar: tensor"),
        (with_tensor(lambda t: torch.full_like(t, torch.nan)), "are NaN or infinite"),
        (lambda path: saved({"log_std": Loud(path.with_name("proof"))}), "is damaged, or no zip"),
    ],
)
def test_parameters_that_are_none_are_refused(exported: Path, make: Callable[[Path], bytes], said: str) -> None:
    document = json.loads(exported.with_suffix(".json").read_text())
    content = zipped({**members(exported), "policy.pth": make(exported)})
    with pytest.raises(CheckpointError) as caught:
        load_sb3(changed_export(exported, content, document))
    assert said in str(caught.value)
    assert not exported.with_name("proof").exists()


def test_what_is_not_needed_stays_closed(exported: Path) -> None:
    """The optimiser of an export is empty, and SB3's own data is a pickle: neither is looked at."""
    document = json.loads(exported.with_suffix(".json").read_text())
    rest = {
        name: b"\x80\x04garbage" for name in members(exported) if name not in ("policy.pth", "pytorch_variables.pth")
    }
    assert rest.keys() >= {"data", "policy.optimizer.pth"}
    path = changed_export(exported, zipped({**members(exported), **rest}), document)
    before, after = load_sb3(exported).policy.state_dict(), load_sb3(path).policy.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_zips_that_unpack_to_more_than_memory_are_refused(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar, "MAX_UNPACKED", 10**6)
    for name, inner in (("more", bytes(10**6)), ("policy.pth", zipped({"data.pkl": bytes(10**6 + 1)}))):
        content = zipped({**members(exported), name: inner})
        assert len(content) < 10**6
        path = changed_export(exported, content, json.loads(exported.with_suffix(".json").read_text()))
        with pytest.raises(CheckpointError, match="it unpacks to more than 1,000,000 bytes"):
            load_sb3(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policy_kwargs": "net_arch"}, "policy_kwargs='net_arch' is of the wrong type"),
        ({"policy_kwargs": {"net_arch": [10**9]}}, "are the most"),
        ({"policy_kwargs": {"activation_fn": ["relu"]}}, "activation_fn=['relu'] is unknown"),
        ({"hyperparameters": {"n_steps": 20, "gamma": "x"}}, "gamma='x'"),
        ({"hyperparameters": {"n_steps": 10**15}}, "is damaged: "),
        ({"hyperparameters": {"env": "CartPole-v1"}}, "unknown argument of ppo: 'env'"),
        ({"vec_normalize": {"arguments": {"clip_obs": None}, "statistics": {}}}, "clip_obs=None"),
        ({"vec_normalize": {"arguments": {}, "statistics": {"x": "y"}}}, "statistics are not numbers"),
        ({"source": {"env": "PointMass-v0", "env_kwargs": {}, "seed": -1}}, "source.seed=-1"),
        ({"action_space": {"type": "Box"}}, "a Box has shape, dtype, low and high"),
        ({"action_space": None}, "action_space=None"),
        ({"policy": "Policy"}, "unknown policy of PPO 'Policy'"),
    ],
)
def test_wrong_values_of_sidecars_are_named(exported: Path, change: dict[str, Any], said: str) -> None:
    document = json.loads(exported.with_suffix(".json").read_text())
    with pytest.raises(MetaRLError) as caught:
        load_sb3(changed_export(exported, exported.read_bytes(), {**document, **change}))
    assert said in str(caught.value)


def test_a_sidecar_does_not_say_where_a_model_logs(exported: Path) -> None:
    document = json.loads(exported.with_suffix(".json").read_text())
    document["hyperparameters"]["tensorboard_log"] = str(exported.with_name("events"))
    assert load_sb3(changed_export(exported, exported.read_bytes(), document)).tensorboard_log is None


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\udcff", "", ".", "/", "loop", "pipe", "folder", "zero"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for suffix in ("", ".zip", ".safetensors"):
        Path(f"loop{suffix}").symlink_to(f"loop{suffix}")
        Path(f"zero{suffix}").symlink_to("/dev/zero")
        Path(f"folder{suffix}").mkdir()
        os.mkfifo(f"pipe{suffix}")
    readers: list[Callable[[str], Any]] = [load, load_sb3, load_checkpoint, read_npz, Report.load, open_run]
    for reader in readers:
        with pytest.raises(MetaRLError) as caught:
            reader(name)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
