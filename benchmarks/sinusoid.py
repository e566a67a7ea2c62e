"""MAML on Sinusoid-v0 against a plain loop over tasks: ``python -m benchmarks.sinusoid [--quick] [-o FILE]``.

The loop is what one writes with PyTorch alone: one network, for each task a gradient step whose graph is kept, a loss
on the query examples, and one backward pass over all tasks. Both sides take the settings of the MAML paper, start from
the same parameters and see the same examples; the record says how far apart they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from benchmarks.measure import SEED, Row, against_loop
from benchmarks.single import run_single
from metarl.agents.sampling.episodes import env_stream
from metarl.envs.family import draw_tasks
from metarl.envs.registry import make_family
from metarl.envs.tasks import take_tasks
from metarl.meta.algorithms.maml import MAML
from metarl.streams import seed_sequence, stream

TARGET = 5.0
RATE, OUTER_RATE = 0.01, 0.001
NAMES = {"0": "mlp_extractor.policy_net.0", "2": "mlp_extractor.policy_net.2", "4": "action_net"}


class PlainLoop:
    """MAML as a loop over tasks.

    :param model: from whose parameters it starts, and whose examples it sees.
    """

    def __init__(self, model: MAML) -> None:
        self.network = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
        with torch.no_grad():
            for name, tensor in self.network.named_parameters():
                tensor.copy_(model.policy_params[sb3_name(name)])
        self.family = make_family("Sinusoid-v0")
        self.n_tasks, self.n_shots = model.meta_batch_size, model.n_episodes
        self.optimizer = torch.optim.Adam(self.network.parameters(), OUTER_RATE)
        self.n_iterations = 0

    def examples(self, task: Any, index: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets of one task's ``k``-th batch."""
        rng = env_stream(seed_sequence(SEED, "train", self.n_iterations, index, k))
        state, obs = self.family.reset(task, [rng], self.n_shots)
        return torch.from_numpy(obs[0]), torch.from_numpy(state["target"][0]).float()

    def iterate(self) -> None:
        """Do one meta-iteration."""
        params = dict(self.network.named_parameters())
        tasks = draw_tasks(self.family, stream(SEED, "tasks", self.n_iterations), self.n_tasks)
        total = torch.zeros(())
        for index in range(self.n_tasks):
            task = take_tasks(tasks, slice(index, index + 1))
            x, y = self.examples(task, index, 0)
            loss = nn.functional.mse_loss(functional_call(self.network, params, (x,)), y)
            slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            adapted = {name: params[name] - RATE * slope for name, slope in zip(params, slopes, strict=True)}
            x, y = self.examples(task, index, 1)
            total = total + nn.functional.mse_loss(functional_call(self.network, adapted, (x,)), y) / self.n_tasks
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.n_iterations += 1


def apart(model: Any, network: nn.Module) -> Row:
    """Return how far the parameters of a model and of a plain network are apart, as a column."""
    own = model.policy_params
    differences = [own[sb3_name(name)] - tensor.detach() for name, tensor in network.named_parameters()]
    return {"largest_difference_of_parameters": max(float(each.abs().max()) for each in differences)}


def sb3_name(name: str) -> str:
    """Return what a tensor of the network is called in SB3's policy."""
    layer, _, kind = name.partition(".")
    return f"{NAMES[layer]}.{kind}"


def run(quick: bool) -> list[Row]:
    """Return one row for each number of tasks."""
    sizes, rounds, iterations = ([4], 2, 2) if quick else ([25, 100], 15, 20)
    return [compare(n_tasks, rounds, iterations) for n_tasks in sizes]


def compare(n_tasks: int, rounds: int, iterations: int) -> Row:
    """Return the row of one number of tasks."""
    model = MAML(
        env="Sinusoid-v0",
        learner="supervised",
        n_episodes=10,
        meta_batch_size=n_tasks,
        inner_lr=RATE,
        outer="adam",
        outer_kwargs={"learning_rate": OUTER_RATE},
        policy_kwargs={"net_arch": [40, 40], "activation_fn": "relu"},
        seed=SEED,
        n_threads=1,
    )
    loop = PlainLoop(model)

    case = f"MAML, {n_tasks} tasks, 10 shots"
    return against_loop(case, TARGET, rounds, iterations, model, loop, lambda: apart(model, loop.network))


def main(arguments: Sequence[str] | None = None) -> None:
    about = (__doc__ or "").split("\n")[0]
    run_single("sinusoid", about, "meta-iterations against a plain loop over tasks", run, arguments)


if __name__ == "__main__":
    main()
