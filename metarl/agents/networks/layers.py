"""Which tensors of a policy belong to which of its layers, by the names that SB3 gives them."""

from __future__ import annotations

from collections.abc import Collection

from metarl.params import Params

HEAD = ("action_net", "value_net", "log_std")
"""The modules of SB3's policies that the last layers are."""
TOWERS = ("mlp_extractor.policy_net", "mlp_extractor.value_net")
"""The modules that stand side by side between what is shared and the head."""


def head_of(names: Collection[str]) -> list[str]:
    """Return those of ``names`` that belong to the head."""
    return [name for name in names if name in HEAD or name.rpartition(".")[0] in HEAD]


def layers(params: Params) -> list[list[str]]:
    """Return the names of a policy's tensors layer by layer, from the head downwards.

    The layers of actor and critic that are equally far from the head are one, and batch norm belongs to the
    convolution before it. What is no layer, such as a context, is left out.

    :param params: of one task, in the order in which observations meet them.
    """
    head = head_of(params)
    modules: dict[str, list[str]] = {}
    for name in params:
        if name not in head and "/" not in name:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    shared: list[list[str]] = []
    towers: dict[str, list[list[str]]] = {tower: [] for tower in TOWERS}
    for module, names in modules.items():
        chain = next((known for tower, known in towers.items() if module.startswith(f"{tower}.")), shared)
        weight = params.get(f"{module}.weight")
        if chain and weight is not None and weight.ndim == 1:
            chain[-1] += names
        else:
            chain.append(names)
    height = max(map(len, towers.values()))
    levels = [
        [name for chain in towers.values() if level < len(chain) for name in chain[-1 - level]]
        for level in range(height)
    ]
    return [each for each in (head, *levels, *reversed(shared)) if each]
