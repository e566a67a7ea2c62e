"""Learning, saving and loading in Stable-Baselines3's words, on a small PointMass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import KVWriter, Logger, configure
from stable_baselines3.common.torch_layers import FlattenExtractor

from metarl.agents.networks.arguments import ACTIVATIONS
from metarl.envs.registry import make_family
from metarl.errors import CheckpointError, ConfigError, MetaRLError, UnknownNameError
from metarl.files.checkpoint import load_checkpoint, save_checkpoint
from metarl.meta.algorithms.baselines import Pretrain, RandomInit
from metarl.meta.algorithms.maml import FOMAML, MAML
from metarl.meta.base import load
from metarl.meta.saving import ALGORITHMS, with_suffix
from tests.agents.toys import Staircase
from tests.meta.small import SIZES, copy, equal, run_iterations, small

PER_ITERATION = 2 * 4 * 5 * 20


def fixed(algorithm: Any = FOMAML, **kwargs: Any) -> Any:
    """Return an algorithm whose episodes all last 20 steps, so that env steps are known."""
    return small(algorithm, env_kwargs={"horizon": 20, "termination": "none"}, **kwargs)


# ----------------------------------------------------------------------------------------------- learn, as in SB3
def test_learn_counts_env_steps_as_sb3_does() -> None:
    model = fixed()
    assert model.learn(PER_ITERATION + 1) is model
    assert (model.num_timesteps, model.n_iterations) == (2 * PER_ITERATION, 2)
    model.learn(PER_ITERATION, reset_num_timesteps=False)
    assert (model.num_timesteps, model.n_iterations) == (3 * PER_ITERATION, 3)
    model.learn(PER_ITERATION)
    assert (model.num_timesteps, model.n_iterations) == (PER_ITERATION, 4)


def test_learning_in_pieces_equals_learning_at_once() -> None:
    whole, pieces = run_iterations(small(outer="adam"), 3), small(outer="adam")
    for _ in range(3):
        pieces.learn(1, reset_num_timesteps=False)
    assert equal(whole.params, pieces.params)


class Count(BaseCallback):
    """Records what SB3 promises a callback."""

    def __init__(self, stop_after: int = 10**9) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.events: list[str] = []
        self.seen: list[tuple[int, int]] = []

    def _on_training_start(self) -> None:
        self.events.append("start")
        assert self.locals["total_timesteps"] > 0
        assert self.training_env.num_envs == SIZES["meta_batch_size"]

    def _on_step(self) -> bool:
        self.seen.append((self.n_calls, self.num_timesteps))
        self.events.append("step")
        self.logger.record("mine/value", 1.0)
        assert "meta/post_adapt_rew" in self.locals["stats"]
        return self.n_calls < self.stop_after

    def _on_training_end(self) -> None:
        self.events.append("end")


def test_a_callback_is_called_once_a_meta_iteration_and_may_stop() -> None:
    model, callback = fixed(), Count(stop_after=2)
    model.learn(10**9, callback=callback)
    assert callback.events == ["start", "step", "step", "end"]
    assert callback.seen == [(1, PER_ITERATION), (2, 2 * PER_ITERATION)]
    assert model.n_iterations == 2


def test_lists_of_callbacks_and_functions() -> None:
    first, second = Count(), Count(stop_after=1)
    fixed().learn(10**9, callback=[first, second])
    assert len(first.seen) == len(second.seen) == 1
    calls: list[Any] = []
    fixed().learn(1, callback=lambda local, _: calls.append(local["stats"]) or True)
    assert len(calls) == 1


def test_a_callback_that_fails_still_ends_the_training() -> None:
    class Fails(Count):
        def _on_step(self) -> bool:
            raise KeyError("mine")

    callback = Fails()
    with pytest.raises(KeyError, match="mine"):
        fixed().learn(100, callback=callback)
    assert callback.events == ["start", "end"]


def test_sb3s_own_callbacks_work(tmp_path: Path) -> None:
    model = fixed()
    env = model.get_env()
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1e9)
    callbacks = [
        CheckpointCallback(save_freq=1, save_path=str(tmp_path), name_prefix="meta"),
        EvalCallback(env, callback_on_new_best=stop, n_eval_episodes=4, eval_freq=2, verbose=0, warn=False),
        EveryNTimesteps(PER_ITERATION, Count()),
    ]
    model.learn(10**9, callback=callbacks)
    assert model.n_iterations == 2
    assert len(list(tmp_path.iterdir())) == 2
    saved = tmp_path / f"meta_{2 * PER_ITERATION}_steps.safetensors"
    assert equal(load(saved).params, model.params)


def test_the_log_has_a_row_an_interval(tmp_path: Path) -> None:
    model = fixed()
    model.set_logger(configure(str(tmp_path), ["csv", "json"]))
    run_iterations(model, 4, log_interval=2)
    model.logger.close()
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [row["time/total_timesteps"] for row in rows] == [2 * PER_ITERATION, 4 * PER_ITERATION]
    assert [row["time/iterations"] for row in rows] == [2, 4]
    assert {"rollout/ep_rew_mean", "meta/adapt_gain", "time/fps", "train/kl_divergence_loss"} <= set(rows[0])


def test_what_on_rollout_end_records_is_in_the_row_of_its_iteration(tmp_path: Path) -> None:
    class Records(BaseCallback):
        starts = 0

        def _on_rollout_start(self) -> None:
            self.starts += 1

        def _on_rollout_end(self) -> None:
            self.logger.record("mine/iteration", self.model.n_iterations)
            self.logger.record("mine/post", self.locals["stats"]["meta/post_adapt_rew"])

        def _on_step(self) -> bool:
            return True

    model, callback = fixed(), Records()
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(3 * PER_ITERATION, callback=callback)
    model.logger.close()
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [row["mine/iteration"] for row in rows] == [1, 2, 3]
    assert all(row["mine/post"] == row["meta/post_adapt_rew"] for row in rows)
    assert callback.starts == 3


def test_rows_lie_at_their_env_steps_and_tensorboard_has_no_counters() -> None:
    class Keeps(KVWriter):
        rows: list[tuple[int, set[str]]] = []  # noqa: RUF012

        def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
            self.rows.append((step, {key for key, excluded in key_excluded.items() if "tensorboard" in excluded}))

    model, writer = fixed(), Keeps()
    model.set_logger(Logger(None, [writer]))
    model.learn(PER_ITERATION).learn(2 * PER_ITERATION, reset_num_timesteps=False)
    counters = {"time/iterations", "time/total_timesteps"}
    assert writer.rows == [(n * PER_ITERATION, counters) for n in (1, 2, 3)]


def test_get_env_repeats_with_the_seed_of_the_model() -> None:
    def seen(seed: int) -> np.ndarray:
        env = FOMAML(
            env=Staircase(random=True), meta_batch_size=4, policy_kwargs={"net_arch": [4]}, seed=seed
        ).get_env()
        env.reset()
        return np.stack([env.step(np.zeros((4, 2), np.float32))[0] for _ in range(5)])

    assert np.array_equal(seen(3), seen(3))
    assert not np.array_equal(seen(3), seen(4))


def test_there_is_no_logger_before_learning() -> None:
    with pytest.raises(ConfigError, match="no logger yet"):
        _ = small().logger


def test_a_progress_bar_shows_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    model = fixed().learn(2 * PER_ITERATION, progress_bar=True)
    assert "1.60k/1.60k" in capsys.readouterr().err
    model.learn(PER_ITERATION, reset_num_timesteps=False, progress_bar=True)
    assert "2.40k/2.40k" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- save and load
@pytest.mark.parametrize("outer", ["trpo", "adam", "sgd"])
@pytest.mark.parametrize("algorithm", [MAML, FOMAML, Pretrain])
def test_a_continued_run_equals_an_uninterrupted_one(tmp_path: Path, algorithm: Any, outer: str) -> None:
    whole = run_iterations(small(algorithm, outer=outer), 4)
    first = run_iterations(small(algorithm, outer=outer), 2)
    path = first.save(tmp_path / "model")
    assert path.name == "model.safetensors"
    second = algorithm.load(path, n_threads=2)
    assert (second.num_timesteps, second.n_iterations) == (first.num_timesteps, 2)
    assert equal(second.params, first.params)
    run_iterations(second, 2, reset_num_timesteps=False)
    assert equal(second.params, whole.params)
    assert (second.num_timesteps, second.n_iterations) == (whole.num_timesteps, 4)
    assert equal(second.outer_optimizer.state(), whole.outer_optimizer.state())


def test_everything_comes_back(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {
        "inner_lr": [0.2, 0.1],
        "n_inner_steps": 2,
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "normalize_advantage": False,
        "surrogate": "likelihood_ratio",
        "outer": "adam",
        "outer_kwargs": {"learning_rate": 0.02},
        "kl_direction": "new_old",
        "fisher_fraction": 0.5,
        "chunk_size": 2,
        "seed": 11,
        "n_transitions": 50,
        "policy_kwargs": {"net_arch": [7, 5], "activation_fn": "elu", "log_std_init": -0.5},
    }
    model = small(MAML, **kwargs)
    again = MAML.load(model.save(tmp_path / "m"))
    assert again.arguments() == model.arguments()
    for name, value in kwargs.items():
        assert getattr(again, name) == value
    assert again.adaptation.learner.gamma == 0.9
    assert again.adaptation.learner.surrogate == "likelihood_ratio"


def test_an_activation_given_as_a_class_is_saved_by_name(tmp_path: Path) -> None:
    model = small(policy_kwargs={"net_arch": [4], "activation_fn": ACTIVATIONS["relu"]})
    again = FOMAML.load(model.save(tmp_path / "m"))
    obs = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(again.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_arguments_that_cannot_be_saved_are_refused_before_learning() -> None:
    model = small(policy_kwargs={"features_extractor_class": FlattenExtractor})
    with pytest.raises(ConfigError, match=r"policy_kwargs.features_extractor_class=.*cannot be saved"):
        model.learn(1)
    assert model.n_iterations == 0


def test_a_seed_that_was_drawn_is_saved(tmp_path: Path) -> None:
    model = small(seed=None)
    assert small(seed=None).seed != model.seed
    assert FOMAML.load(model.save(tmp_path / "m")).seed == model.seed


def test_load_finds_the_class_and_the_suffix(tmp_path: Path) -> None:
    small(Pretrain).save(tmp_path / "m.v1")
    assert type(load(tmp_path / "m.v1")) is Pretrain
    assert type(load(tmp_path / "m.v1.safetensors")) is Pretrain
    assert with_suffix("a.b") == Path("a.b.safetensors")
    assert with_suffix("a.safetensors") == Path("a.safetensors")
    assert with_suffix("b/a.zip") == Path("b/a.safetensors")


def test_overrides_change_single_arguments(tmp_path: Path) -> None:
    path = run_iterations(small(outer="adam"), 1).save(tmp_path / "m")
    model = load(path, inner_lr=0.7, outer="sgd")
    assert model.inner_lr == 0.7  # type: ignore[attr-defined]
    path = run_iterations(small(), 1).save(tmp_path / "n")
    run_iterations(load(path, outer="adam"), 1)
    with pytest.raises(UnknownNameError, match="did you mean 'inner_lr'"):
        load(path, inner_rl=0.7)
    with pytest.raises(ConfigError, match="gamma=2"):
        load(path, gamma=2)


def test_a_family_that_was_built_has_to_be_given_again(tmp_path: Path) -> None:
    # Its arguments are not in the file: the registered family of the same name may be another one.
    built = make_family("PointMass-v0", horizon=20, goal_range=2.0)
    model = FOMAML("MlpPolicy", built, **{**SIZES, "env_kwargs": None})
    path = model.save(tmp_path / "m")
    with pytest.raises(CheckpointError, match="pass env="):
        load(path)
    assert load(path, env=built).family is built
    unknown = FOMAML("MlpPolicy", Staircase(), meta_batch_size=2, n_episodes=2).save(tmp_path / "n")
    with pytest.raises(CheckpointError, match=r"'Staircase-v0'.*pass env="):
        load(unknown)
    assert load(unknown, env=Staircase()).family.id == "Staircase-v0"
    with pytest.raises(ConfigError, match="env_kwargs go with"):
        FOMAML("MlpPolicy", built, env_kwargs={"horizon": 3})


def test_load_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = small(Pretrain).save(tmp_path / "m")
    with pytest.raises(CheckpointError, match="saved by 'pretrain', not by 'fomaml'"):
        FOMAML.load(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="does not fit the policy: tensor"):
        load(path, policy_kwargs={"net_arch": [9]})
    with pytest.raises(CheckpointError, match="does not fit the policy: tensor"):
        load(path, env=Staircase(discrete=True))
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"\x80\x04garbage" * 10)
    with pytest.raises(CheckpointError) as caught:
        load(garbage)
    assert "\n" not in str(caught.value)
    ppo = PPO("MlpPolicy", "Pendulum-v1", device="cpu")
    ppo.save(tmp_path / "ppo.zip")
    with pytest.raises(CheckpointError, match="zip archive"):
        load(tmp_path / "ppo.zip")
    for cut in (10, 200, path.stat().st_size - 1):
        broken = tmp_path / f"cut{cut}.safetensors"
        broken.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(CheckpointError, match="cut"):
            load(broken)


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "mamll"},
        {"algorithm": ["maml"]},
        {"arguments": 3},
        {"arguments": {"gamma": "high"}},
        {"arguments": {"gama": 1.0}},
        {"num_timesteps": "many"},
        {"env": "PointMass-v9"},
        {"env": {}},
        {"policy": "CnnPolicy"},
    ],
)
def test_a_document_that_was_tampered_with_is_an_error_of_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    tensors, document = load_checkpoint(small().save(tmp_path / "m"))
    save_checkpoint(tmp_path / "t.safetensors", tensors, {**document, **change})
    with pytest.raises(MetaRLError, match=r"t\.safetensors") as caught:
        load(tmp_path / "t.safetensors")
    assert "\n" not in str(caught.value)


def test_tensors_that_were_tampered_with_are_an_error(tmp_path: Path) -> None:
    tensors, document = load_checkpoint(run_iterations(small(outer="adam"), 1).save(tmp_path / "m"))
    for name, replacement in (
        ("policy/log_std", torch.zeros(3)),
        ("policy/log_std", torch.zeros(2, dtype=torch.float64)),
        ("outer/count", None),
        ("outer/first/policy/action_net.bias", torch.zeros(5)),
        ("outer/second/policy/action_net.bias", None),
    ):
        assert name in tensors
        changed = {key: tensor for key, tensor in tensors.items() if key != name}
        if replacement is not None:
            changed[name] = replacement
        save_checkpoint(tmp_path / "t.safetensors", changed, document)
        with pytest.raises(CheckpointError, match=r"t\.safetensors"):
            load(tmp_path / "t.safetensors")


# ------------------------------------------------------------------------------------------------------------- using it
def test_predict_clips_and_follows_its_policy() -> None:
    model = small(policy_kwargs={"net_arch": [4], "log_std_init": 2.0})
    obs = np.zeros((500, 2), np.float32)
    actions, state = model.predict(obs)
    assert state is None
    assert actions.shape == (500, 2)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() == 1.0
    assert (np.abs(actions) == 1.0).mean() > 0.5
    one, _ = model.predict(obs[0], deterministic=True)
    assert one.shape == (2,)
    np.testing.assert_allclose(model.predict(obs, deterministic=True)[0], np.broadcast_to(one, (500, 2)), atol=1e-6)
    with pytest.raises(ConfigError, match="observation has shape"):
        model.predict(np.zeros(3))
    discrete = FOMAML("MlpPolicy", Staircase(discrete=True, start=4), meta_batch_size=2, n_episodes=2)
    chosen, _ = discrete.predict(np.zeros((50, 2)))
    assert set(chosen.tolist()) == {4, 5, 6}
    assert discrete.predict(np.zeros(2), deterministic=True)[0] in (4, 5, 6)


def test_predictions_repeat_with_a_generator() -> None:
    adapted = small().adapt(single(), 1)
    obs = np.zeros((5, 2), np.float32)
    first, again = (adapted.predict(obs, rng=np.random.default_rng(3))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, adapted.predict(obs)[0])


def single() -> Any:
    import gymnasium as gym

    return gym.make("PointMass-v0", goal=[0.1, 0.2], horizon=20)


def test_parameters_carry_their_group_and_sb3s_names() -> None:
    model = small()
    assert all(name.startswith("policy/") for name in model.params)
    assert list(model.policy_params) == [name.removeprefix("policy/") for name in model.params]
    stock = dict(model.policy.build(0).named_parameters())
    assert all(stock[name].shape == tensor.shape for name, tensor in model.policy_params.items())


def test_the_seed_decides_the_initialisation() -> None:
    assert equal(small(seed=3).params, small(MAML, seed=3).params)
    assert not equal(small(seed=3).params, small(seed=4).params)


def test_every_algorithm_has_a_name() -> None:
    assert set(ALGORITHMS) == {
        "anil",
        "boil",
        "cavia",
        "meta_sgd",
        "fomaml",
        "hat",
        "imaml",
        "leap",
        "leo",
        "maltml",
        "maml",
        "maml_plus_plus",
        "meta_curvature",
        "meta_transfer",
        "multi_task",
        "oml",
        "oracle",
        "pretrain",
        "progressive",
        "random",
        "reptile",
        "rl2",
    }
    assert ALGORITHMS["random"] is RandomInit


def test_parameters_before_learning_are_not_changed_in_place() -> None:
    model = small(outer="sgd", outer_kwargs={"learning_rate": 1.0})
    held = model.params
    before = copy(held)
    model.train()
    assert equal(held, before)
    assert not equal(model.params, before)


class Doubles(Staircase):
    """A family that observes float64."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(np.array([0.0, -9.0]), np.array([1.0, 9.0]), dtype=np.float64)


def test_families_that_observe_float64_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"Staircase-v0: observation_space Box\(.*float64\) is not a float32 Box"
    ) as error:
        FOMAML("MlpPolicy", Doubles())
    assert "\n" not in str(error.value)
