"""MALTML's gradient of third order against a plain nested loop: ``python -m benchmarks.maltml [--quick] [-o FILE]``.

The loop is what one writes with PyTorch alone: one network, and loops over families, tasks and goal tasks, each with a
gradient step whose graph is kept. Both sides take the settings of the MALTML paper, start from the same parameters and
see the same examples; the record says how far apart they end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call

from benchmarks.measure import SEED, Row, against_loop
from benchmarks.single import run_single
from benchmarks.sinusoid import apart, sb3_name
from metarl.agents.sampling.episodes import env_stream
from metarl.envs.supervised.sinusoid_families import SinusoidFamilies
from metarl.envs.tasks import Tasks, take_tasks
from metarl.meta.algorithms.maltml import MALTML
from metarl.params import Params
from metarl.streams import seed_sequence, stream

TARGET = 5.0
ALPHA, BETA, GAMMA, OUTER_RATE = 0.001, 0.01, 0.001, 0.001
SHOTS = 5


class PlainLoop:
    """MALTML as a loop over families and tasks.

    :param model: from whose parameters it starts, and whose examples it sees.
    """

    def __init__(self, model: MALTML) -> None:
        self.network = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
        with torch.no_grad():
            for name, tensor in self.network.named_parameters():
                tensor.copy_(model.policy_params[sb3_name(name)])
        self.family = SinusoidFamilies()
        self.sizes = model.meta_batch_size, model.n_tasks, model.n_goal_tasks
        self.optimizer = torch.optim.Adam(self.network.parameters(), OUTER_RATE)
        self.n_iterations = 0

    def loss(self, params: Params, tasks: Tasks, purpose: str, place: int, k: int) -> torch.Tensor:
        """Return the loss on one task's ``k``-th batch."""
        rng = env_stream(seed_sequence(SEED, purpose, self.n_iterations, place, k))
        state, obs = self.family.reset(take_tasks(tasks, slice(place, place + 1)), [rng], SHOTS)
        x, y = torch.from_numpy(obs[0]), torch.from_numpy(state["target"][0]).float()
        return nn.functional.mse_loss(functional_call(self.network, params, (x,)), y)

    def iterate(self) -> None:
        """Do one meta-iteration."""
        n, n_tasks, n_goals = self.sizes
        families, few, goals = (
            stream(SEED, purpose, self.n_iterations) for purpose in ("families", "tasks/few", "tasks/goals")
        )
        drawn = self.family.sample_families(families, n)
        tasks = self.family.sample_tasks(few, n_tasks, families=drawn)
        goal_tasks = self.family.sample_tasks(goals, n_goals, families=drawn)
        theta: Params = dict(self.network.named_parameters())
        total = torch.zeros(())
        for family in range(n):
            query = torch.zeros(())
            for place in range(family * n_tasks, (family + 1) * n_tasks):
                adapted = stepped(theta, self.loss(theta, tasks, "train", place, 0), ALPHA)
                query = query + self.loss(adapted, tasks, "train", place, 1)
            of_family = stepped(theta, query, BETA)
            for place in range(family * n_goals, (family + 1) * n_goals):
                adapted = stepped(of_family, self.loss(of_family, goal_tasks, "train/goals", place, 0), GAMMA)
                total = total + self.loss(adapted, goal_tasks, "train/goals", place, 1)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.n_iterations += 1


def stepped(params: Params, loss: torch.Tensor, rate: float) -> Params:
    """Return where a gradient step leads, as a function of the parameters."""
    slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    return {name: tensor - rate * slope for (name, tensor), slope in zip(params.items(), slopes, strict=True)}


def run(quick: bool) -> list[Row]:
    """Return one row for each number of families."""
    sizes, rounds, iterations = ([2], 2, 2) if quick else ([10, 40], 10, 10)
    return [compare(n_families, rounds, iterations) for n_families in sizes]


def compare(n_families: int, rounds: int, iterations: int) -> Row:
    """Return the row of one number of families."""
    model = MALTML(
        env="SinusoidFamilies-v0",
        learner="supervised",
        n_episodes=SHOTS,
        meta_batch_size=n_families,
        inner_lr=ALPHA,
        meta_lr=BETA,
        goal_lr=GAMMA,
        outer_kwargs={"learning_rate": OUTER_RATE},
        policy_kwargs={"net_arch": [40, 40], "activation_fn": "relu"},
        seed=SEED,
        n_threads=1,
    )
    loop = PlainLoop(model)

    case = f"MALTML, {n_families} families of 5 tasks and 2 goal tasks, 5 shots"
    return against_loop(case, TARGET, rounds, iterations, model, loop, lambda: apart(model, loop.network))


def main(arguments: Sequence[str] | None = None) -> None:
    about = (__doc__ or "").split("\n")[0]
    run_single("maltml", about, "meta-iterations against a plain nested loop", run, arguments)


if __name__ == "__main__":
    main()
