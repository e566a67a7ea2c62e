"""Convolution networks against SB3's and PyTorch's own modules, and their derivatives in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from metarl.agents.derivatives.unrolled import UnrolledPath
from metarl.agents.networks.base import NETWORKS, register_network
from metarl.agents.networks.cnn import ConvNetwork
from metarl.agents.networks.policy import POLICIES, FunctionalPolicy
from metarl.errors import MetaRLError
from metarl.params import Params, expand, group, grouped
from tests.agents.derivatives.problems import close, head_loss, normal, numeric_gradient, random_like

IMAGES = spaces.Box(0, 255, (3, 36, 36), np.uint8)
FLOATS = spaces.Box(-1.0, 1.0, (1, 16, 16), np.float32)
ACTIONS = {"box": spaces.Box(-1.0, 1.0, (2,)), "discrete": spaces.Discrete(2)}
TASKS, COUNTS = 2, (4, 4)


def nature(action: str = "discrete", critic: bool = True, **kwargs: Any) -> FunctionalPolicy:
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}, **kwargs}
    return FunctionalPolicy("CnnPolicy", IMAGES, ACTIONS[action], kwargs, critic=critic)


def few_shot(action: str = "discrete", statistics: str = "batch", critic: bool = False) -> FunctionalPolicy:
    kwargs = {"features_extractor_kwargs": {"n_filters": 4, "batch_statistics": statistics}}
    return FunctionalPolicy("FewShotCnnPolicy", FLOATS, ACTIONS[action], kwargs, critic=critic)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (*shape, 3, 36, 36), dtype=np.uint8))


def smooth(policy: FunctionalPolicy) -> FunctionalPolicy:
    """Take the kinks away, at which differences are no derivatives; what is tested is how layers are put together."""
    other = {nn.ReLU: nn.Softplus(beta=2.0), nn.MaxPool2d: nn.AvgPool2d(2)}
    network = policy.network
    assert isinstance(network, ConvNetwork)
    network._layers = [(name, other.get(type(layer), layer)) for name, layer in network._layers]
    return policy


def stacked(policy: FunctionalPolicy, n_tasks: int = TASKS) -> Params:
    params = {name: tensor.double() for name, tensor in expand(policy.init(1), n_tasks).items()}
    noise = random_like(params, 3)
    return {n: t if n.startswith("statistics/") else t + 0.1 * noise[n] for n, t in params.items()}


@pytest.mark.parametrize("net_arch", [None, {"pi": [6], "vf": [5]}])
@pytest.mark.parametrize("action", ACTIONS)
def test_cnn_policy_is_sb3s(action: str, net_arch: Any) -> None:
    policy = nature(action, net_arch=net_arch)
    params, obs = policy.init(2), images(5)
    module = policy.build(2)
    assert list(params) == policy.names == [name for name, _ in module.named_parameters()]
    assert policy.network.stock
    assert all(torch.equal(tensor, params[name]) for name, tensor in module.named_parameters())
    with torch.no_grad():
        theirs, values = module.get_distribution(obs).mode(), module.predict_values(obs)[:, 0]
        log_prob = module.get_distribution(obs).log_prob(theirs)
    ours = policy.distribution(params, obs)
    torch.testing.assert_close(ours.mode(), theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.log_prob(theirs), log_prob, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(policy.values(params, obs), values, rtol=1e-5, atol=1e-6)
    # Collectors hand over the same numbers as float32.
    torch.testing.assert_close(policy.distribution(params, obs.float()).heads, ours.heads, rtol=0, atol=0)
    alone = nature(action, critic=False, net_arch=net_arch)
    assert [name for name in policy.names if "value_net" not in name] == alone.names
    raw = nature(action, net_arch=net_arch, normalize_images=False)
    torch.testing.assert_close(raw.distribution(params, obs / 255.0).mode(), ours.mode(), rtol=1e-5, atol=1e-6)


def test_a_stack_is_its_tasks_side_by_side_or_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = nature("box")
    params, obs = stacked(policy), images(TASKS, 3)
    loss = head_loss("squared error", counts=(3, 3))
    found = {}
    for limit in (0, 10**9):
        monkeypatch.setattr("metarl.agents.networks.cnn.VMAP_BYTES", limit)
        with torch.inference_mode():
            mode = policy.distribution(params, obs).mode()
        for task in range(TASKS):
            own = {name: tensor[task] for name, tensor in params.items()}
            torch.testing.assert_close(mode[task], policy.distribution(own, obs[task]).mode(), rtol=1e-9, atol=1e-12)
        derivatives = policy.differentiate(params, obs, loss, second_order=True)
        found[limit] = derivatives.gradient, derivatives.product(random_like(params, 4))
    for one, other in zip(found[0], found[10**9], strict=True):
        close(one, other, 1e-9)


def check_derivatives(policy: FunctionalPolicy, obs: torch.Tensor, kind: str, names: list[str]) -> None:
    """Gradient, Hessian and heads' derivatives of whole stacks against finite differences in a few tensors."""
    params = stacked(smooth(policy))
    loss = head_loss(kind, counts=COUNTS)
    found = policy.differentiate(params, obs, loss, second_order=True)
    vector = random_like(params, 5)
    for name in policy.network.buffers:
        vector[f"statistics/{name}"].zero_()  # nothing is differentiated in them
    product = found.product(vector)
    function = policy.loss_function(obs, loss)
    torch.testing.assert_close(found.losses, function(params).detach(), rtol=1e-12, atol=1e-14)
    for name in names:

        def moved(tensor: torch.Tensor, name: str = name) -> torch.Tensor:
            return function({**params, name: tensor}).sum().detach()

        close({name: found.gradient[name]}, {name: numeric_gradient(moved, params[name], 1e-3)}, 1e-7, floor=1e-9)

    def along(step: float) -> Params:
        moved = {name: tensor + step * vector[name] for name, tensor in params.items()}
        return policy.differentiate(moved, obs, loss).gradient

    eps = 1e-5
    above, below = along(eps), along(-eps)
    close(product, {name: (above[name] - below[name]) / (2.0 * eps) for name in params}, 1e-6, floor=1e-7)
    linear = policy.linearize(params, obs)
    heads = [
        policy.distribution({name: t + step * vector[name] for name, t in params.items()}, obs).heads
        for step in (eps, -eps)
    ]
    change = linear.jvp(vector)
    for ours, up, down in zip(change, *heads, strict=True):
        close({"": ours}, {"": (up - down) / (2.0 * eps)}, 1e-7)
    cotangents = tuple(normal(*head.shape, seed=9) for head in change)
    back = linear.vjp(cotangents)
    forwards = sum(float((c * h).sum()) for c, h in zip(cotangents, change, strict=True))
    assert sum(float((back[name] * vector[name]).sum()) for name in params) == pytest.approx(forwards, rel=1e-10)


