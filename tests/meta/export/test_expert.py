"""Experts that were learnt: written from a run of an oracle or from SB3's zip, read and run without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.running_mean_std import RunningMeanStd

import metarl
from metarl.envs import Oracle, make_family
from metarl.envs.imitation.network import ACTIVATIONS, NetworkExpert
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import CheckpointError, MetaRLError
from metarl.files.checkpoint import load_checkpoint, save_checkpoint
from metarl.meta.export import expert as writing
from metarl.meta.export.expert import expert_from_model, expert_from_sb3
from tests.meta.walk import Walk


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards of few tasks."""
    monkeypatch.setattr(writing, "N_TASKS", 2)
    monkeypatch.setattr(writing, "N_EPISODES", 2)


def oracle(**kwargs: Any) -> Any:
    options = {"learner": "ppo", "n_threads": 1, "meta_batch_size": 2, "policy_kwargs": {"net_arch": [6, 5]}, **kwargs}
    return metarl.ALGORITHMS["oracle"]("MlpPolicy", Oracle(make_family("PointMass-v0", horizon=10)), **options)  # type: ignore[arg-type]


def observed(view: Any, n: int = 4) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return tasks, observations without and with them."""
    tasks = view.tasks("test", 2)
    obs = np.random.default_rng(0).normal(size=(2, n, *view.family.observation_space.shape)).astype(np.float32)
    told = np.broadcast_to(view.flatten_tasks(tasks)[:, None], (2, n, view.flatten_tasks(tasks).shape[-1]))
    return tasks, obs, np.concatenate([obs, told], -1)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_it_acts_as_the_policy_does(tmp_path: Path, activation: str) -> None:
    model = oracle(policy_kwargs={"net_arch": [6, 5], "activation_fn": activation})
    card = expert_from_model(model, tmp_path / "e")
    expert = NetworkExpert(tmp_path / "e", make_family("PointMass-v0"))
    tasks, obs, seen = observed(model.family)
    theirs = model.predict(seen.reshape(8, -1), deterministic=True)[0].reshape(2, 4, 2)
    np.testing.assert_allclose(expert.act(tasks, obs), theirs, rtol=1e-5, atol=1e-6)
    assert (card.env, card.activation, card.split) == ("PointMass-v0", activation, "test")
    assert card == expert.card
    assert np.isfinite(card.returns).all()
    assert len(card.returns) == len(card.tasks["goal"]) == 2
    assert card.source["algo"] == "oracle"


@pytest.mark.parametrize("normalize", [False, True, {"norm_obs": False}, {"clip_obs": 0.5}])
def test_it_acts_as_a_stock_algorithm_does_that_was_told_the_task(tmp_path: Path, normalize: Any) -> None:
    sizes = {"n_steps": 10, "batch_size": 20, "normalize": normalize}
    model = oracle(learner="sb3_ppo", learner_kwargs=sizes, n_transitions=20)
    model.learn(1)
    card = expert_from_model(model, tmp_path / "e")
    expert = NetworkExpert(tmp_path / "e", make_family("PointMass-v0"))
    tasks, obs, seen = observed(model.family)
    theirs = model.predict(seen.reshape(8, -1), deterministic=True)[0].reshape(2, 4, 2)
    np.testing.assert_allclose(expert.act(tasks, obs), theirs, rtol=1e-5, atol=1e-6)
    assert (card.normalize is None) == (normalize in (False, {"norm_obs": False}))
    assert card.source["learner"] == "sb3_ppo"


@pytest.mark.parametrize("discrete", [False, True])
def test_a_stock_model_is_read_without_unpickling(
    tmp_path: Path, discrete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Walk(discrete=discrete)
    view = Oracle(real)
    stock = PPO(
        "MlpPolicy",
        FamilyVecEnv(view, view.sample_tasks(np.random.default_rng(0), 2), 2),
        n_steps=8,
        batch_size=8,
        seed=1,
    )
    stock.save(tmp_path / "stock.zip")
    monkeypatch.setattr("pickle.loads", None)
    card = expert_from_sb3(tmp_path / "stock.zip", real, tmp_path / "e", source={"algo": "ppo"})
    expert = NetworkExpert(tmp_path / "e", real)
    tasks, obs, seen = observed(view)
    theirs, _ = stock.predict(seen.reshape(8, -1), deterministic=True)
    ours = expert.act(tasks, obs)
    assert ours.dtype.kind == ("i" if discrete else "f")
    np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=1e-5, atol=1e-6)
    assert card.source == {"algo": "ppo"}


def test_observations_are_normalised_as_vecnormalize_does(tmp_path: Path) -> None:
    model = oracle()
    moments = RunningMeanStd(shape=(4,))
    moments.mean, moments.var = np.array([0.5, 0.0, -0.1, 0.2]), np.array([2.0, 0.5, 1e-9, 1.0])
    policy = {name: tensor.detach() for name, tensor in model.theta.items()}
    normalize = {"mean": moments.mean, "var": moments.var, "epsilon": 1e-8, "clip_obs": 1.5}
    writing.write_expert(tmp_path / "e", make_family("PointMass-v0"), {}, policy, "tanh", normalize=normalize)
    expert = NetworkExpert(tmp_path / "e", make_family("PointMass-v0"))
    tasks, obs, seen = observed(model.family)
    scaled = np.clip((seen - moments.mean) / np.sqrt(moments.var + 1e-8), -1.5, 1.5)
    theirs = model.predict(scaled.reshape(8, -1), deterministic=True)[0].reshape(2, 4, 2)
    np.testing.assert_allclose(expert.act(tasks, obs), theirs, rtol=1e-5, atol=1e-6)


def test_what_it_does_in_a_task_does_not_depend_on_the_others(tmp_path: Path) -> None:
    model = oracle(policy_kwargs={"net_arch": [37, 41]})
    expert_from_model(model, tmp_path / "e")
    expert = NetworkExpert(tmp_path / "e", make_family("PointMass-v0"))
    tasks, obs, _ = observed(model.family, 7)
    together = expert.act(tasks, obs)
    for i in range(2):
        alone = expert.act({"goal": tasks["goal"][i : i + 1]}, obs[i : i + 1])
        np.testing.assert_array_equal(alone[0], together[i])


def test_another_network_has_another_fingerprint(tmp_path: Path) -> None:
    found = set()
    for k, model in enumerate((oracle(seed=0), oracle(seed=1), oracle(policy_kwargs={"activation_fn": "relu"}))):
        expert_from_model(model, tmp_path / str(k))
        found.add(NetworkExpert(tmp_path / str(k), make_family("PointMass-v0")).fingerprint)
    arrays, document = load_checkpoint(tmp_path / "0")
    save_checkpoint(tmp_path / "same", arrays, {**document, "source": {"said": "otherwise"}})
    found.add(NetworkExpert(tmp_path / "same", make_family("PointMass-v0")).fingerprint)
    assert len(found) == 3


def test_a_family_of_imitation_is_shown_by_it(tmp_path: Path) -> None:
    expert_from_model(oracle(), tmp_path / "e")
    options = {"n_tasks": 2, "n_demonstrations": 1, "real_kwargs": {"horizon": 10}}
    ours = make_family("PointMassImitation-v0", expert=str(tmp_path / "e"), **options)
    assert isinstance(ours.expert, NetworkExpert)
    plain = make_family("PointMassImitation-v0", **options)
    tasks = ours.tasks("test", 2)
    assert (ours.expert_returns(tasks) < plain.expert_returns(tasks)).all()


# ---------------------------------------------------------------------------------------------------- what is refused
@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expert's file."""
    path = tmp_path_factory.mktemp("expert") / "e"
    expert_from_model(oracle(), path)
    return path


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Any:
    def changed(tensors: dict[str, torch.Tensor], document: dict[str, Any]) -> None:
        change(tensors)

    return changed


