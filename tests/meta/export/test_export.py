"""Exports: plain Stable-Baselines3 opens them without metarl, and one update is one inner step."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import explained_variance

from metarl import FOMAML
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.samples import Samples
from metarl.envs.family import Family, State, Step
from metarl.envs.tasks import Tasks
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import CheckpointError, ConfigError, UnknownNameError
from metarl.meta.export.sb3 import KINDS, Exported, export_sb3, load_sb3, save_sb3, to_sb3
from metarl.meta.export.spaces import space_to_json
from metarl.params import expand
from metarl.streams import seed_sequence
from tests.meta.problems import inner_path
from tests.meta.walk import Walk


def make_model(discrete: bool = False, **kwargs: Any) -> FOMAML:
    """A meta-algorithm whose actor is not at SB3's initialisation."""
    settings = {"policy_kwargs": {"net_arch": [16, 16], "activation_fn": "tanh"}, "n_episodes": 12, "inner_lr": 0.2}
    model = FOMAML("MlpPolicy", Walk(discrete), **{**settings, **kwargs}, meta_batch_size=2, n_threads=1)
    generator = torch.Generator().manual_seed(1)
    model.params = {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in model.params.items()
    }
    return model


class Corridor(gym.Env[np.ndarray, Any]):
    """A stock environment with the family's spaces, which knows nothing of families."""

    def __init__(self, low: float = -1.0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(low, 1.0, (1,), np.float32)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return np.full(2, self.t / 8, dtype=np.float32), float(action[0]), False, self.t >= 8, {}


# -------------------------------------------------------------------------------------------------------- what is built
@pytest.mark.parametrize("kind", ["ppo", "a2c", "trpo"])
@pytest.mark.parametrize("discrete", [False, True])
def test_actor_is_copied_into_a_stock_model(kind: str, discrete: bool) -> None:
    model = make_model(discrete)
    exported = to_sb3(model, kind, value_tasks=0)
    assert type(exported) is KINDS[kind]
    tensors = dict(exported.policy.named_parameters())
    for name, tensor in model.policy_params.items():
        torch.testing.assert_close(tensors[name].detach(), tensor, rtol=0, atol=0)
    obs = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    np.testing.assert_allclose(
        exported.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0], atol=1e-6
    )
    assert not exported.policy.optimizer.state
    exported.learn(200)


def test_exporting_leaves_the_global_generators_alone_and_is_deterministic() -> None:
    model = make_model()
    before = torch.get_rng_state().clone()
    first, second = export_sb3(model), export_sb3(model)
    first.on(Corridor())
    assert torch.equal(before, torch.get_rng_state())
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name])


def test_exports_are_the_same_whatever_torchs_threads() -> None:
    exports = []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            exports.append(export_sb3(make_model(), value_tasks=20).tensors)
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(1)
    for name, tensor in exports[0].items():
        assert torch.equal(tensor, exports[1][name]), name


def test_value_network_predicts_sb3s_own_returns_on_unseen_tasks() -> None:
    """In a rollout that SB3 collects on test tasks, its own targets, time limits included, are what was fitted."""
    model = make_model()
    venv = FamilyVecEnv(model.family, model.family.tasks("test", 20), n_envs=1, seed=3)
    exported = export_sb3(model, value_episodes=10, n_envs=20, n_steps=160, batch_size=3200)
    assert exported.value_fit is not None
    assert exported.value_fit.n_tasks == 40
    assert exported.value_fit.env_steps > 1000
    assert 0.3 < exported.value_fit.explained_variance <= 1.0
    fitted = exported.on(venv, seed=0).learn(3200).rollout_buffer
    explained = explained_variance(fitted.values.flatten(), fitted.returns.flatten())
    assert explained == pytest.approx(exported.value_fit.explained_variance, abs=0.15)
    error = fitted.returns - fitted.values
    assert abs(error.mean()) < 0.2 * error.std()
    # No drift along the episode, which would fill the advantages: the horizon is bootstrapped, not an end.
    time = fitted.observations[..., 1].round(3)
    drift = [error[time == t].mean() for t in np.unique(time)]
    assert max(map(abs, drift)) < 0.35 * error.std()
    unfitted = export_sb3(model, value_tasks=0)
    assert unfitted.value_fit is None


class Wage(Family):
    """One is paid at every step, for ever: at the horizon the episode is cut, not over."""

    id = "Wage-v0"

    def __init__(self) -> None:
        self.task_space = spaces.Dict({"x": spaces.Box(-1.0, 1.0, (), np.float64)})
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.horizon = 6

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        x = np.stack([rng.uniform(-1.0, 1.0, n_envs) for rng in rngs])
        return {"x": x}, x[..., None].astype(np.float32)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        x = state["x"]
        reward = np.ones(x.shape)
        return Step(state, x[..., None].astype(np.float32), reward, np.zeros(x.shape, bool), {"reward": reward})