@pytest.mark.parametrize("kind", ["gaussian", "cross-entropy"])
def test_derivatives_of_sb3s_network(kind: str) -> None:
    policy = nature("box" if kind == "gaussian" else "discrete")
    names = ["action_net.bias", "value_net.weight"]
    check_derivatives(policy, images(TASKS, 4), kind, names)


@pytest.mark.parametrize("kind", ["squared error", "categorical"])
def test_derivatives_through_the_statistics_of_a_batch(kind: str) -> None:
    policy = few_shot("box" if kind == "squared error" else "discrete", critic=kind == "categorical")
    names = ["features_extractor.cnn.0.weight", "features_extractor.cnn.5.weight", "action_net.bias"]
    check_derivatives(policy, normal(TASKS, 4, 1, 16, 16), kind, names)


def test_derivatives_at_running_statistics() -> None:
    policy = few_shot(statistics="running")
    check_derivatives(policy, normal(TASKS, 4, 1, 16, 16), "cross-entropy", ["features_extractor.cnn.1.bias"])
    params, obs = stacked(policy), normal(TASKS, 4, 1, 16, 16)
    gradient = policy.differentiate(params, obs, head_loss("cross-entropy", counts=COUNTS)).gradient
    assert list(gradient) == policy.names
    assert not any(tensor.any() for name, tensor in gradient.items() if name.startswith("statistics/"))


