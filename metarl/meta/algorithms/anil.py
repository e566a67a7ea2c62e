"""ANIL: almost no inner loop (Raghu, Raghu, Bengio and Vinyals, 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from stable_baselines3.common.policies import BasePolicy

from metarl.agents.networks.layers import head_of
from metarl.envs.family import Family
from metarl.errors import ConfigError, shorten
from metarl.meta.adaptive import names_of
from metarl.meta.algorithms.maml import MAML
from metarl.meta.environments import AnyEnv
from metarl.params import Params, select


class ANIL(MAML):
    """MAML whose inner steps move the head only; the body is meta-learnt, and the same for all tasks.

    With h the head and b the body, an inner step is h ← h − α ∇_h L(h, b); the meta-gradient is that of both, second
    order included. It takes any network, because modules are named as in SB3::

        model = ANIL("MlpPolicy", "PointMass-v0", inner_modules=["action_net", "log_std"])
        model.learn(100_000)

    :param policy: ``"MlpPolicy"``.
    :param env: a registered family's name or a family.
    :param inner_modules: the tensors or modules that inner steps move; None: the head, which is ``action_net``,
        ``log_std`` and, with a critic, ``value_net``.

    The other parameters are those of :class:`~metarl.meta.algorithms.maml.MAML`.
    """

    name: ClassVar[str] = "anil"

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        inner_modules: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.inner_modules = None if inner_modules is None else names_of("inner_modules", inner_modules)
        super().__init__(policy, env, **kwargs)

    def _stays(self, theta: Params) -> frozenset[str]:
        adapting = self._default_modules(theta) if self.inner_modules is None else self.inner_modules
        moved = select(self.adaptations.names, adapting)
        if not moved:
            raise ConfigError(f"inner_modules={shorten(self.inner_modules)} leaves nothing that adapts")
        return frozenset(self.adaptations.names) - set(moved)

    def _default_modules(self, theta: Params) -> list[str]:
        """Return the tensors that inner steps move where nothing is said."""
        return head_of(self.adaptations.names)
