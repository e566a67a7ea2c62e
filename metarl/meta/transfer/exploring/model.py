"""A support that is episodes of the family itself, collected by the encoder's own learner, whose gradient is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.one_env import collect_env
from metarl.agents.sampling.samples import Samples
from metarl.envs.family import Family
from metarl.envs.tasks import Tasks, n_tasks
from metarl.errors import ConfigError
from metarl.meta.transfer.encoder import Seen, Sizes
from metarl.meta.transfer.exploring.policies import Explorer
from metarl.meta.transfer.model import ENCODER, TransferModel
from metarl.params import Params, expand, group


class ExploringModel(TransferModel):
    """``ψ = M_D(M_E(episodes))``: f, at what is learnt of it, acts in the task, and z is its policy gradient there.

    An action is Gaussian around f's outputs, with a fixed deviation, or chosen by them as logits. Advantages are those
    of :class:`~metarl.agents.learners.vpg.VPG`.

    :param family: where it acts.
    :param policy: the policy that is decoded.
    :param encoder: its name, one by a gradient.
    :param encoder_kwargs: its arguments.
    :param n_latent: k.
    :param decoder_kwargs: see :class:`~metarl.meta.transfer.model.TransferModel`.
    :param init: likewise.
    :param surrogate: of :data:`~metarl.meta.transfer.exploring.surrogates.SURROGATES`.
    :param std: the deviation of continuous actions.
    :param gamma: discount factor.
    :param parallel: the threads to collect on.
    :param explorer: a policy that collects in the place of f, and stays as it is: likelihood ratios are then those of f
        to it, and z is the gradient at f of what it saw.
    """

    def __init__(
        self,
        family: Family,
        policy: FunctionalPolicy,
        encoder: str,
        encoder_kwargs: Mapping[str, Any],
        n_latent: int,
        decoder_kwargs: Mapping[str, Any],
        init: str,
        *,
        surrogate: str,
        std: float,
        gamma: float,
        parallel: Parallel,
        explorer: Explorer | None = None,
    ) -> None:
        self._surrogate, self._std = surrogate, std
        super().__init__(family, policy, encoder, encoder_kwargs, n_latent, decoder_kwargs, init)
        learner = self.encoder.learner
        network = {"net_arch": learner.hidden, "activation_fn": learner.activation_fn}
        self._given = None if explorer is None else explorer.params
        self.explorer = (
            FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, network)
            if explorer is None
            else explorer.policy
        )
        """The policy that collects."""
        self._scored = VPG(self.explorer, gamma=gamma, surrogate="likelihood_ratio", parallel=parallel)
        self._parallel = parallel

    def _sizes(self, n_latent: int) -> Sizes:
        sizes = super()._sizes(n_latent)
        is_box = isinstance(self.support.action_space, spaces.Box)
        return sizes._replace(loss=self._surrogate, std=self._std if is_box else None)

    def exploring(self, meta: Params) -> Params:
        """Return the tensors of the policy that collects, named as in SB3."""
        if self._given is not None:
            return self._given
        encoder = group(meta, ENCODER)
        layers = self.encoder.learnt({name: tensor.detach() for name, tensor in encoder.items()})
        last = len(self.encoder.learner.hidden)
        found: Params = {}
        for name, tensor in layers.items():
            _, layer, kind = name.split(".")
            place = "action_net" if int(layer) == last else f"mlp_extractor.policy_net.{2 * int(layer)}"
            found[f"{place}.{kind}"] = tensor.contiguous()
        if isinstance(self.support.action_space, spaces.Box):
            found["log_std"] = found["action_net.bias"].new_full(self.support.action_space.shape, log(self._std))
        return {name: found[name] for name in self.explorer.names}

    def draw(self, meta: Params, tasks: Tasks, seeds: Sequence[np.random.SeedSequence], n: int) -> Samples:
        """Collect ``n`` episodes of every task."""
        params = expand(self.exploring(meta), n_tasks(tasks))
        params = {name: tensor.contiguous() for name, tensor in params.items()}
        episodes = collect(self.support, self.explorer, params, tasks, seeds, n_episodes=n, parallel=self._parallel)
        return self._of(episodes, params)

    def meet(self, env: gym.Env[Any, Any], meta: Params, seed: np.random.SeedSequence, n: int) -> Samples:
        """Collect ``n`` episodes in an environment whose task need not be known."""
        params = self.exploring(meta)
        return self._of(collect_env(env, self.explorer, params, seed, n), expand(params, 1))

    def _of(self, episodes: Episodes, params: Params) -> Samples:
        samples = self._scored.process(episodes, params)
        target = samples.actions
        if isinstance(self.support.action_space, spaces.Discrete):
            target = torch.nn.functional.one_hot(target.long(), self.encoder.sizes.outputs).to(samples.obs.dtype)
        return replace(samples, target=target)

    def given(self, support: Any) -> NoReturn:
        del support
        raise ConfigError(
            f"support of pairs where support_surrogate={self._surrogate!r} has it of episodes: pass an environment"
        )

    def seen(self, batches: Sequence[Samples]) -> Seen:
        """Return the episodes of several batches together, each batch counting alike."""
        offset, firsts = 0, []
        for batch in batches:
            firsts.append(offset + torch.from_numpy(first_steps(batch)))
            offset += batch.obs.shape[1]

        def joined(name: str) -> torch.Tensor:
            return torch.cat([getattr(batch, name) for batch in batches], dim=1)

        return Seen(
            joined("obs").flatten(start_dim=2),
            joined("target"),
            joined("weights") / len(batches),
            joined("advantages"),
            joined("log_prob"),
            torch.cat(firsts, dim=1),
        )


def first_steps(samples: Samples) -> np.ndarray:
    """Return the index of the first step of each step's episode, ``[task, n]``."""
    steps = np.arange(samples.obs.shape[1])
    ends = samples.episode_ends[:, None, :]
    return np.asarray(np.where(ends <= steps[:, None], ends, 0).max(-1, initial=0))
