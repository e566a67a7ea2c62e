"""What fine-tuning does beside plain gradient steps: frozen layers, gradual unfreezing, smaller rates, a new head.

All of it is a factor for the rate of each tensor in each step, but for a new head, which is where a task starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from metarl.agents.networks.layers import head_of, layers
from metarl.checks import COUNT, NONE, SWITCH, number, plain_tree
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.params import Params, select

BODY = "body"
"""Names all tensors but the head's."""
DECAY = number("(0, 1]")


@dataclass(frozen=True)
class Tuning:
    """How a learnt initialisation is fine-tuned.

    The head goes on with the whole rate, each layer below it with a third of the one above, and the first layer comes
    in after two inner steps::

        from metarl.meta.adaptation.tuning import Tuning

        model = metarl.Pretrain("MlpPolicy", "Sinusoid-v0", learner="supervised", policy_kwargs={"net_arch": [8]})
        tuning = Tuning(layer_decay=1 / 3, unfreeze_every=2)
        report = model.evaluate(n_tasks=2, n_inner_steps=3, tuning=tuning)
        assert report.label == "pretrain, unfrozen every 2 steps, layer decay 0.333"

    With r the rate of step k and l the layer, counted from the head, the step of a tensor is −r · decay^l · g where
    k ≥ l · ``unfreeze_every`` and it is not frozen, and 0 else. Its gradient is computed nonetheless, and counts where
    gradients are clipped by their norm.

    :param freeze: tensors or modules that stay, such as ``"features_extractor"`` or ``"mlp_extractor.policy_net.0"``;
        ``"body"``: all but the head.
    :param unfreeze_every: gradual unfreezing (Howard and Ruder, 2018): the head learns first, and one layer more every
        so many inner steps; around a stock algorithm every so many rollouts. None: all learn from the first on.
    :param layer_decay: smaller rates for earlier layers ("discriminative fine-tuning"): the factor from one layer to
        the one below it.
    :param new_head: every task starts with a head that is drawn anew, as for other classes or actions.
    """

    freeze: Sequence[str] = ()
    unfreeze_every: int | None = None
    layer_decay: float = 1.0
    new_head: bool = False

    def __post_init__(self) -> None:
        given = [self.freeze] if isinstance(self.freeze, str) else self.freeze
        if not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
            raise ConfigError(f"freeze={shorten(self.freeze)} is not a list of names")
        object.__setattr__(self, "freeze", tuple(given))
        object.__setattr__(self, "unfreeze_every", (COUNT | NONE)("unfreeze_every", self.unfreeze_every))
        object.__setattr__(self, "layer_decay", DECAY("layer_decay", self.layer_decay))
        object.__setattr__(self, "new_head", SWITCH("new_head", self.new_head))

    @classmethod
    def of(cls, given: Tuning | Mapping[str, Any]) -> Tuning:
        """Return what a mapping with the names of the fields says.

        :raises UnknownNameError: a name that no field has.
        """
        if isinstance(given, Tuning):
            return given
        if not isinstance(given, Mapping):
            raise ConfigError(f"tuning={shorten(given)} is not a mapping")
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown_name("option of fine-tuning:", name, known)
        return cls(**plain_tree(given))

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {**asdict(self), "freeze": list(self.freeze)}

    @property
    def is_plain(self) -> bool:
        """Whether every tensor has the whole rate in every step."""
        return not self.freeze and self.unfreeze_every is None and self.layer_decay == 1.0

    def __str__(self) -> str:
        said = ["new head"] if self.new_head else []
        said += [f"{' and '.join(self.freeze)} frozen"] if self.freeze else []
        said += [f"unfrozen every {self.unfreeze_every} steps"] if self.unfreeze_every is not None else []
        said += [f"layer decay {self.layer_decay:.3g}"] if self.layer_decay != 1.0 else []
        return ", ".join(said) or "all layers alike"

    def frozen(self, params: Params) -> set[str]:
        """Return the names of the tensors that stay.

        :param params: of the policy of one task.
        :raises UnknownNameError: nothing belongs to one of the modules.
        :raises ConfigError: no layer is left that learns.
        """
        names = [name for layer in layers(params) for name in layer]
        head = head_of(names)
        body = [name for name in names if name not in head] if BODY in self.freeze else []
        found = {*body, *select(names, [name for name in self.freeze if name != BODY], words=[BODY])}
        if len(found) == len(names):
            raise ConfigError(f"freeze={shorten(list(self.freeze))} leaves nothing that learns")
        return found

    def factors(self, params: Params, step: int) -> dict[str, float]:
        """Return by what the rate of each tensor is multiplied in a step.

        :param params: of the policy of one task.
        :param step: counted from 0.
        """
        frozen = self.frozen(params)
        every = self.unfreeze_every or 0
        return {
            name: 0.0 if name in frozen or step < depth * every else self.layer_decay**depth
            for depth, layer in enumerate(layers(params))
            for name in layer
        }

    def fresh(self, names: Sequence[str]) -> list[str]:
        """Return the names of the tensors that every task starts with anew."""
        return head_of(names) if self.new_head else []
