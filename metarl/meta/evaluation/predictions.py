"""What adapted policies predict in supervised families, before and after adaptation, as cards for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarl.agents.parallel import library_torch
from metarl.agents.sampling.examples import Examples
from metarl.envs.promises import is_image
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Tasks, one_task
from metarl.errors import DivergedError
from metarl.files.schema import LARGEST
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.evaluation.figures import nth_colour
from metarl.params import Params, expand
from metarl.streams import TaskSeeds, task_streams

N_TASKS = 3
"""Tasks whose curves are drawn; of classes the first of them."""
SHOWN = 3, 4
"""Rows and columns of images that are shown with what is predicted."""
N_CLASSES, N_OF_EACH = 5, 6
"""Classes, and examples of each, of the images that are learnt from."""
DPI = 100


class Predictions(NamedTuple):
    """Predictions for further examples of some tasks."""

    family: OneStep
    tasks: Tasks
    support: tuple[np.ndarray, np.ndarray]
    """Inputs ``[task, n, *observation]`` and targets ``[task, n, *action]`` of the kind that is learnt from."""
    inputs: np.ndarray
    """``[task, n, *observation]``: those that are predicted for."""
    targets: np.ndarray
    """``[task, n, *action]``; classes are counted from 0, and so in what is predicted."""
    before: np.ndarray
    """``[task, n, *action]``."""
    after: np.ndarray


def predictions_of(model: Any, n_inner_steps: int, split: str = "validation", seed: int = 0) -> Predictions | None:
    """Return what a model predicts before and after adaptation to the first tasks of a split.

    :param model: a meta-algorithm.
    :param n_inner_steps: at least 1.
    :param seed: of the streams.
    :return: None where nobody predicts: of families that are not supervised, of learners that act, of tasks that
        have tensors of their own, and where adaptation diverges.
    """
    family, adaptation = model.family, getattr(model, "adaptation", None)
    if not (isinstance(family, OneStep) and adaptation is not None and adaptation.option("predicts")):
        return None
    if model.adaptations.has_local or model.is_told_the_task:
        return None
    if family.evaluation_family is not None and not isinstance(family.action_space, spaces.Discrete):
        return None  # what policies do there is scored; their numbers are no picture
    tasks, policy = family.tasks(split, N_TASKS), model.policy
    n, space = len(next(iter(tasks.values()))), policy.action_space
    n_classes = int(space.n) if isinstance(space, spaces.Discrete) else 0
    shown = family if family.query_family is None else family.query_family
    assert isinstance(shown, OneStep)
    seeds = TaskSeeds(seed, "predictions", 0, range(n))
    asked = Examples(shown, policy, tasks, seeds, max(100, 10 * n_classes), ("target",))
    n_support = min(max(10, 10 * n_classes), family.n_examples or LARGEST)
    support = family.examples(tasks, task_streams(seed, "predictions/support", 0, n), n_support)
    try:
        reached = model.reached(tasks, n_inner_steps, seed=seed)
    except DivergedError:  # the returns say so
        return None
    start = model.theta if isinstance(adaptation, BatchedAdaptation) else model.initial_policy
    before, after = (_said(policy, params, asked.obs) for params in (expand(start, n), reached))
    targets = asked.episodes(before).info["target"][:, :, 0]
    start = int(space.start) if isinstance(space, spaces.Discrete) else 0
    return Predictions(
        family, tasks, (support[0], support[1]), asked.obs, targets - start, before.numpy(), after.numpy()
    )


@library_torch()
def _said(policy: Any, params: Params, obs: np.ndarray) -> torch.Tensor:
    """Return the most likely actions."""
    with torch.inference_mode():
        found: torch.Tensor = policy.distribution(params, torch.from_numpy(obs)).mode()
    return found.cpu().clone()


def prediction_cards(found: Predictions | None) -> dict[str, Figure]:
    """Draw predictions as figures for TensorBoard's cards: of classes a confusion matrix before and after adaptation,
    images with what is predicted for them, and the images that are learnt from; of numbers from one number curves, and
    of several numbers how each lies to what it should be.

    :return: by the card's name; nothing of what has no picture.
    """
    if found is None:
        return {}
    if isinstance(found.family.action_space, spaces.Discrete):
        cards = {"confusion": _confusion(found)}
        if is_image(found.family.observation_space):
            cards |= {"predictions": _images(found), "support_images": _support(found)}
        return cards
    if found.inputs.shape[2:] == found.targets.shape[2:] == (1,):
        return {"predictions": _curves(found)}
    return {"predictions": _numbers(found)}


def _name(found: Predictions, task: int) -> str:
    words = found.family.describe(one_task(found.tasks, task))
    return words if len(words) <= 40 else f"{words[:39]}…"


def _both(found: Predictions) -> Iterator[tuple[str, np.ndarray]]:
    yield "before", found.before
    yield "after", found.after


def _confusion(found: Predictions) -> Figure:
    """Draw how often each class of the first task is taken for which."""
    figure = Figure(figsize=(4.0, 2.6), dpi=DPI, layout="constrained")
    space = found.family.action_space
    assert isinstance(space, spaces.Discrete)
    n, targets = int(space.n), found.targets[0]
    for axis, (when, said) in zip(figure.subplots(1, 2, sharey=True), _both(found), strict=True):
        counts = np.zeros((n, n))
        np.add.at(counts, (targets, said[0]), 1.0)
        axis.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1.0), cmap="Blues", vmin=0.0, vmax=1.0)
        axis.set_title(f"{when}: {np.mean(said[0] == targets):.0%}", fontsize=12)
        axis.set_xlabel("predicted", fontsize=12)
        axis.set_xticks([0, n - 1])
        axis.set_yticks([0, n - 1])
        if when == "before":
            axis.set_ylabel("class", fontsize=12)
    figure.suptitle(_name(found, 0), fontsize=12)
    return figure


def _shown(image: np.ndarray) -> np.ndarray:
    """Return an image ``[channel, height, width]`` as matplotlib takes it."""
    return image[0] if len(image) != 3 else image.transpose(1, 2, 0)


def _images(found: Predictions) -> Figure:
    """Draw images of the first task with their class, and what it is taken for before and after adaptation."""
    figure = Figure(figsize=(4.0, 3.9), dpi=DPI, layout="constrained")
    for place, axis in enumerate(figure.subplots(*SHOWN).flat):
        target, before, after = (int(each[0, place]) for each in (found.targets, found.before, found.after))
        axis.imshow(_shown(found.inputs[0, place]), cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"{target}: {before} → {after}", fontsize=11, color="C2" if after == target else "C3")
        axis.axis("off")
    figure.suptitle(f"{_name(found, 0)}\nclass: before → after adaptation", fontsize=11)
    return figure


def _support(found: Predictions) -> Figure:
    """Draw images of the kind that the first task is learnt from, a class in each row."""
    figure = Figure(figsize=(4.0, 3.6), dpi=DPI, layout="constrained")
    images, targets = found.support[0][0], found.support[1][0]
    classes = np.unique(targets)[:N_CLASSES]
    for row, label in zip(figure.subplots(len(classes), N_OF_EACH, squeeze=False), classes, strict=True):
        own = images[targets == label]
        for axis, image in zip(row, own, strict=False):
            axis.imshow(_shown(image), cmap="gray", vmin=0, vmax=255)
        for axis in row:
            axis.axis("off")
    figure.suptitle(f"{_name(found, 0)}\nlearnt from, a class in each row", fontsize=11)
    return figure


def _curves(found: Predictions) -> Figure:
    """Draw targets and predictions of each task against the input."""
    figure = Figure(figsize=(4.0, 4.6), dpi=DPI, layout="constrained")
    for task, axis in enumerate(figure.subplots(len(found.inputs), 1, sharex=True, squeeze=False).flat):
        x = found.inputs[task, :, 0]
        order = np.argsort(x)
        for label, values, style in (
            ("target", found.targets, {"color": "0.6", "linewidth": 4.0}),
            ("before", found.before, {"color": nth_colour(0), "linestyle": "--"}),
            ("after", found.after, {"color": nth_colour(0)}),
        ):
            axis.plot(x[order], values[task, order, 0], label=label, **style)
        axis.set_title(_name(found, task), fontsize=11)
        axis.grid(alpha=0.3)
    axis.set_xlabel("input", fontsize=11)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=11)
    return figure


def _numbers(found: Predictions) -> Figure:
    """Draw each number that is predicted for the first task against its target; right ones lie on the line."""
    figure = Figure(figsize=(4.0, 2.9), dpi=DPI, layout="constrained")
    targets = found.targets[0].reshape(len(found.targets[0]), -1)
    ends = float(targets.min()), float(targets.max())
    for axis, (when, said) in zip(figure.subplots(1, 2, sharex=True, sharey=True), _both(found), strict=True):
        own = said[0].reshape(targets.shape)
        axis.plot(ends, ends, color="0.6", linewidth=1.0)
        for entry, (x, y) in enumerate(zip(targets.T, own.T, strict=True)):
            axis.plot(x, y, ".", markersize=3.0, color=nth_colour(entry))
        axis.set_title(f"{when}: MSE {np.square(own - targets).sum(1).mean():.3g}", fontsize=11)
        axis.set_xlabel("target", fontsize=11)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axis.grid(alpha=0.3)
        if when == "before":
            axis.set_ylabel("predicted", fontsize=11)
    figure.suptitle(_name(found, 0), fontsize=11)
    return figure