def test_the_fitted_value_of_a_steady_wage_is_that_of_an_endless_episode() -> None:
    """Without the bootstrap at the horizon it would be at most 3.4 = 1 + 0.8 + … (6 terms), with a γ too many 4.6."""
    model = FOMAML("MlpPolicy", Wage(), gamma=0.8, n_episodes=2, n_threads=1, policy_kwargs={"net_arch": [8]})
    stock = export_sb3(model, value_tasks=4).on()
    values = stock.policy.predict_values(torch.linspace(-1.0, 1.0, 5)[:, None])
    np.testing.assert_allclose(values.detach().numpy(), 1 / (1 - 0.8), rtol=0.02)


def test_the_rate_of_an_export_is_that_of_the_first_inner_step() -> None:
    model = FOMAML("MlpPolicy", "PointMass-v0", n_inner_steps=3, inner_lr=[0.3, 0.2, 0.1], n_threads=1)
    assert export_sb3(model, value_tasks=0).on().learning_rate == 0.3


def test_scratch_has_equal_hyperparameters_and_another_start() -> None:
    exported = export_sb3(make_model(), optimizer="adam", value_tasks=0, n_steps=64, batch_size=32)
    ours, scratch = exported.on(seed=0), exported.scratch(seed=3)
    for name in ("n_steps", "batch_size", "learning_rate", "gamma", "vf_coef", "n_epochs"):
        assert getattr(ours, name) == getattr(scratch, name)
    assert (ours.n_steps, ours.batch_size, ours.learning_rate) == (64, 32, 3e-4)
    assert isinstance(scratch.policy.optimizer, torch.optim.Adam)
    a, b = (dict(model.policy.named_parameters())["action_net.weight"] for model in (ours, scratch))
    assert not torch.equal(a, b)
    again = dict(exported.scratch(seed=3).policy.named_parameters())
    assert torch.equal(again["action_net.weight"], b)


# ---------------------------------------------------------------------------------------- one update is one inner step
def support_batch(model: FOMAML) -> tuple[Samples, dict[str, torch.Tensor]]:
    """Collect one task's support batch at θ; return it and the parameters after one inner step."""
    tasks = model.family.tasks("test", 1)
    theta = expand(model.policy_params, 1)
    episodes = collect(model.family, model.policy, theta, tasks, [seed_sequence(5, "support", 0)], n_episodes=12)
    samples = model.adaptation.learner.process(episodes, theta)
    _, phi = inner_path(model.adaptation.learner, theta, [samples], model.rates)
    return samples, {name: tensor[0] for name, tensor in phi.items()}


def fill_buffer(sb3: OnPolicyAlgorithm, samples: Samples) -> None:
    """Write our samples and advantages into SB3's rollout buffer."""
    buffer = sb3.rollout_buffer
    n = int(samples.counts[0])
    assert buffer.buffer_size == n
    obs, actions = samples.obs[0, :n], samples.actions[0, :n]
    with torch.no_grad():
        values, log_prob, _ = sb3.policy.evaluate_actions(obs, actions)
    buffer.reset()
    buffer.observations[:, 0] = obs.numpy()
    buffer.actions[:, 0] = actions.numpy().reshape(n, -1)
    buffer.advantages[:, 0] = samples.advantages[0, :n].numpy()
    buffer.log_probs[:, 0] = log_prob.numpy()
    buffer.values[:] = values.numpy()
    buffer.returns[:] = 3.0
    buffer.pos, buffer.full = n, True