@pytest.mark.parametrize("side", [17, 28])
def test_strided_convolutions_are_the_module_pytorch_has(side: int) -> None:
    kwargs = {"n_filters": 3, "strided": True}
    space = spaces.Box(0, 255, (1, side, side), np.uint8)
    policy = FunctionalPolicy(
        "FewShotCnnPolicy", space, spaces.Discrete(4), {"features_extractor_kwargs": kwargs}, critic=False
    )
    params, obs = policy.init(1), torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 1, side, side)))
    module = policy.build(1).train()
    with torch.no_grad():
        x = obs.float() / 255.0
        for layer in (0, 3, 6, 9):
            conv, norm = (module.features_extractor.cnn[layer + i] for i in (0, 1))
            x = torch.relu(norm(torch.nn.functional.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)))
        logits = module.action_net(x.mean((2, 3)))
    assert "features_extractor.cnn.9.weight" in params
    torch.testing.assert_close(policy.distribution(params, obs.to(torch.uint8)).heads[0], logits, rtol=1e-4, atol=1e-5)
    stack = {name: torch.stack([tensor, 2.0 * tensor]) for name, tensor in params.items()}
    found = policy.differentiate(
        stack, torch.stack([obs, obs]).to(torch.uint8), lambda d, values: -d.log_prob(torch.zeros(2, 6).long()).mean(1)
    )
    assert all(bool(part.isfinite().all()) for part in found.gradient.values())


def test_running_statistics_move_as_pytorchs_do() -> None:
    policy = few_shot(statistics="running")
    params, obs = stacked(policy), normal(TASKS, 5, 1, 16, 16)
    moved = policy.moved_statistics(policy.moved_statistics(params, obs), 2.0 * obs)
    for task in range(TASKS):
        module = policy.build(0).double().train()
        own = dict(module.named_parameters())
        with torch.no_grad():
            for name, tensor in params.items():
                if name in own:
                    own[name].copy_(tensor[task])
            for batch in (obs, 2.0 * obs):
                features = module.features_extractor(batch[task])
        expected = {n: t for n, t in module.named_buffers() if "num_batches" not in n and n.startswith("features_")}
        close({name: t[task] for name, t in group(moved, "statistics/").items()}, expected)
        # What was computed in training is what the policy says without statistics.
        plain = {name: tensor[task] for name, tensor in params.items() if not name.startswith("statistics/")}
        logits = module.action_net(features)
        torch.testing.assert_close(policy.distribution(plain, 2.0 * obs[task]).heads[0], logits, rtol=1e-9, atol=1e-12)
        module.eval()
        logits = module.action_net(module.features_extractor(obs[task]))
        own_moved = {name: tensor[task] for name, tensor in moved.items()}
        torch.testing.assert_close(policy.distribution(own_moved, obs[task]).heads[0], logits, rtol=1e-9, atol=1e-12)
    plain = few_shot()
    assert plain.moved_statistics(params, obs).keys() == params.keys()
    assert [name for name in policy.names if not name.startswith("statistics/")] == plain.names
    assert grouped(policy.network.buffers, "statistics/").keys() == set(policy.names) - set(plain.names)


def test_an_unrolled_path_through_a_batchs_statistics_is_the_chain_of_products() -> None:
    policy = few_shot()
    params, obs = stacked(policy), [normal(TASKS, 4, 1, 16, 16, seed=i) for i in range(3)]
    loss = head_loss("cross-entropy", counts=COUNTS)
    path = UnrolledPath([policy.loss_function(each, loss) for each in obs[:2]], [0.1, 0.1])
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    value = path.then(policy.loss_function(obs[2], loss))(leaves).sum()
    found = dict(zip(params, torch.autograd.grad(value, list(leaves.values())), strict=True))
    steps, theta = [], params
    for each in obs[:2]:
        steps.append(policy.differentiate(theta, each, loss, second_order=True))
        theta = {name: tensor - 0.1 * steps[-1].gradient[name] for name, tensor in theta.items()}
    chain = policy.differentiate(theta, obs[2], loss).gradient
    for step in reversed(steps):
        product = step.product(chain)
        chain = {name: tensor - 0.1 * product[name] for name, tensor in chain.items()}
    close(found, chain, 1e-8)


