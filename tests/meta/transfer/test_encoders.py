"""Encoders and the decoder in float64: beside independent computations of each sample, and finite differences."""

import numpy as np
import pytest
import torch
from torch import nn

from metarl.errors import ConfigError, UnknownNameError
from metarl.meta.transfer import model  # noqa: F401  (registers the encoders)
from metarl.meta.transfer.encoder import ENCODERS, Seen, Sizes, make_encoder
from metarl.meta.transfer.hypernetwork import Hypernetwork
from metarl.params import expand, stack

N_TASKS, N, K = 3, 5, 2
SIZES = Sizes(inputs=3, outputs=2, latent=K)
SMALL = {"context": {"net_arch": [6, 5]}, "nonlinear": {"net_arch": [6, 5], "hyper_arch": [7]}}
SMALL |= {"linear": {"net_arch": [6, 5]}, "recurrent": {"hidden_size": 6}}
POOLING = ("mean", "max", "transformer")
SMALL |= {name: {"net_arch": [6, 5, 4]} for name in POOLING}
NAMES = sorted(SMALL)


def build(name, sizes=SIZES, **kwargs):
    """Return an encoder with smooth layers, its tensors away from where they begin, and a support, in float64."""
    smooth = {} if name == "recurrent" else {"activation_fn": "tanh"}
    encoder = make_encoder(name, sizes, {**SMALL[name], **smooth, **kwargs})
    generator = torch.Generator().manual_seed(1)
    params = {
        key: tensor.double() + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for key, tensor in encoder.init(generator).items()
    }
    x = torch.randn(N_TASKS, N, sizes.inputs, generator=generator, dtype=torch.float64)
    y = torch.randn(N_TASKS, N, sizes.outputs, generator=generator, dtype=torch.float64)
    if sizes.loss == "cross_entropy":
        y = nn.functional.one_hot(y.argmax(-1), sizes.outputs).double()
    return encoder, params, Seen.of(x, y)


def test_all_that_are_registered_are_tried():
    assert {name for name, cls in ENCODERS.items() if cls.decodes} == set(SMALL)


# --------------------------------------------------------------------------- of each sample, by other code
def numpy_of(params):
    return {name: tensor.numpy() for name, tensor in params.items()}


def mlp(p, name, x, n_layers, activation=np.tanh):
    for i in range(n_layers):
        x = p[f"{name}.{i}.weight"] @ (activation(x) if i else x) + p[f"{name}.{i}.bias"]
    return x


def slope(function, at, h=1e-6):
    """Return the gradient of a scalar function by central differences."""
    steps = h * np.eye(at.size)
    return np.array([(function(at + step) - function(at - step)) / (2 * h) for step in steps])


def of_sample(name, p, x, y):
    """Return one sample's part of z, for encoders that are a mean or a maximum over samples."""
    if name == "context":
        return slope(lambda z: np.square(mlp(p, "learner", np.concatenate([x, z]), 3) - y).sum(), p["z"])
    shapes = {"learner.0": (6, 3), "learner.1": (5, 6), "learner.2": (2, 5)}

    def loss(theta):
        own, start = {}, 0
        for layer, (n_out, n_in) in shapes.items():
            own[f"{layer}.weight"] = theta[start : start + n_out * n_in].reshape(n_out, n_in)
            start += n_out * n_in
            own[f"{layer}.bias"] = theta[start : start + n_out]
            start += n_out
        return np.square(mlp(own, "learner", x, 3) - y).sum()

    if name == "nonlinear":
        return slope(lambda z: loss(mlp(p, "hyper", z, 2)), p["z"])
    if name == "linear":
        theta = np.concatenate([p[f"{layer}.{kind}"].ravel() for layer in shapes for kind in ("weight", "bias")])
        return p["V"] @ slope(loss, theta)
    return mlp(p, "each", np.concatenate([x, y]), 4)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("transformer", "recurrent")])
