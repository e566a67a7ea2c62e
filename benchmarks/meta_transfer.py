"""Meta-transfer against a plain loop over tasks: ``python -m benchmarks.meta_transfer [--quick] [-o FILE]``.

The loop is what one writes with PyTorch alone: for each task the gradient of a learner on the support, whose graph is
kept, its projection, a decoder, and the loss of the decoded network on the query; then one backward pass over all
tasks. Both sides have the linear encoder of the paper's sizes on CosineSine-v0, start from the same parameters and see
the same examples; the record says how far apart they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.measure import SEED, Row, against_loop
from benchmarks.single import run_single
from metarl.agents.sampling.episodes import env_stream
from metarl.envs.family import draw_tasks
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import take_tasks
from metarl.meta.algorithms.meta_transfer import MetaTransfer
from metarl.streams import generators, seed_sequence, stream

TARGET = 10.0
RATE = 5e-4


class PlainLoop:
    """Meta-transfer by the linear encoder as a loop over tasks.

    :param model: from whose parameters it starts, and whose examples it sees.
    """

    def __init__(self, model: MetaTransfer) -> None:
        assert isinstance(model.family, OneStep)
        assert isinstance(model.family.support_family, OneStep)
        self.family, self.support = model.family, model.family.support_family
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

    def loss(self, task: Any, index: int) -> torch.Tensor:
        """Return the loss of one task."""
        n, at = self.n_examples, (self.n_iterations, index)
        x, y = map(
            torch.from_numpy,
            self.support.examples(task, generators([seed_sequence(SEED, "train/support", *at, 0)]), n),
        )
        error = nn.functional.mse_loss(self.layers("encoder/learner", x[0], 3), y[0].float())
        theta = [tensor for name, tensor in self.params.items() if name.startswith("encoder/learner")]
        slopes = torch.autograd.grad(error, theta, create_graph=True)
        z = self.params["encoder/V"] @ torch.cat([slope.flatten() for slope in slopes])
        parts = torch.split(self.layers("decoder/psi", z, 2), [shape.numel() for shape in self.shapes.values()])
        psi = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        state, obs = self.family.reset(task, [env_stream(seed_sequence(SEED, "train", *at, 1))], n)
        x, y = torch.from_numpy(obs[0]), torch.from_numpy(state["target"][0]).float()
        for layer in ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2"):
            x = nn.functional.linear(x, psi[f"{layer}.weight"], psi[f"{layer}.bias"]).relu()
        return nn.functional.mse_loss(nn.functional.linear(x, psi["action_net.weight"], psi["action_net.bias"]), y)

    def iterate(self) -> None:
        """Do one meta-iteration."""
        tasks = draw_tasks(self.family, stream(SEED, "tasks", self.n_iterations), self.n_tasks)
        losses = [self.loss(take_tasks(tasks, slice(index, index + 1)), index) for index in range(self.n_tasks)]
        self.optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.n_iterations += 1


def run(quick: bool) -> list[Row]:
    """Return one row for each number of tasks."""
    sizes, rounds, iterations = ([4], 2, 2) if quick else ([25, 100], 15, 10)
    return [compare(n_tasks, rounds, iterations) for n_tasks in sizes]


def compare(n_tasks: int, rounds: int, iterations: int) -> Row:
    """Return the row of one number of tasks."""
    model = MetaTransfer(
        env="CosineSine-v0",
        encoder="linear",
        meta_batch_size=n_tasks,
        n_support=10,
        init="naive",
        outer_kwargs={"learning_rate": RATE},
        policy_kwargs={"net_arch": [40, 40], "activation_fn": "relu"},
        seed=SEED,
        n_threads=1,
    )
    loop = PlainLoop(model)

    def ours() -> None:
        model.learn(iterations * model.steps_per_iteration, log_interval=None)

    def plain() -> None:
        for _ in range(iterations):
            loop.iterate()

    def ends() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(model.params[name], tensor.detach()) for name, tensor in loop.params.items()]

    return against_loop(
        f"linear encoder, {n_tasks} tasks, 10 examples", TARGET, rounds, iterations, (ours, plain), ends
    )


def main(arguments: Sequence[str] | None = None) -> None:
    about = (__doc__ or "").split("\n")[0]
    run_single(
        "meta_transfer", about, "meta-iterations of meta-transfer against a plain loop over tasks", run, arguments
    )


if __name__ == "__main__":
    main()