class Strided(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 32)
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 4, stride=4), nn.ReLU(), nn.Flatten())

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(observations)
        return features


class StridedPolicy(ActorCriticPolicy):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=Strided, **kwargs)


def test_a_network_of_ones_own_is_registered_and_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NETWORKS, "_items", dict(NETWORKS))

    @register_network("StridedPolicy")
    class StridedNetwork(ConvNetwork):
        module_class, stock, extractor_class, smallest = StridedPolicy, False, Strided, 16

        @classmethod
        def takes_any_box(cls) -> bool:
            return True

    assert StridedNetwork.name in POLICIES
    assert POLICIES["StridedPolicy"] is StridedPolicy
    policy = FunctionalPolicy("StridedPolicy", FLOATS, ACTIONS["discrete"], {"net_arch": [3]}, critic=True)
    assert policy.names == [name for name, _ in policy.build(0).named_parameters()]
    names = ["features_extractor.layers.0.weight", "mlp_extractor.policy_net.0.bias"]
    check_derivatives(policy, normal(TASKS, 4, 1, 16, 16), "cross-entropy", names)


@pytest.mark.parametrize(
    ("policy", "space", "kwargs", "message"),
    [
        ("CnnPolicy", FLOATS, {}, "is not supported: CnnPolicy takes images"),
        ("CnnPolicy", spaces.Box(-1.0, 1.0, (3,)), {}, "is not supported: CnnPolicy takes images"),
        ("CnnPolicy", spaces.Box(0, 255, (36, 36, 3), np.uint8), {}, r"images are \[channel, height, width\]"),
        ("CnnPolicy", spaces.Box(0, 255, (1, 35, 36), np.uint8), {}, "at least 36 by 36"),
        ("FewShotCnnPolicy", spaces.Box(0.0, 1.0, (1, 15, 16)), {}, "at least 16 by 16"),
        ("FewShotCnnPolicy", spaces.Discrete(3), {}, "is not supported"),
        ("CnnPolicy", IMAGES, {"features_extractor_kwargs": {"features_dim": 0}}, "features_dim=0"),
        ("CnnPolicy", IMAGES, {"features_extractor_kwargs": {"feature_dim": 3}}, "did you mean 'features_dim'"),
        ("CnnPolicy", IMAGES, {"features_extractor_kwargs": 3}, "features_extractor_kwargs=3 is not a mapping"),
        ("CnnPolicy", IMAGES, {"features_extractor_kwargs": {"normalized_image": True}}, "normalize_images=False"),
        ("CnnPolicy", IMAGES, {"features_extractor_class": torch.nn.Linear}, "features_extractor_class"),
        ("CnnPolicy", IMAGES, {"share_features_extractor": False}, "share_features_extractor=False"),
        ("CnnPolicy", IMAGES, {"features_extractor_kwargs": {"features_dim": 10**9}}, "weights"),
        ("CnnPolicy", spaces.Box(0, 255, (1, 600, 600), np.uint8), {}, "weights: 100,000,000 are the most"),
        ("FewShotCnnPolicy", FLOATS, {"features_extractor_kwargs": {"batch_statistics": "none"}}, "batch_statistics"),
        ("FewShotCnnPolicy", FLOATS, {"features_extractor_kwargs": {"n_filters": 10**5}}, "are the most"),
        ("FewShotCnnPolicy", FLOATS, {"features_extractor_kwargs": {"strided": 2}}, "strided=2"),
        ("FewShotCnnPolicy", FLOATS, {"features_extractor_kwargs": {"strided": True}}, "it takes sides above 16"),
    ],
)
def test_what_they_do_not_take_is_said_in_one_line(
    policy: str, space: spaces.Space[Any], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(MetaRLError, match=message) as caught:
        FunctionalPolicy(policy, space, ACTIONS["discrete"], kwargs)
    assert "\n" not in str(caught.value)
