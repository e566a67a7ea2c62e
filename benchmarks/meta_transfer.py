"""Meta-transfer against a plain loop over tasks: ``python -m benchmarks.meta_transfer [--quick] [-o FILE]``.

The loop is what one writes with PyTorch alone: for each task its examples are drawn, a support becomes z, z becomes a
network through a decoder, and the network has a loss on the query; then one backward pass over all tasks, and Adam.
Both sides have an encoder of the paper's sizes on CosineSine-v0, start from the same parameters and see the same
examples. An epoch is one step of training on a whole batch of tasks.

The loop has the streams of all tasks laid out for it at once, because who writes it has one generator and pays nothing
for them. The step of Adam is the same work for both, whatever the number of tasks: the record says how long it takes,
and the ratio without it. It says how far the gradients of both are apart at the same parameters, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.measure import SEED, Row, against_loop
from benchmarks.single import run_single
from metarl.agents.parallel import library_torch
from metarl.agents.sampling.episodes import ENV
from metarl.envs.family import draw_tasks
from metarl.meta.adaptation.base import Streams
from metarl.meta.algorithms.meta_transfer import MetaTransfer
from metarl.meta.outer.objective import KnownGradient, MetaGradient
from metarl.meta.progress import Timer
from metarl.params import Params, norm, subtract
from metarl.streams import TaskSeeds, stream

TARGET = 10.0
RATE = 5e-4
CASES = ("linear", 25), ("linear", 100), ("linear", 400), ("transformer", 100)
"""Encoders and numbers of tasks."""


class PlainLoop:
    """Meta-transfer as a loop over tasks.

    :param model: from whose parameters it starts, and whose examples it sees.
    """

    def __init__(self, model: MetaTransfer) -> None:
        self.family, self.encoder = model.family, model.encoder
        self.n_tasks, self.n_examples = model.meta_batch_size, model.n_support
        self.shapes = {name: tensor.shape for name, tensor in model.policy_params.items()}
        self.params = {name: tensor.clone().requires_grad_() for name, tensor in model.params.items()}
        self.optimizer = torch.optim.Adam(self.params.values(), RATE)
        self.n_iterations = 0

    def layers(self, name: str, x: torch.Tensor, n: int) -> torch.Tensor:
        """Return what a network of ours says."""
        for i in range(n):
            weight, bias = (self.params[f"{name}.{i}.{kind}"] for kind in ("weight", "bias"))
            x = nn.functional.linear(x.relu() if i else x, weight, bias)
        return x

    def linear(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return z: directional derivatives of a learner's loss."""
        error = nn.functional.mse_loss(self.layers("encoder/learner", x, 3), y)
        theta = [tensor for name, tensor in self.params.items() if name.startswith("encoder/learner")]
        slopes = torch.autograd.grad(error, theta, create_graph=True)
        return self.params["encoder/V"] @ torch.cat([slope.flatten() for slope in slopes])

    def transformer(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return z: a mean weighted by products of each two examples."""
        each = self.layers("encoder/each", torch.cat([x, y], dim=1), 4)
        query, key, value = (self.layers(f"encoder/{name}", each, 1) for name in ("query", "key", "value"))
        return (torch.softmax(query @ key.T, dim=1) @ value).mean(0)

    def loss(self, seen: tuple[torch.Tensor, torch.Tensor], asked: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the loss of one task."""
        z = self.linear(*seen) if self.encoder == "linear" else self.transformer(*seen)
        parts = torch.split(self.layers("decoder/psi", z, 2), [shape.numel() for shape in self.shapes.values()])
        psi = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        x, y = asked
        for layer in ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2"):
            x = nn.functional.linear(x, psi[f"{layer}.weight"], psi[f"{layer}.bias"]).relu()
        return nn.functional.mse_loss(nn.functional.linear(x, psi["action_net.weight"], psi["action_net.bias"]), y)

    def mean_loss(self) -> torch.Tensor:
        """Return the loss of one meta-iteration."""
        at, all_of_them = self.n_iterations, range(self.n_tasks)
        tasks = draw_tasks(self.family, stream(SEED, "tasks", at), self.n_tasks)
        of_support = TaskSeeds(SEED, "train/support", at, all_of_them, 0).generators()
        of_query = TaskSeeds(SEED, "train", at, all_of_them, 1).generators(ENV)
        losses = []
        for i in all_of_them:
            amplitude, phase = tasks["amplitude"][i], tasks["phase"][i]
            x = of_support[i].uniform(-5.0, 5.0, (self.n_examples, 1)).astype("float32")
            other = of_query[i].uniform(-5.0, 5.0, (self.n_examples, 1)).astype("float32")
            waves = (amplitude * torch.from_numpy(x + phase).cos(), amplitude * torch.from_numpy(other + phase).sin())
            seen, asked = ((torch.from_numpy(at), y.float()) for at, y in zip((x, other), waves, strict=True))
            losses.append(self.loss(seen, asked))
        return torch.stack(losses).mean()

    def iterate(self) -> None:
        """Do one meta-iteration."""
        loss = self.mean_loss()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.n_iterations += 1

    def gradient_at(self, params: Params, n_iterations: int) -> Params:
        """Return the gradient of a meta-iteration at other parameters; those are what the loop has from then on."""
        self.n_iterations = n_iterations
        with torch.no_grad():
            for name, tensor in self.params.items():
                tensor.copy_(params[name])
        return dict(zip(self.params, torch.autograd.grad(self.mean_loss(), list(self.params.values())), strict=True))


def gradient_of(model: MetaTransfer) -> Params:
    """Return the gradient of the next meta-iteration of a model."""
    tasks = draw_tasks(model.family, stream(SEED, "tasks", model.n_iterations), model.meta_batch_size)
    streams, amount = Streams(SEED, "train", model.n_iterations), {"n_episodes": model.n_support, "n_transitions": None}
    (block,) = model.adaptations.cut(tasks, model.rates, streams, amount, model.meta_batch_size)
    with library_torch():
        outcome = block.learn(model.theta, Timer(), query=True)
        assert outcome.query is not None
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in model.params.items()}
        loss = model.losses(leaves, outcome.support, outcome.query).mean()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def run(quick: bool) -> list[Row]:
    """Return one row for each encoder and number of tasks."""
    if quick:
        return [compare(encoder, 4, rounds=2, iterations=2) for encoder in ("linear", "transformer")]
    return [compare(encoder, n_tasks, rounds=15, iterations=max(2, 500 // n_tasks)) for encoder, n_tasks in CASES]


def compare(encoder: str, n_tasks: int, rounds: int, iterations: int) -> Row:
    """Return the row of an encoder and a number of tasks."""
    model = MetaTransfer(
        env="CosineSine-v0",
        encoder=encoder,
        meta_batch_size=n_tasks,
        n_support=10,
        init="naive",
        outer_kwargs={"learning_rate": RATE},
        policy_kwargs={"net_arch": [40, 40], "activation_fn": "relu"},
        seed=SEED,
        n_threads=1,
    )
    loop = PlainLoop(model)

    def apart() -> Row:
        own, other = gradient_of(model), loop.gradient_at(model.params, model.n_iterations)
        return {"relative_difference_of_gradients": norm(subtract(own, other)) / norm(other)}

    case = f"{encoder} encoder, {n_tasks} tasks, 10 examples"
    row = against_loop(case, TARGET, rounds, iterations, model, loop, apart)
    gradient = gradient_of(model)
    for name, tensor in loop.params.items():
        tensor.grad = gradient[name]
    objective = KnownGradient(MetaGradient(0.0, gradient))
    own_step = seconds_of(lambda: model.outer_optimizer.step(objective, model.params))
    plain_step = seconds_of(loop.optimizer.step)
    epochs = (1.0 / row["plain_iterations_a_second"] - plain_step, 1.0 / row["iterations_a_second"] - own_step)
    steps = {"plain_outer_step_ms": 1000.0 * plain_step, "outer_step_ms": 1000.0 * own_step}
    return {**row, "ratio_without_outer_step": epochs[0] / epochs[1], **steps}


def seconds_of(function: Callable[[], Any], repetitions: int = 50) -> float:
    """Return the median time of a function on one thread, s."""
    times = []
    with library_torch():
        for _ in range(repetitions):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return median(times)


def main(arguments: Sequence[str] | None = None) -> None:
    about = (__doc__ or "").split("\n")[0]
    run_single(
        "meta_transfer", about, "meta-iterations of meta-transfer against a plain loop over tasks", run, arguments
    )


if __name__ == "__main__":
    main()
