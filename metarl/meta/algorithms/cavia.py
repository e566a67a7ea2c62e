"""CAVIA: fast context adaptation via meta-learning (Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson, 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

from stable_baselines3.common.policies import BasePolicy

from metarl.agents.networks.context import CONTEXT
from metarl.checks import integer
from metarl.envs.family import Family
from metarl.meta.algorithms.maml import MAML
from metarl.meta.environments import AnyEnv
from metarl.params import Params


class CAVIA(MAML):
    """MAML whose inner steps move a context only: inputs z of the first layers that are learnt like parameters.

    The first layers compute W x + b + C z. An inner step is z ← z − α ∇_z L(z, θ), from a z that is meta-learnt with θ
    and begins at 0; everything else is the same for all tasks. An export folds the context into the biases, b + C z,
    and is a plain policy of SB3's::

        model = CAVIA("MlpPolicy", "PointMass-v0", n_context=5, inner_lr=1.0)
        model.learn(100_000)
        model.to_sb3().save("start.zip")

    :param policy: ``"MlpPolicy"``.
    :param env: a registered family's name or a family.
    :param n_context: numbers of the context, at most 10,000.
    :param inner_lr: None takes ten times the learner's own.

    The other parameters are those of :class:`~metarl.meta.algorithms.maml.MAML`.
    """

    name: ClassVar[str] = "cavia"

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        n_context: int = 5,
        **kwargs: Any,
    ) -> None:
        self.n_context = integer(1, 10_000)("n_context", n_context)
        super().__init__(policy, env, **kwargs)

    def _default_rate(self) -> float:
        # A few numbers have to move a whole network: the paper's rates are ten times MAML's, too.
        return 10.0 * super()._default_rate()

    def _context_size(self) -> int:
        return self.n_context

    def _stays(self, theta: Params) -> frozenset[str]:
        # What tasks have of their own, as heads of unequal spaces, has to be learnt with the context.
        return frozenset(self.adaptations.shared) - {CONTEXT}
