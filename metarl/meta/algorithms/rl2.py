"""RL² (Duan et al., 2016; Wang et al., 2016): a policy with a memory, which is its adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.recurrent.policy import POLICIES, RecurrentPolicy
from metarl.agents.recurrent.trial_ppo import TrialGradient, TrialPPO, explained_variance
from metarl.checks import COUNT, MAPPING, NONE, integer, plain, plain_tree
from metarl.envs.family import Family
from metarl.envs.groups import has_equal_spaces
from metarl.envs.views.trials import TrialEnv, Trials
from metarl.errors import ConfigError, NonFiniteError, shorten
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.base import Amount, Streams
from metarl.meta.adaptation.gradient import InnerRule
from metarl.meta.adaptation.memory import MemoryAdaptation, MemoryWalk
from metarl.meta.adaptive import LARGEST_BATCH
from metarl.meta.blocks.cut import Adaptations
from metarl.meta.environments import AnyEnv, as_env
from metarl.meta.evaluation.points import Point
from metarl.meta.iterating import Iterates
from metarl.meta.kept import policy_name
from metarl.meta.outer.base import Outer, make_outer
from metarl.meta.outer.objective import KnownGradient, MetaGradient
from metarl.meta.progress import Timer
from metarl.params import POLICY, Params, grouped
from metarl.streams import stream


class RL2(Iterates):
    """RL²: a recurrent policy learns on trials of several episodes of a task, and adapts by what it remembers.

    It observes (o_t, a_{t−1}, r_{t−1}, d_{t−1}), where d is 1 if an episode ended, and keeps its memory h_t over the
    episodes of a trial: π(a_t | h_t), with h_t = f(h_{t−1}, o_t, a_{t−1}, r_{t−1}, d_{t−1}) and h = 0 before a trial.
    PPO maximises what a whole trial brings, so that looking around at first pays, with the trials of all tasks
    together. An inner step is an episode that is played: no parameter moves::

        network = {"lstm_hidden_size": 8, "net_arch": [8]}
        model = RL2("MlpLstmPolicy", "PointMass-v0", meta_batch_size=2, n_episodes=2, policy_kwargs=network)
        model.learn(total_timesteps=1)
        adapted = model.adapt(gymnasium.make("PointMass-v0", goal=[0.2, 0.1]))    # plays an episode
        env = TrialEnv(gymnasium.make("PointMass-v0", goal=[0.2, 0.1]))           # shows action and reward as well
        obs, _ = env.reset(seed=0)
        action, state = adapted.predict(obs)
        action, state = adapted.predict(env.step(action)[0], state)

    What it observes is the view :class:`~metarl.envs.views.trials.Trials` of the family, which it takes by itself. The
    network is sb3-contrib's, with an LSTM, so that an export to its ``RecurrentPPO`` acts the same on that view.

    :param policy: ``"MlpLstmPolicy"``; of its ``policy_kwargs``, ``lstm_hidden_size`` is 64 if it is not given.
    :param env: a registered family's name or a family.
    :param n_episodes: episodes of a trial, 2 or more. The evaluation after K inner steps plays K + 1.
    :param n_trials: trials of each task in a meta-iteration.
    :param n_epochs: passes over the trials of a meta-iteration.
    :param batch_size: trials of a minibatch, each as a whole; SB3 counts env steps there.
    :param gamma: discount factor, also from one episode of a trial to the next.
    :param gae_lambda: of generalised advantage estimation.
    :param clip_range: the ratio of new to old probability earns nothing more outside 1 ± this.
    :param clip_range_vf: values may move this far from the old ones in the value loss; None: anywhere.
    :param normalize_advantage: standardise the advantages of each minibatch.
    :param ent_coef: weight of the entropy in the loss.
    :param vf_coef: weight of the value loss.
    :param target_kl: epochs end at an estimated divergence of 1.5 times this; None: never.
    :param outer: the optimiser, ``"adam"`` or ``"sgd"``; with Adam, its arguments are those of SB3's PPO.
    :param outer_kwargs: its arguments: ``learning_rate``, ``max_grad_norm`` and others.

    The other parameters are those of :class:`~metarl.meta.base.MetaAlgorithm`.

    :raises ConfigError: a family of images, of imitation, or whose tasks have unequal spaces; a policy without memory.
    """

    name: ClassVar[str] = "rl2"
    point: ClassVar[Point] = "episode"
    default_outer: ClassVar[tuple[str, Mapping[str, Any]]] = (
        "adam",
        {"learning_rate": 3e-4, "eps": 1e-5, "max_grad_norm": 0.5},
    )

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpLstmPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        n_episodes: int = 4,
        n_trials: int = 4,
        n_epochs: int = 10,
        batch_size: int = 16,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        clip_range_vf: float | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        target_kl: float | None = None,
        outer: str | None = None,
        outer_kwargs: Mapping[str, Any] | None = None,
        meta_batch_size: int = 20,
        **kwargs: Any,
    ) -> None:
        words = "an integer in [2, 10000]: a memory adapts from one episode of a trial to the next"
        self.n_episodes = integer(2, 10_000).says(words)("n_episodes", n_episodes)
        self.n_inner_steps = self.n_episodes - 1
        self.n_transitions = None
        self.n_trials = integer(1, 10_000)("n_trials", n_trials)
        self._loss = {
            "n_epochs": n_epochs,
            "batch_size": batch_size,
            "gamma": gamma,
            "gae_lambda": gae_lambda,
            "clip_range": clip_range,
            "clip_range_vf": clip_range_vf,
            "normalize_advantage": normalize_advantage,
            "ent_coef": ent_coef,
            "vf_coef": vf_coef,
            "target_kl": target_kl,
        }
        own = self.default_outer
        outer_kwargs = plain_tree((MAPPING | NONE)("outer_kwargs", outer_kwargs))
        self.outer: str = plain(outer) or own[0]
        self.outer_kwargs: Mapping[str, Any] = own[1] if outer is None and outer_kwargs is None else outer_kwargs or {}
        if self.outer == "trpo":
            raise ConfigError("rl2 with outer='trpo': PPO's clipping is its trust region: use 'adam' or 'sgd'")
        self.rates = [0.0] * self.n_inner_steps
        """The learning rate of each inner step: no parameter moves."""
        super().__init__(policy, env, meta_batch_size=meta_batch_size, **kwargs)
        self.outer_optimizer = make_outer(self.outer, self.outer_kwargs)

    def _policy_name(self, policy: str | type[BasePolicy]) -> str:
        name = policy_name(POLICIES, policy)
        if name not in POLICIES:
            raise ConfigError(f"policy={shorten(name)} has no memory to adapt by: use 'MlpLstmPolicy'")
        return name

    def _make_family(self, env: str | Family, env_kwargs: Mapping[str, Any]) -> tuple[Family, Mapping[str, Any], bool]:
        if "trial_episodes" in env_kwargs:
            raise ConfigError("env_kwargs has trial_episodes: n_episodes says how many episodes a trial has")
        inside = env.family if isinstance(env, Trials) else env
        family, env_kwargs, by_name = super()._make_family(inside, env_kwargs)
        if not has_equal_spaces(family):
            raise ConfigError(f"{family.id} has tasks of different spaces: rl2 has one policy for all tasks")
        return Trials(family, self.n_episodes), env_kwargs, by_name

    def _setup_model(self, seed: int) -> Params:
        if self.meta_batch_size * self.batch_steps > LARGEST_BATCH:
            raise ConfigError(
                f"meta_batch_size={self.meta_batch_size:,} with {self.batch_steps:,} env steps a task is a batch of "
                f"{self.meta_batch_size * self.batch_steps:,} env steps: {LARGEST_BATCH:,} are the most"
            )
        self.adaptations = Adaptations(self.family, self._make_adaptation)
        self.adaptation = self.adaptations.first
        self.policy = self.trial_ppo.policy  # type: ignore[assignment]  # with a memory
        self.batch_size = self.trial_ppo.batch_size
        loss = self.trial_ppo.loss
        self.n_epochs, self.gamma, self.gae_lambda = loss.n_epochs, loss.gamma, loss.gae_lambda
        self.clip_range, self.clip_range_vf = loss.clip_range, loss.clip_range_vf
        self.normalize_advantage, self.target_kl = loss.normalize_advantage, loss.target_kl
        self.ent_coef, self.vf_coef = loss.ent_coef, loss.vf_coef
        return self.adaptations.init(seed)

    def _make_adaptation(self, observation_space: spaces.Box, action_space: spaces.Space[Any]) -> MemoryAdaptation:
        policy = RecurrentPolicy(self.policy_name, observation_space, action_space, self.policy_kwargs)
        learner = TrialPPO(policy, **self._loss, parallel=self.parallel)  # type: ignore[arg-type]
        assert isinstance(self.family, Trials)
        return MemoryAdaptation(self.family, learner, self.parallel)

    @property
    def trial_ppo(self) -> TrialPPO:
        """How trials are learnt from."""
        assert isinstance(self.adaptation, MemoryAdaptation)
        return self.adaptation.learner_on_trials

    @property
    def _outer(self) -> Outer:
        return self.outer_optimizer

    @property
    def batch_steps(self) -> int:
        """Env steps of a task's trials where no episode ends early."""
        return self.n_trials * self.family.horizon

    @property
    def steps_per_iteration(self) -> int:
        """Env steps of one meta-iteration where no episode ends early."""
        return self.meta_batch_size * self.batch_steps

    def _rule(self, rates: Sequence[float]) -> InnerRule:
        return InnerRule(rates)

    # -------------------------------------------------------------------------------------------------------- training
    def train(self) -> dict[str, float]:
        timer, streams = Timer(), Streams(self.seed, "train", self.n_iterations)
        # One block: the trials of all tasks are mixed in minibatches.
        amount = {"n_episodes": self.n_trials, "n_transitions": None}
        tasks = self._sample_tasks()
        (block,) = self.adaptations.cut(tasks, self.rates, streams, amount, size=self.meta_batch_size)
        with self._whole():
            walk = self._walked(block, timer)
            assert isinstance(walk, MemoryWalk)
            outcome = walk.outcome()
            with timer("outer"):
                samples = self.trial_ppo.process(walk.trials, self.theta)
                params, stats = self.meta_params, dict[str, float]()
                found: list[TrialGradient] = []
                rng = stream(self.seed, "train/update", self.n_iterations)
                for batch in self.trial_ppo.minibatches(samples, rng):
                    here = {name.removeprefix(POLICY): tensor for name, tensor in params.items()}
                    found.append(self.trial_ppo.differentiate(here, batch))
                    if not np.isfinite(found[-1].loss):
                        raise NonFiniteError("the loss of a minibatch of trials is no number")
                    if self.trial_ppo.is_too_far(found[-1]):
                        break
                    objective = KnownGradient(MetaGradient(found[-1].loss, grouped(found[-1].gradient, POLICY)))
                    result = self.outer_optimizer.step(objective, params, self._current_progress_remaining)
                    params, stats = result.params, result.stats
                self._move(params, [outcome])
        self.num_timesteps += outcome.n_steps
        return {
            **self._statistics([outcome], timer),
            **stats,
            "train/loss": float(np.mean([each.loss for each in found])),
            "train/approx_kl": float(np.mean([each.approx_kl for each in found])),
            "train/clip_fraction": float(np.mean([each.clip_fraction for each in found])),
            "train/entropy_loss": -float(np.mean([each.entropy for each in found])),
            "train/explained_variance": explained_variance(samples),
        }

    # ---------------------------------------------------------------------------------------------------- using it
    def _amount(self, n_episodes: int | None, n_transitions: int | None) -> Amount:
        """Return how many trials of each task a point of an evaluation is the mean of, as in training if not said."""
        if n_transitions is not None:
            raise ConfigError(f"n_transitions={shorten(n_transitions)}: rl2 plays whole trials: give n_episodes")
        n_trials = COUNT("n_episodes", self.n_trials if n_episodes is None else n_episodes)
        return {"n_episodes": n_trials, "n_transitions": None}

    def test_rates(
        self, n_inner_steps: int, rule: str = "constant", inner_lr: float | Sequence[float] | None = None
    ) -> list[float]:
        """Return a rate of 0 for each episode that is played before the one that counts.

        :raises ConfigError: other rates are given.
        """
        if inner_lr is not None or rule != "constant":
            given = f"inner_lr_rule={shorten(rule)}" if inner_lr is None else f"inner_lr={shorten(inner_lr)}"
            raise ConfigError(f"{given}: rl2 adapts by its memory, and no parameter moves: leave it out")
        return [0.0] * len(super().test_rates(n_inner_steps))

    def reached(self, tasks: Mapping[str, Any], n_inner_steps: int, **kwargs: Any) -> NoReturn:
        """Raise :class:`ConfigError`: adaptation changes a memory and no tensor."""
        del tasks, n_inner_steps, kwargs
        raise ConfigError(
            "rl2 adapts by its memory, which no export holds: what it exports adapts by itself, on trials"
        )

    def adapt(
        self,
        env: str | Family | AnyEnv,
        n_inner_steps: int | None = None,
        *,
        n_episodes: int | None = None,
        n_transitions: int | None = None,
        **kwargs: Any,
    ) -> AdaptedPolicy:
        """Play episodes of one environment, whose task need not be known; return the policy with its memory of them.

        :param env: as for other meta-algorithms; one that shows trials will do as well.
        :param n_inner_steps: inner steps; one episode less than a trial has in training if None.
        :param n_episodes: episodes of an inner step; 1 if None.
        :param n_transitions: not taken.
        :param kwargs: ``seed``.
        """
        assert isinstance(self.family, Trials)
        one = as_env(env, self.family)
        if one.observation_space.shape != self.family.observation_space.shape:
            one = TrialEnv(one, self.n_episodes)
        n_episodes = 1 if n_episodes is None else n_episodes
        return super().adapt(one, n_inner_steps, n_episodes=n_episodes, n_transitions=n_transitions, **kwargs)