@pytest.mark.parametrize("kind", ["ppo", "a2c"])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
def test_one_update_is_one_inner_step(kind: str, discrete: bool, normalize: bool) -> None:
    """As exported, on equal data and advantages; only the divisor of the standard deviation differs, n - 1 for n."""
    model = make_model(discrete, normalize_advantage=normalize)
    samples, phi = support_batch(model)
    n = int(samples.counts[0])
    sizes = {"n_steps": n, **({"batch_size": n} if kind == "ppo" else {})}
    sb3 = to_sb3(model, kind, value_tasks=0, **sizes)
    assert sb3.learning_rate == 0.2
    before = {name: tensor.detach().clone() for name, tensor in sb3.policy.named_parameters()}
    sb3.set_logger(configure(None, []))
    fill_buffer(sb3, samples)
    sb3.train()
    factor = np.sqrt((n - 1) / n) if normalize else 1.0
    for name, tensor in sb3.policy.named_parameters():
        if name not in phi:
            assert torch.equal(tensor.detach(), before[name]), "the value network is left as it was fitted"
            continue
        step = factor * (phi[name] - before[name])
        assert step.abs().max() > 1e-4
        torch.testing.assert_close(tensor.detach() - before[name], step, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_discount_of_zero_is_exported(optimizer: str) -> None:
    assert export_sb3(make_model(gamma=0.0), optimizer=optimizer).on().gamma == 0.0


def test_sgd_export_has_the_size_of_an_inner_batch() -> None:
    model = make_model()
    sb3 = to_sb3(model, "ppo", value_tasks=0)
    assert isinstance(sb3, PPO)
    assert (sb3.n_steps, sb3.batch_size, sb3.n_epochs, sb3.vf_coef, sb3.ent_coef) == (96, 96, 1, 0.0, 0.0)
    venv = FamilyVecEnv(model.family, model.family.tasks("test", 1), n_envs=4, seed=0)
    several = to_sb3(model, "ppo", env=venv, value_tasks=0)
    assert (several.n_steps, several.batch_size) == (24, 96)  # type: ignore[attr-defined]
    several.learn(96)
    transitions = to_sb3(make_model(n_transitions=50), "a2c", value_tasks=0)
    assert transitions.n_steps == 50


def two_copies(model: FOMAML) -> FamilyVecEnv:
    return FamilyVecEnv(model.family, model.family.tasks("test", 1), n_envs=2, seed=0)


# ------------------------------------------------------------------------------------------------------- without metarl
PLAIN_SB3 = """
import json, sys
import gymnasium as gym
import numpy as np

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "metarl":
            raise ModuleNotFoundError("metarl is not installed here")

sys.meta_path.insert(0, Blocked())
try:
    import metarl
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("metarl can be imported")

from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO

class Corridor(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(2, self.t / 8, dtype=np.float32), float(action[0]), False, self.t >= 8, {}

folder = sys.argv[1]
expected = np.load(folder + "/expected.npz")
for kind, cls in (("ppo", PPO), ("a2c", A2C), ("trpo", TRPO)):
    model = cls.load(f"{folder}/{kind}.zip", env=Corridor(), device="cpu")
    assert type(model) is cls
    for name, tensor in model.policy.named_parameters():
        assert np.array_equal(tensor.detach().numpy(), expected[f"{kind}/{name}"]), name
    actions, _ = model.predict(expected["obs"], deterministic=True)
    assert np.array_equal(actions, expected[f"{kind}/actions"])
    model.learn(2 * model.n_steps)
    assert model.num_timesteps >= 2 * model.n_steps
    moved = any(
        not np.array_equal(tensor.detach().numpy(), expected[f"{kind}/{name}"])
        for name, tensor in model.policy.named_parameters()
    )
    assert moved, kind
    model.save(f"{folder}/{kind}_again.zip")
assert not any(name.split(".")[0] == "metarl" for name in sys.modules)
print("fine")
"""


def test_plain_sb3_opens_it_without_metarl(tmp_path: Path) -> None:
    model = make_model()
    obs = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    expected: dict[str, np.ndarray] = {"obs": obs}
    for kind in KINDS:
        exported = export_sb3(model, kind, value_tasks=4, **({"n_steps": 128} if kind == "trpo" else {}))
        save_sb3(exported, tmp_path / kind)
        sb3 = exported.on(Corridor())
        expected[f"{kind}/actions"] = sb3.predict(obs, deterministic=True)[0]
        for name, tensor in sb3.policy.named_parameters():
            expected[f"{kind}/{name}"] = tensor.detach().numpy()
    np.savez(tmp_path / "expected.npz", **expected)  # type: ignore[arg-type]
    script = tmp_path / "plain.py"
    script.write_text(PLAIN_SB3)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fine"


def test_zip_names_no_module_of_ours(tmp_path: Path) -> None:
    path = save_sb3(export_sb3(make_model(), value_tasks=0), tmp_path / "plain")
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    assert "metarl" not in json.dumps(data)
    import base64

    for value in data.values():
        if isinstance(value, dict) and ":serialized:" in value:
            assert b"metarl" not in base64.b64decode(value[":serialized:"])


# ------------------------------------------------------------------------------------------------------ saving, loading
@pytest.fixture
def exported() -> Exported:
    return export_sb3(make_model(), "ppo", value_tasks=0)


@pytest.mark.parametrize("kind", ["ppo", "a2c", "trpo"])
def test_load_sb3_reads_no_pickle(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = export_sb3(make_model(), kind, value_tasks=0)
    path = save_sb3(export, tmp_path / "plain.zip")
    assert path == tmp_path / "plain.zip"
    import cloudpickle

    monkeypatch.setattr(cloudpickle, "loads", lambda *_: pytest.fail("unpickled"))
    model = load_sb3(path, env=Corridor(), kind=kind)
    assert type(model) is KINDS[kind]
    for name, tensor in model.policy.named_parameters():
        assert torch.equal(tensor.detach(), export.tensors[name])
    assert model.gamma == 0.99
    model.learn(64)


def test_sidecar_describes_the_zip(exported: Exported, tmp_path: Path) -> None:
    import hashlib

    path = save_sb3(exported, tmp_path / "plain")
    document = json.loads((tmp_path / "plain.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert document["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert document["algo"] == "ppo"
    assert document["policy_kwargs"] == {"net_arch": [16, 16], "activation_fn": "tanh", "optimizer_class": "sgd"}
    assert document["source"]["env"] == "Walk-v0"
    assert document["observation_space"]["low"] == ["-inf", "-inf"]
    assert document["hyperparameters"]["learning_rate"] == 0.2
    assert document["source"]["inner_lr"] == [0.2]


def test_nothing_is_overwritten_without_force(exported: Exported, tmp_path: Path) -> None:
    path = save_sb3(exported, tmp_path / "plain.zip")
    whole = path.read_bytes()
    with pytest.raises(CheckpointError, match="exists"):
        save_sb3(exported, path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"plain\.json exists"):
        save_sb3(exported, path)
    assert not path.exists()
    save_sb3(exported, path, force=True)
    assert zipfile.ZipFile(path).namelist() == zipfile.ZipFile(io.BytesIO(whole)).namelist()


def test_wrong_files_are_refused(exported: Exported, tmp_path: Path) -> None:
    path = save_sb3(exported, tmp_path / "plain.zip")
    with pytest.raises(ConfigError, match="is a ppo model: it cannot be loaded as a2c"):
        load_sb3(path, kind="a2c")
    with pytest.raises(ConfigError, match="action_space") as caught:
        load_sb3(path, env=Corridor(low=-2.0))
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no such file"):
        load_sb3(tmp_path / "other.zip")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        load_sb3(path, env=Corridor())
    (tmp_path / "plain.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not the sidecar"):
        load_sb3(path)
    (tmp_path / "plain.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_sb3(path)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: to_sb3(m, "ppoo"), UnknownNameError, "'ppo'"),
        (lambda m: to_sb3(m, "ppo", env=Corridor(low=-2.0)), ConfigError, "action_space"),
        (lambda m: to_sb3(m, use_sde=True), ConfigError, "use_sde"),
        (lambda m: to_sb3(m, n_stepz=3), UnknownNameError, "'n_steps'"),
        (lambda m: to_sb3(m, policy_kwargs={}), ConfigError, "policy_kwargs"),
        (lambda m: to_sb3(m, "trpo", optimizer="sgd"), ConfigError, "TRPO"),
        (lambda m: to_sb3(m, optimizer="rmsprop"), UnknownNameError, "rmsprop"),
        (lambda m: export_sb3(m, value_tasks=1), ConfigError, "value_tasks=1"),
        (
            lambda m: export_sb3(m, value_tasks=0).on(FamilyVecEnv(Walk(), m.family.tasks("test", 2))),
            ConfigError,
            "2 env",
        ),
        (lambda _: export_sb3(FOMAML("MlpPolicy", Walk(True, start=1))), ConfigError, "starts at 1"),
    ],
)
def test_bad_input_is_one_line(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call(make_model())
    assert "\n" not in str(caught.value)


def test_spaces_are_equal_where_their_json_is() -> None:
    box = spaces.Box(*(np.array(side, np.float32) for side in ([-1, -np.inf], [1, 2])))
    same = spaces.Box(*(np.array(side, np.float32) for side in ([-1, -np.inf], [1, 2])))
    assert space_to_json(box) == space_to_json(same)
    for other in (spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2, 1)), spaces.Discrete(3)):
        assert space_to_json(box) != space_to_json(other)
    assert space_to_json(spaces.Box(-1, 1, (2,), np.float64)) != space_to_json(spaces.Box(-1, 1, (2,), np.float32))
    assert space_to_json(spaces.Discrete(3)) != space_to_json(spaces.Discrete(3, start=1))


def test_standard_deviations_below_our_floor_are_exported_as_the_floor() -> None:
    model = make_model()
    model.params["policy/log_std"] = torch.full((1,), -50.0)
    assert export_sb3(model, value_tasks=0).tensors["log_std"].item() == pytest.approx(np.log(1e-6))
