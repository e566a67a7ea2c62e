"""Inner steps on Omniglot against a plain loop over tasks: ``python -m benchmarks.omniglot [--quick] [-o FILE]``.

The loop is what one writes with PyTorch alone: for each task a copy of the network takes its gradient steps, one after
another, and Reptile's outer step goes towards the mean of where they led. Both sides take the same steps on the same
drawings, from the same parameters, and draw them by the family; the record says how far apart they end. Ours also looks
at the first and the last batch before it learns from them, for the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from benchmarks.measure import SEED, Row, against_loop
from benchmarks.single import run_single
from metarl.agents.sampling.episodes import env_stream
from metarl.envs.family import draw_tasks
from metarl.envs.tasks import take_tasks
from metarl.meta.algorithms.reptile import Reptile
from metarl.params import Params
from metarl.streams import seed_sequence, stream

TARGET = 1.0
RATE, OUTER_RATE = 0.1, 0.5


class Case(NamedTuple):
    """What is measured.

    :param env: the family.
    :param env_kwargs: its arguments.
    :param n_filters: of each convolution.
    :param strided: whether convolutions take every other place, in place of max-pooling.
    :param n_tasks: tasks of a meta-batch.
    :param n_steps: inner steps.
    :param n_images: of each of them.
    """

    env: str
    env_kwargs: dict[str, Any]
    n_filters: int
    strided: bool
    n_tasks: int
    n_steps: int
    n_images: int

    def __str__(self) -> str:
        how = f"{self.n_tasks} tasks, {self.n_steps} steps on {self.n_images} images"
        return f"{self.env}, {how}, {self.n_filters} filters{', strided' if self.strided else ''}"


FIVE = {"ways": 5, "train_shots": 10}
CASES = (
    Case("OmniglotFewShot-v0", FIVE, 32, True, 32, 5, 5),
    Case("OmniglotFewShot-v0", FIVE, 64, True, 32, 5, 5),
    Case("Omniglot-v0", {}, 16, False, 10, 20, 20),
)
QUICK = Case("OmniglotFewShot-v0", {"ways": 2, "train_shots": 10}, 4, True, 2, 2, 2)


class PlainLoop:
    """Reptile as a loop over tasks.

    :param model: from whose parameters it starts, and whose drawings it sees.
    :param case: of the same sizes.
    """

    def __init__(self, model: Reptile, case: Case) -> None:
        self.family, self.case = model.family, case
        self.network = network(model, case)
        self.params: Params = {name: tensor.detach() for name, tensor in self.network.named_parameters()}
        self.n_iterations = 0

    def images(self, task: Any, index: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and classes of one task's ``k``-th batch."""
        rng = env_stream(seed_sequence(SEED, "train", self.n_iterations, index, k))
        state, obs = self.family.reset(task, [rng], self.case.n_images)
        x = torch.from_numpy(obs[0])
        return x.float() if x.is_floating_point() else x / 255.0, torch.from_numpy(state["target"][0])

    def iterate(self) -> None:
        """Do one meta-iteration."""
        n = self.case.n_tasks
        tasks = draw_tasks(self.family, stream(SEED, "tasks", self.n_iterations), n)
        reached = {name: torch.zeros_like(tensor) for name, tensor in self.params.items()}
        for index in range(n):
            task, params = take_tasks(tasks, slice(index, index + 1)), self.params
            for k in range(self.case.n_steps):
                x, y = self.images(task, index, k)
                leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
                loss = nn.functional.cross_entropy(functional_call(self.network, leaves, (x,)), y)
                slopes = torch.autograd.grad(loss, list(leaves.values()))
                moves = dict(zip(params, slopes, strict=True))
                params = {name: tensor - RATE * moves[name] for name, tensor in params.items()}
            for name, tensor in params.items():
                reached[name] += tensor / n
        self.params = {name: tensor.lerp(reached[name], OUTER_RATE) for name, tensor in self.params.items()}
        self.n_iterations += 1

    def apart(self, model: Reptile) -> Row:
        """Return how far its parameters are from a model's, as a column."""
        own = list(model.policy_params.values())
        differences = [a - b for a, b in zip(own, self.params.values(), strict=True)]
        return {"largest_difference_of_parameters": max(float(each.abs().max()) for each in differences)}


def network(model: Reptile, case: Case) -> nn.Sequential:
    """Return the network of a model as one writes it, with its parameters, which come in the same order."""
    channels, layers = model.observation_space.shape[0], list[nn.Module]()
    for _ in range(4):
        stride = 2 if case.strided else 1
        layers += [
            nn.Conv2d(channels, case.n_filters, 3, stride, 1),
            nn.BatchNorm2d(case.n_filters, track_running_stats=False),
        ]
        layers += [nn.ReLU()] if case.strided else [nn.ReLU(), nn.MaxPool2d(2)]
        channels = case.n_filters
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if case.strided else [nn.Flatten()]
    n_classes, n_features = model.policy_params["action_net.weight"].shape
    whole = nn.Sequential(*layers, nn.Linear(n_features, n_classes))
    with torch.no_grad():
        for own, tensor in zip(whole.parameters(), model.policy_params.values(), strict=True):
            own.copy_(tensor)
    return whole


def run(quick: bool) -> list[Row]:
    """Return one row for each case."""
    return [compare(QUICK, 2, 2)] if quick else [compare(case, 7, 3) for case in CASES]


def compare(case: Case, rounds: int, iterations: int) -> Row:
    """Return the row of a case."""
    model = Reptile(
        "FewShotCnnPolicy",
        case.env,
        env_kwargs=case.env_kwargs,
        learner="supervised",
        learner_kwargs={"reuses_support": False},
        inner_lr=RATE,
        n_inner_steps=case.n_steps,
        n_episodes=case.n_images,
        meta_batch_size=case.n_tasks,
        outer="sgd",
        outer_kwargs={"learning_rate": OUTER_RATE},
        policy_kwargs={"features_extractor_kwargs": {"n_filters": case.n_filters, "strided": case.strided}},
        seed=SEED,
        n_threads=1,
    )
    loop = PlainLoop(model, case)
    return against_loop(str(case), TARGET, rounds, iterations, model, loop, lambda: loop.apart(model))


def main(arguments: Sequence[str] | None = None) -> None:
    about = (__doc__ or "").split("\n")[0]
    run_single("omniglot", about, "meta-iterations of Reptile against a plain loop over tasks", run, arguments)


if __name__ == "__main__":
    main()