def test_z_is_what_each_sample_says_by_itself(name):
    encoder, params, seen = build(name)
    z, p = encoder(params, seen).detach().numpy(), numpy_of(params)
    for task in range(N_TASKS):
        each = [of_sample(name, p, x, y) for x, y in zip(seen.x[task].numpy(), seen.y[task].numpy(), strict=True)]
        expected = np.max(each, 0) if name == "max" else np.mean(each, 0)
        np.testing.assert_allclose(z[task], expected, rtol=1e-7, atol=1e-8)


def test_the_transformer_is_an_average_by_products_of_each_two():
    encoder, params, seen = build("transformer")
    p, z = numpy_of(params), encoder(params, seen).detach().numpy()
    for task in range(N_TASKS):
        each = [of_sample("mean", p, x, y) for x, y in zip(seen.x[task].numpy(), seen.y[task].numpy(), strict=True)]
        rows = []
        for e in each:
            weights = np.exp([mlp(p, "query", e, 1) @ mlp(p, "key", other, 1) for other in each])
            values = np.array([mlp(p, "value", other, 1) for other in each])
            rows.append((weights / weights.sum()) @ values)
        np.testing.assert_allclose(z[task], np.mean(rows, 0), rtol=1e-10)


def test_the_recurrent_encoder_is_pytorchs_gru():
    encoder, params, seen = build("recurrent")
    gru = nn.GRU(5, 6, batch_first=True).double()
    layers = {"weight_ih_l0": "reads.0.weight", "bias_ih_l0": "reads.0.bias"}
    layers |= {"weight_hh_l0": "keeps.0.weight", "bias_hh_l0": "keeps.0.bias"}
    gru.load_state_dict({theirs: params[ours] for theirs, ours in layers.items()})
    _, last = gru(seen.pairs)
    expected = last[0] @ params["says.0.weight"].mT + params["says.0.bias"]
    torch.testing.assert_close(encoder(params, seen), expected, rtol=1e-12, atol=1e-12)
    backwards = encoder(params, Seen.of(seen.x.flip(1), seen.y.flip(1)))
    assert not torch.allclose(backwards, expected, rtol=1e-3)


def test_classes_have_the_cross_entropy():
    encoder, params, seen = build("context", Sizes(3, 4, K, "cross_entropy"))
    z, p = encoder(params, seen).detach().numpy(), numpy_of(params)

    def loss(z, x, y):
        logits = mlp(p, "learner", np.concatenate([x, z]), 3)
        return np.log(np.exp(logits).sum()) - logits @ y

    pairs = zip(seen.x[1].numpy(), seen.y[1].numpy(), strict=True)
    expected = np.mean([slope(lambda z, x=x, y=y: loss(z, x, y), p["z"]) for x, y in pairs], 0)
    np.testing.assert_allclose(z[1], expected, rtol=1e-7)


