"""Which tensors are a layer, from the head downwards."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from metarl.agents.networks.layers import layers
from metarl.agents.networks.policy import FunctionalPolicy


def modules(name: str, space: spaces.Box, critic: bool = False, **kwargs: object) -> list[list[str]]:
    """Return the modules of each layer of a policy."""
    policy = FunctionalPolicy(name, space, spaces.Box(-1.0, 1.0, (2,), np.float32), kwargs, critic=critic)
    return [list(dict.fromkeys(each.rpartition(".")[0] or each for each in layer)) for layer in layers(policy.init(0))]


def test_actor_and_critic_that_are_equally_far_from_the_head_are_one_layer() -> None:
    space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    arch = {"pi": [4, 4], "vf": [4]}
    assert modules("MlpPolicy", space, critic=True, net_arch=arch) == [
        ["log_std", "action_net", "value_net"],
        ["mlp_extractor.policy_net.2", "mlp_extractor.value_net.0"],
        ["mlp_extractor.policy_net.0"],
    ]


def test_what_is_shared_is_below_and_batch_norm_belongs_to_its_convolution() -> None:
    space = spaces.Box(0.0, 1.0, (1, 16, 16), np.float32)
    found = modules("FewShotCnnPolicy", space, net_arch=[4], features_extractor_kwargs={"n_filters": 2})
    convolutions = [[f"features_extractor.cnn.{i}", f"features_extractor.cnn.{i + 1}"] for i in (12, 8, 4, 0)]
    assert found == [["log_std", "action_net"], ["mlp_extractor.policy_net.0"], *convolutions]
