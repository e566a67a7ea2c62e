"""Updates on episodes that go on, against SB3's own ``collect_rollouts`` and ``train``: same copies, same actions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from metarl.agents.learners import descent
from metarl.agents.learners.a2c import A2C
from metarl.agents.learners.actor_critic import ActorCritic, ActorCriticSamples
from metarl.agents.learners.ppo import PPO
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling import rollouts
from metarl.agents.sampling.rollouts import Copies, Rollout
from metarl.envs.family import Family
from metarl.envs.registry import make_family
from metarl.envs.tasks import take_tasks
from metarl.envs.views.vec_env import FamilyVecEnv
from metarl.errors import MetaRLError
from metarl.params import Params, take
from metarl.streams import seed_sequence
from tests.envs.games import Games

N_STEPS, N_ENVS, RATE = 5, 4, 1e-3
SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 16}}
FAMILIES = {
    "images": (lambda: Games(horizon=7, buttons=(3, 3)), "CnnPolicy", SMALL_CNN),
    "vectors": (lambda: make_family("PointMass-v0", horizon=7), "MlpPolicy", {"net_arch": [16]}),
}
Twins = tuple[ActorCritic, list[OnPolicyAlgorithm], Copies, Params]


def actions_of(model: OnPolicyAlgorithm, rollout: Rollout, task: int) -> None:
    """Let a stock model act as a task of the rollout did; what it makes of it is its own."""
    steps = iter(np.moveaxis(rollout.actions[task], 1, 0))

    def forward(obs: torch.Tensor, deterministic: bool = False) -> tuple[torch.Tensor, ...]:
        actions = torch.from_numpy(next(steps).copy())
        values, log_prob, _ = model.policy.evaluate_actions(obs, actions)
        return actions, values, log_prob

    model.policy.forward = forward  # type: ignore[method-assign]


def twins(kind: str, cls: type[OnPolicyAlgorithm], learner_of: Any, stock: dict[str, Any]) -> Twins:
    """Return a learner of two tasks and a stock model for each, with equal parameters and copies."""
    make, policy_name, kwargs = FAMILIES[kind]
    family: Family = make()
    tasks, seeds = family.tasks("test", 2), [seed_sequence(0, "copies", task) for task in range(2)]
    policy = FunctionalPolicy(policy_name, family.observation_space, _actions(family), kwargs, critic=True)
    models = []
    for task, seed in enumerate(seeds):
        env = FamilyVecEnv(family, take_tasks(tasks, slice(task, task + 1)), N_ENVS, seed=0)
        own = {**kwargs, **stock.get("policy_kwargs", {})}  # a copy: SB3 writes into it
        rest = {**stock, "n_steps": N_STEPS, "learning_rate": RATE, "policy_kwargs": own, "seed": task}
        models.append(cls(policy_name, env, **rest))
        env.seed_copies([int(n) for n in seed.generate_state(N_ENVS)])
    params = {
        name: torch.stack([dict(model.policy.named_parameters())[name].detach().clone() for model in models])
        for name in policy.names
    }
    return learner_of(policy), models, Copies.of(family, policy, tasks, seeds, N_ENVS), params


def _actions(family: Family) -> spaces.Space[Any]:
    return spaces.Discrete(3) if isinstance(family, Games) else family.action_space


def learn_beside(kind: str, cls: type[OnPolicyAlgorithm], learner_of: Any, stock: dict[str, Any], n: int) -> Rollout:
    """Take updates on both sides and require equal samples and parameters; return the last rollout."""
    learner, models, copies, params = twins(kind, cls, learner_of, stock)
    assert learner.continuing is not None
    state = learner.start(params)
    n_ended, n_cut = 0, 0
    for turn in range(n):
        rollout = copies.collect(state.params, N_STEPS, learner.continuing.keeps)
        samples = learner.continuing.process(rollout)
        assert (samples.kept is not None) == (kind == "images")
        orders = [seed_sequence(0, "order", turn, task) for task in range(2)]
        state = learner.update(state, samples, RATE, orders)
        n_ended, n_cut = n_ended + int(rollout.ended.sum()), n_cut + int((rollout.final_values != 0).sum())
        for task, model in enumerate(models):
            actions_of(model, rollout, task)
            order = np.random.Generator(np.random.PCG64(orders[task]))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(np.random, "permutation", order.permutation)
                model.learn(N_STEPS * N_ENVS, reset_num_timesteps=turn == 0)
            _require_equal(samples, model, task)
            for name, tensor in model.policy.named_parameters():
                torch.testing.assert_close(take(state.params, task)[name], tensor.detach(), rtol=1e-5, atol=1e-5)
    assert 0 < n_cut < n_ended or kind == "vectors"
    assert n_cut > 0
    return rollout


def _require_equal(samples: ActorCriticSamples, model: OnPolicyAlgorithm, task: int) -> None:
    buffer = model.rollout_buffer
    for name, theirs in (("returns", buffer.returns), ("values", buffer.values), ("log_prob", buffer.log_probs)):
        np.testing.assert_allclose(getattr(samples, name)[task], theirs.reshape(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(samples.obs[task], buffer.observations.reshape(samples.obs[task].shape))
    assert samples.obs.dtype == (torch.uint8 if samples.obs.ndim == 5 else torch.float32)


PRINTED = {"eps": 1e-4, "alpha": 0.99}
TENSORFLOW = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"alpha": 0.99, "eps": 1e-5}}
A2CS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as printed": (
        {"ent_coef": 0.01, "optimizer_kwargs": PRINTED},
        {"ent_coef": 0.01, "rms_prop_eps": 1e-4},
    ),
    "clipped, as TensorFlow's": (
        {"max_grad_norm": 0.02, "vf_coef": 0.25, "gae_lambda": 0.9, "optimizer": "rmsprop_tf_like"},
        {"max_grad_norm": 0.02, "vf_coef": 0.25, "gae_lambda": 0.9, "use_rms_prop": False, "policy_kwargs": TENSORFLOW},
    ),
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("case", A2CS)
def test_updates_equal_sb3s_a2c(kind: str, case: str) -> None:
    ours, theirs = A2CS[case]
    learn_beside(kind, sb3.A2C, lambda policy: A2C(policy, n_steps=N_STEPS, n_envs=N_ENVS, **ours), theirs, 4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_large_network_is_cut_into_parts_that_threads_share(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(descent, "PART_SAMPLES", 6)
    monkeypatch.setattr(descent, "KEPT_SAMPLES", 6)
    monkeypatch.setattr(rollouts, "PART_BYTES", 0)
    monkeypatch.setattr(rollouts, "PART_COPIES", 3)
    options = {"n_steps": N_STEPS, "n_envs": N_ENVS, "ent_coef": 0.01}
    assert descent.sample_parts(N_STEPS * N_ENVS, 1000) == [slice(0, 6), slice(6, 13), slice(13, 20)]

    def learnt(n_threads: int) -> Rollout:
        make = lambda policy: A2C(policy, **options, parallel=Parallel(n_threads))  # noqa: E731
        return learn_beside(kind, sb3.A2C, make, {"ent_coef": 0.01}, 3)

    found = [learnt(n_threads) for n_threads in (1, 3)]
    one, three = ({**rollout.present(), **(rollout.kept or {})} for rollout in found)
    assert all(np.array_equal(value, three[name]) for name, value in one.items() if name != "kept")


def test_copies_of_a_live_family_are_played_in_parts_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    family = make_family("Atari-v0", screen_size=36, max_frames=40)
    tasks = family.validate_tasks({"game": ["Breakout"]})
    policy = FunctionalPolicy("CnnPolicy", *family.spaces({"game": tasks["game"][0]}), SMALL_CNN, critic=True)
    params = {name: tensor[None] for name, tensor in policy.init(0).items()}

    def played(n_threads: int, part_bytes: int) -> tuple[list[Rollout], Copies, Any]:
        monkeypatch.setattr(rollouts, "PART_BYTES", part_bytes)
        copies = Copies.of(family, policy, tasks, [seed_sequence(0, "copies")], 3, Parallel(n_threads))
        found = [copies.collect(params, 8, keep=True) for _ in range(2)]
        return found, copies, copies.play(params)

    whole, one, two = played(1, 10**9), played(1, 0), played(2, 0)
    assert [len(each[1]._parts) for each in (whole, one, two)] == [1, 2, 2]
    for ours, parts, again in zip(whole[0], one[0], two[0], strict=True):
        assert ours.ended.sum() == 3
        for name, value in parts.present().items():
            if name == "kept":
                assert all(torch.equal(tensor, again.kept[key]) for key, tensor in value.items())
                continue
            np.testing.assert_array_equal(value, getattr(again, name))
            # A convolution of fewer images may round otherwise.
            np.testing.assert_allclose(value, getattr(ours, name), rtol=1e-4, atol=1e-5)
    assert whole[1].ended() == one[1].ended() == two[1].ended() != [[]]
    for each in (one, two):
        np.testing.assert_array_equal(each[2], whole[2])
    family.close()


@pytest.mark.parametrize("cls", [A2C, PPO])
def test_a_spent_state_is_written_over_and_another_is_not(cls: type[ActorCritic]) -> None:
    family = make_family("PointMass-v0", horizon=7)
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, critic=True)
    learner = cls(policy, n_steps=N_STEPS, n_envs=N_ENVS)  # type: ignore[call-arg]
    assert learner.continuing is not None
    seeds = [seed_sequence(0, "copies", task) for task in range(2)]
    copies = Copies.of(family, policy, family.tasks("test", 2), seeds, N_ENVS)
    theta = {name: torch.stack([tensor] * 2) for name, tensor in policy.init(0).items()}
    states = [learner.start(theta)] * 2
    before = {name: tensor.clone() for name, tensor in theta.items()}
    for turn in range(3):
        kept = {name: tensor.clone() for name, tensor in states[0].params.items()}
        samples = learner.continuing.process(copies.collect(states[0].params, N_STEPS))
        whole, spent = states
        states = [learner.update(state, samples, RATE, seeds) for state in (whole, replace(spent, spent=True))]
        assert all(torch.equal(tensor, kept[name]) for name, tensor in whole.params.items())
        assert all(torch.equal(tensor, states[1].params[name]) for name, tensor in states[0].params.items())
        assert all(torch.equal(tensor, states[1].optimizer[name]) for name, tensor in states[0].optimizer.items())
        same = [tensor.data_ptr() == spent.params[name].data_ptr() for name, tensor in states[1].params.items()]
        assert all(same) if turn else not any(same)
    assert all(torch.equal(tensor, theta[name]) for name, tensor in before.items())


def test_updates_equal_sb3s_ppo() -> None:
    options = {"batch_size": 10, "n_epochs": 2}
    learn_beside("vectors", sb3.PPO, lambda policy: PPO(policy, n_steps=N_STEPS, n_envs=N_ENVS, **options), options, 3)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_task_learns_the_same_beside_others(kind: str) -> None:
    make, name, kwargs = FAMILIES[kind]
    family: Family = make()
    policy = FunctionalPolicy(name, family.observation_space, _actions(family), kwargs, critic=True)
    tasks, seeds = family.tasks("test", 2), [seed_sequence(0, "copies", task) for task in range(2)]
    learner = A2C(policy, n_steps=N_STEPS, n_envs=N_ENVS)
    how, theta = learner.continuing, policy.init(0)
    assert how is not None

    def learnt(rows: slice) -> Params:
        own = seeds[rows]
        copies = Copies.of(family, policy, take_tasks(tasks, rows), own, N_ENVS)
        state = learner.start({name: torch.stack([tensor] * len(own)) for name, tensor in theta.items()})
        for _ in range(3):
            state = learner.update(state, how.process(copies.collect(state.params, N_STEPS)), RATE, own)
        return state.params

    both, alone = learnt(slice(0, 2)), learnt(slice(1, 2))
    for tensor in theta:
        # Convolutions of several tasks side by side may round otherwise.
        torch.testing.assert_close(both[tensor][1:], alone[tensor], rtol=0.0, atol=1e-6 if kind == "images" else 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_steps": 0}, "n_steps=0 is not an integer"),
        ({"n_envs": 4}, "n_envs=4 without n_steps"),
        ({"optimizer_kwargs": {"epsilon": 1.0}}, "optimizer_kwargs of 'rmsprop'"),
        ({"optimizer_kwargs": {"eps": -1.0}}, r"optimizer_kwargs\.eps=-1\.0 is not"),
        ({"optimizer_kwargs": {"alpha": 1.0}}, r"optimizer_kwargs\.alpha=1\.0 is not"),
        ({"optimizer": "adam", "optimizer_kwargs": {"betas": 0.9}}, r"optimizer_kwargs\.betas=0\.9 is not a list"),
        ({"optimizer": "sgd", "optimizer_kwargs": {"eps": 0.1}}, "'sgd' takes no"),
    ],
)
def test_bad_arguments_are_said(options: dict[str, Any], words: str) -> None:
    family = make_family("PointMass-v0")
    policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, critic=True)
    with pytest.raises(MetaRLError, match=words):
        A2C(policy, **options)