# ------------------------------------------------------------------------------------------------------- invariances
@pytest.mark.parametrize("name", [name for name in NAMES if name != "recurrent"])
def test_the_order_of_the_support_does_not_matter_nor_for_the_gradient(name):
    encoder, params, seen = build(name)
    order = torch.tensor([3, 0, 4, 2, 1])
    found = []
    for each in (seen, Seen.of(seen.x[:, order], seen.y[:, order])):
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in params.items()}
        z = encoder(leaves, each)
        gradient = torch.autograd.grad(z.sin().sum(), list(leaves.values()), materialize_grads=True)
        found.append([z, *gradient])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_tasks_side_by_side_are_tasks_one_by_one_with_shared_tensors_or_their_own(name):
    encoder, params, seen = build(name)
    whole = encoder(params, seen)
    alone = [encoder(params, Seen.of(seen.x[i : i + 1], seen.y[i : i + 1])) for i in range(N_TASKS)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(encoder(expand(params, N_TASKS), seen), whole, rtol=1e-12, atol=1e-13)
    others = [{key: (1 + i) * tensor for key, tensor in params.items()} for i in range(N_TASKS)]
    own = [encoder(each, Seen.of(seen.x[i : i + 1], seen.y[i : i + 1])) for i, each in enumerate(others)]
    torch.testing.assert_close(encoder(stack(others), seen), torch.cat(own), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_of_nothing_z_is_0(name):
    encoder, params, seen = build(name)
    assert torch.equal(encoder(params, Seen.of(seen.x[:, :0], seen.y[:, :0])), torch.zeros(N_TASKS, K).double())


# -------------------------------------------------------------------------------------------------------- derivatives
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_through_encoder_and_decoder_is_that_of_finite_differences(name):
    encoder, params, seen = build(name)
    shapes = {"weight": (2, 3), "bias": (2,)}
    decoder = Hypernetwork("psi", shapes, K, [4], "tanh", "naive")
    generator = torch.Generator().manual_seed(2)
    params |= {key: tensor.double() for key, tensor in decoder.init(generator, {}).items()}

    def loss(params):
        psi = decoder(params, encoder(params, seen))
        return (torch.einsum("toi,tni->tno", psi["weight"], seen.x) + psi["bias"][:, None]).sin().square().mean()

    leaves = {key: tensor.clone().requires_grad_() for key, tensor in params.items()}
    gradient = dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))
    for seed in range(2):
        generator.manual_seed(seed)
        way = {key: torch.randn(t.shape, generator=generator, dtype=torch.float64) for key, t in params.items()}
        h = 1e-5
        ahead, behind = ({key: t + sign * h * way[key] for key, t in params.items()} for sign in (1, -1))
        with torch.no_grad():
            expected = float(loss(ahead) - loss(behind)) / (2 * h)
        found = sum(float((gradient[key] * way[key]).sum()) for key in params)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-10)


@pytest.mark.parametrize("name", ["context", "nonlinear", "linear"])
def test_to_first_order_the_gradient_of_the_support_is_a_constant(name):
    encoder, params, seen = build(name)
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in params.items()}
    first, second = encoder(leaves, seen, second_order=False), encoder(leaves, seen)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    assert second.requires_grad
    if name != "linear":
        assert not first.requires_grad
        return
    found = torch.autograd.grad(first.sum(), list(leaves.values()), allow_unused=True)
    of_v, *others = found
    assert all(each is None for each in others)
    whole = torch.autograd.grad(second.sum(), leaves["V"])[0]
    torch.testing.assert_close(of_v, whole)


# ---------------------------------------------------------------------------------------------------------- decoder
def test_the_decoder_is_a_network_whose_output_is_cut_into_tensors():
    shapes = {"a": (2, 3), "b": (4,)}
    decoder = Hypernetwork("psi", shapes, 2, [5], init="naive")
    params = decoder.init(torch.Generator().manual_seed(0), {})
    z = torch.randn(3, 2)
    flat = nn.functional.relu(z @ params["psi.0.weight"].mT + params["psi.0.bias"])
    flat = flat @ params["psi.1.weight"].mT + params["psi.1.bias"]
    decoded = decoder(params, z)
    torch.testing.assert_close(decoded["a"], flat[:, :6].reshape(3, 2, 3))
    torch.testing.assert_close(decoded["b"], flat[:, 6:])


def test_with_bias_init_all_latents_begin_with_the_modules_own_initialisation():
    base = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    decoder = Hypernetwork("psi", {name: t.shape for name, t in base.items()}, 2)
    params = decoder.init(torch.Generator().manual_seed(0), base)
    for name, tensor in decoder(params, torch.randn(5, 2)).items():
        assert torch.equal(tensor, base[name].expand(5, *base[name].shape))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: make_encoder("contxt", SIZES, {}), UnknownNameError, "encoder 'contxt'.*'context'"),
        (lambda: make_encoder("mean", SIZES, {"hidden": 3}), UnknownNameError, "argument of encoder 'mean': 'hidden'"),
        (lambda: make_encoder("mean", SIZES, {"net_arch": "64"}), ConfigError, "net_arch='64' is not a list"),
        (lambda: make_encoder("mean", SIZES, {"net_arch": [0]}), ConfigError, "net_arch"),
        (lambda: Hypernetwork("psi", {"a": (2,)}, 2, init="zero"), ConfigError, "init='zero'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
