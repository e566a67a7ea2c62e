"""LEO: gradients end to end equal finite differences, what is decoded has its shapes, and one gradient is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarl.errors import ConfigError, MetaRLError
from metarl.meta.adaptation.base import Streams
from metarl.meta.algorithms.leo import LEO
from metarl.meta.base import load
from metarl.meta.progress import Timer
from metarl.meta.transfer.embedding.model import Noise
from metarl.meta.transfer.encoder import Seen
from metarl.params import Params, dot
from metarl.streams import stream
from tests.agents.pictures import Patterns
from tests.contract.kinds import WalkHomeDiscrete
from tests.meta.small import copy, equal, run_iterations

SMALL: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [4], "activation_fn": "tanh"},
    "n_latent": 3,
    "net_arch": [5],
    "n_latent_steps": 2,
    "n_finetune_steps": 2,
    "n_support": 4,
    "meta_batch_size": 3,
    "n_threads": 1,
}
FAMILIES: dict[str, Any] = {"numbers": "Sinusoid-v0", "classes": WalkHomeDiscrete}


def make(kind: str = "numbers", **kwargs: Any) -> LEO:
    family = FAMILIES[kind]
    return LEO("MlpPolicy", family if isinstance(family, str) else family(), **{**SMALL, **kwargs})


def problem(kind: str, **kwargs: Any) -> tuple[LEO, Params, Any, Any, Noise]:
    """Return a model, perturbed meta-parameters, and a support, a query and noise in float64."""
    model = make(kind, latent_lr=0.3, finetune_lr=0.2, decoder_std=0.1, **kwargs)
    block = model._blocks(model._sample_tasks(), model.rates, Streams(0, "train"), model._amount(None, None))[0]
    outcome = block.learn(model.theta, Timer(), query=True)
    assert outcome.query is not None
    generator = torch.Generator().manual_seed(1)
    meta = {
        n: t.double() + 0.1 * torch.randn(t.shape, generator=generator, dtype=torch.float64)
        for n, t in model.params.items()
    }
    noise = model._noise(block)
    support = [batch.to(torch.float64) for batch in outcome.support]
    return model, meta, support, outcome.query.to(torch.float64), Noise(noise.latent.double(), noise.tensors.double())


@pytest.mark.parametrize(("kind", "longest"), [*((kind, None) for kind in FAMILIES), ("numbers", 0.2)])
def test_gradients_through_both_levels_of_steps_equal_finite_differences(kind: str, longest: float | None) -> None:
    # Each coefficient is large, so that none is missed; what a gradient is stopped in has a test of its own.
    sizes = {"kl_coef": 0.5, "encoder_coef": 0.0, "l2_coef": 0.1, "orthogonality_coef": 0.7, "max_latent_step": longest}
    model, meta, support, query, noise = problem(kind, **sizes)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in meta.items()}
    losses = model.losses(leaves, support, query, noise)
    assert losses.shape == (3,)
    found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    gradient = dict(zip(leaves, found, strict=True))
    # Everything is meta-learnt, both rates included; of the policy's own layers those that classes share.
    assert [name for name, slope in gradient.items() if not slope.any() and "log_std" not in name] == []
    generator = torch.Generator().manual_seed(2)
    for part in ("encoder/", "decoder/", "policy/", "encoder/latent_lr", "decoder/finetune_lr"):
        v = {
            n: torch.randn(t.shape, generator=generator, dtype=torch.float64) * float(n.startswith(part))
            for n, t in meta.items()
        }
        at = [
            float(model.losses({n: t + k * 1e-4 * v[n] for n, t in meta.items()}, support, query, noise).detach().sum())
            for k in (-2, -1, 1, 2)
        ]
        numeric = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / 12e-4
        assert dot(gradient, v) == pytest.approx(numeric, rel=1e-6, abs=1e-8)


def test_the_encoder_is_drawn_to_where_steps_lead_and_not_the_other_way() -> None:
    model, meta, support, query, noise = problem("numbers", encoder_coef=1.0)
    plain = make("numbers", encoder_coef=0.0)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in meta.items()}
    distance = model.losses(leaves, support, query, noise) - plain.losses(leaves, support, query, noise)
    names = ["encoder/latent_lr", "decoder/mean.weight", "encoder/embedding.weight"]
    wanted = [leaves[name] for name in names]
    rate, decoder, encoder = torch.autograd.grad(distance.sum(), wanted, materialize_grads=True)
    torch.testing.assert_close(rate, torch.zeros_like(rate), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(decoder, torch.zeros_like(decoder), rtol=0.0, atol=1e-12)
    # The gradient in z is 2 (z − z')/k.
    found = model._embedding.embedded(leaves, model._embedding.seen(support), noise)
    pull = 2.0 * (found.first - found.last).detach() / found.first[0].numel()
    (expected,) = torch.autograd.grad((pull * found.first).sum(), [leaves["encoder/embedding.weight"]])
    torch.testing.assert_close(encoder, expected)
    assert bool(expected.any())


# ------------------------------------------------------------------------------------------------- what is decoded
def test_of_numbers_one_latent_is_decoded_to_the_whole_network() -> None:
    model = make("numbers")
    own = model._embedding
    shapes = {name: tuple(tensor.shape) for name, tensor in own.fresh.items()}
    n = sum(tensor.numel() for tensor in own.fresh.values())
    assert model.params["decoder/mean.weight"].shape == model.params["decoder/std.weight"].shape == (n, 3)
    decoded = own.decoded(model.params, torch.randn(2, 1, 3), torch.randn(2, 1, n))
    assert {name: tuple(tensor.shape) for name, tensor in decoded.items()} == {k: (2, *s) for k, s in shapes.items()}
    # Where nothing was seen z is 0, and the network its own initialisation.
    fresh = own.policy.init(int(stream(model.seed, "policy").integers(2**31)))
    assert equal(model.policy_params, fresh)


def test_of_classes_each_has_a_latent_that_is_decoded_to_its_row() -> None:
    model = make("classes")
    own = model._embedding
    assert own.n_classes == 3
    assert model.params["decoder/mean.weight"].shape == (4 + 1, 3)
    assert "policy/mlp_extractor.policy_net.0.weight" in model.params
    assert "policy/action_net.weight" not in model.params
    z = torch.randn(2, 3, 3)
    decoded = own.decoded(model.params, z)
    assert {n: tuple(t.shape) for n, t in decoded.items()} == {
        "action_net.weight": (2, 3, 4),
        "action_net.bias": (2, 3),
    }
    moved = z.clone()
    moved[:, 1] += 1.0
    changed = (own.decoded(model.params, moved)["action_net.weight"] != decoded["action_net.weight"]).any(-1)
    assert changed.tolist() == [[False, True, False]] * 2


def test_a_class_that_nothing_was_seen_of_has_the_prior() -> None:
    model = make("classes")
    own = model._embedding
    x = torch.randn(1, 4, own.sizes.inputs)
    y = torch.nn.functional.one_hot(torch.tensor([[0, 0, 2, 0]]), 3).float()
    mean, log_std = own.encoded(model.params, Seen.of(x, y))
    assert not mean[:, 1].any()
    assert not log_std[:, 1].any()
    # Others are means over pairs, with any order of examples.
    order = [2, 0, 3, 1]
    again = own.encoded(model.params, Seen.of(x[:, order], y[:, order]))
    torch.testing.assert_close(again[0], mean)
    features = own.features(model.params, Seen.of(x, y))
    h = features[0] @ model.params["encoder/embedding.weight"].T
    relation = {n.removeprefix("encoder/"): t for n, t in model.params.items()}
    expected = torch.stack([own._relation(relation, torch.cat([h[2], each])[None, None])[0, 0] for each in h]).mean(0)
    torch.testing.assert_close(torch.cat([mean[0, 2], log_std[0, 2]]), expected, rtol=1e-4, atol=1e-6)


def test_columns_that_are_orthogonal_cost_nothing() -> None:
    model = make("numbers")
    meta = copy(model.params)
    meta["decoder/std.weight"] = torch.zeros_like(meta["decoder/std.weight"])
    meta["decoder/mean.weight"] = 2.0 * torch.eye(len(meta["decoder/mean.weight"]))[:, :3]
    assert float(model._embedding.orthogonality(meta)) == pytest.approx(0.0, abs=1e-12)
    meta["decoder/mean.weight"][:, 1] = meta["decoder/mean.weight"][:, 0]
    assert float(model._embedding.orthogonality(meta)) == pytest.approx(2.0 / 9.0)


# ------------------------------------------------------------------------------------------------------- as a wrapper
def test_steps_go_down_the_support_s_loss_in_both_spaces() -> None:
    losses = []
    for steps in ((0, 0), (5, 0), (5, 5)):
        model = make("numbers", n_latent_steps=steps[0], n_finetune_steps=steps[1], latent_lr=0.05, finetune_lr=0.01)
        x = torch.linspace(-1.0, 1.0, 6).view(1, 6, 1)
        seen = Seen.of(x, torch.sin(x))
        psi = model._embedding.tensors(model.params, seen)
        losses.append(float(model._embedding.loss(psi, seen).detach()))
    assert losses[0] > losses[1] > losses[2]


def test_no_step_in_latents_is_longer_than_allowed() -> None:
    x = torch.linspace(-1.0, 1.0, 6).view(1, 6, 1)
    seen = Seen.of(x, 100.0 * torch.sin(x))
    moved = []
    for longest in (None, 0.1):
        model = make("numbers", latent_lr=1.0, max_latent_step=longest)
        found = model._embedding.embedded(model.params, seen)
        moved.append(float((found.last - found.first).detach().norm()))
    assert moved[0] > 1.0
    assert moved[1] <= 0.1 * model.n_latent_steps + 1e-6


@pytest.mark.parametrize("kind", FAMILIES)
def test_threads_and_files_change_no_bit(kind: str, tmp_path: Path) -> None:
    learnt = []
    for n_threads in (1, 3):
        model = make(kind, n_threads=n_threads)
        run_iterations(model, 1)
        again = load(model.save(tmp_path / "model"), env=model.family)
        run_iterations(again, 1), run_iterations(model, 1)
        assert equal(again.params, model.params)
        learnt.append(again.params)
    assert equal(*learnt)


def test_images_are_classified_on_features_that_tasks_share() -> None:
    kwargs: dict[str, Any] = {"features_extractor_kwargs": {"n_filters": 4}}
    model = LEO("FewShotCnnPolicy", Patterns(), **{**SMALL, "policy_kwargs": kwargs})
    before = copy(model.params)
    run_iterations(model, 2)
    name = "policy/features_extractor.cnn.0.weight"
    assert not torch.equal(before[name], model.params[name])
    assert np.isfinite(model.evaluate("test", n_tasks=2).returns).all()
    running = {"features_extractor_kwargs": {"n_filters": 4, "batch_statistics": "running"}}
    with pytest.raises(ConfigError, match="has running statistics, which no latent says"):
        LEO("FewShotCnnPolicy", Patterns(), **{**SMALL, "policy_kwargs": running})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"env": "PointMass-v0"}, "leo around 'vpg': it learns from examples with targets, as 'cloning' and 'supervis"),
        ({"learner": "sb3_ppo"}, "leo around 'sb3_ppo': a stock algorithm has no loss at a policy that is decoded"),
        ({"outer": "trpo"}, "leo with outer='trpo': no policy is shared by tasks"),
        ({"n_latent": 0}, "n_latent=0 is not"),
        ({"n_latent": None}, "n_latent=None is not"),
        ({"net_arch": "64"}, "net_arch='64' is not a list of layer sizes"),
        ({"n_latent_steps": -1}, "n_latent_steps=-1 is not"),
        ({"n_finetune_steps": 1.5}, "n_finetune_steps=1.5 is not"),
        ({"latent_lr": 0.0}, "latent_lr=0.0 is not"),
        ({"max_latent_step": 0.0}, "max_latent_step=0.0 is not"),
        ({"kl_coef": -1.0}, "kl_coef=-1.0 is not"),
        ({"encoder": "mean"}, "argument of LEO: 'encoder'"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MetaRLError, match=message) as error:
        LEO(**{**SMALL, **kwargs})
    assert "\n" not in str(error.value)