def _document(**values: Any) -> Any:
    def changed(tensors: dict[str, torch.Tensor], document: dict[str, Any]) -> None:
        document.update(values)

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_document(kind="run"), "is no expert: `metarl export --to expert` writes one"),
        (_document(version=2), "version"),
        (_document(env="AntVel-v0"), "is an expert of 'AntVel-v0': PointMass-v0 needs one of its own"),
        (_document(activation="softplus"), "has activation function 'softplus': known: tanh, relu"),
        (_document(returns="many"), "returns"),
        (_document(normalize={"epsilon": 1e-8, "clip": 10.0}), "what normalises observations is not all there"),
        (_tensors(lambda t: t.pop("layers.1.bias")), "a layer is missing"),
        (_tensors(lambda t: t.update(other=torch.zeros(1))), "'other' is none of its tensors"),
        (_tensors(lambda t: t.update({"layers.1.bias": torch.zeros(4)})), "layer 1 is float32"),
        (_tensors(lambda t: t.update({"layers.2.bias": torch.full((2,), torch.nan)})), "not finite, in layer 2"),
        (
            _tensors(lambda t: t.update({"layers.0.weight": torch.zeros(6, 3)})),
            "takes 3 inputs where there are 4: an oracle of PointMass-v0 observes 4 numbers",
        ),
        (
            _tensors(lambda t: t.update({"layers.2.weight": torch.zeros(3, 5), "layers.2.bias": torch.zeros(3)})),
            "has 3 outputs: PointMass-v0 acts in Box",
        ),
    ],
)
def test_a_file_that_is_no_expert_here_is_refused_in_one_line(
    written: Path, tmp_path: Path, change: Any, words: str
) -> None:
    tensors, document = load_checkpoint(written)
    change(tensors, document)
    save_checkpoint(tmp_path / "e", tensors, document)
    with pytest.raises(CheckpointError) as error:
        make_family("PointMassImitation-v0", expert=tmp_path / "e")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_a_truncated_and_a_foreign_file_are_refused_in_one_line(written: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(written.read_bytes()[:-5])
    (tmp_path / "foreign").write_bytes(b"PK\3\4 a zip")
    for name, words in (("none", "no such file"), ("cut", "truncated"), ("foreign", "is a zip archive")):
        with pytest.raises(CheckpointError, match=words) as error:
            make_family("PointMassImitation-v0", expert=str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(MetaRLError, match="expert=3 is not a file"):
        make_family("PointMassImitation-v0", expert=3)


def test_what_does_not_see_the_task_is_no_expert(tmp_path: Path) -> None:
    with pytest.raises(MetaRLError, match="random on PointMass-v0 does not observe the task"):
        expert_from_model(metarl.ALGORITHMS["random"]("MlpPolicy", "PointMass-v0"), tmp_path / "e")  # type: ignore[arg-type]
    stock = PPO("MlpPolicy", FamilyVecEnv(Walk(), Walk().tasks("test", 1), 1), n_steps=8, batch_size=8)
    stock.save(tmp_path / "blind.zip")
    with pytest.raises(CheckpointError, match="takes 2 inputs where there are 3"):
        expert_from_sb3(tmp_path / "blind.zip", Walk(), tmp_path / "e")
    SAC("MlpPolicy", FamilyVecEnv(Walk(), Walk().tasks("test", 1), 1), buffer_size=10).save(tmp_path / "sac.zip")
    with pytest.raises(MetaRLError, match="an expert is a PPO, A2C or TRPO with an MlpPolicy"):
        expert_from_sb3(tmp_path / "sac.zip", Walk(), tmp_path / "e")
    assert not (tmp_path / "e").exists()
