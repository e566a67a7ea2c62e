"""What a learner returns, looked at where it is taken: anybody may have written it, and wrong shapes may broadcast."""

from __future__ import annotations

from typing import Any

from metarl.agents.learners.base import Learner
from metarl.agents.learners.watching import LearnerState
from metarl.agents.sampling.samples import Samples
from metarl.errors import ConfigError, shorten


def require_samples(learner: Learner, samples: Any, n_tasks: int) -> Samples:
    """Return what a learner's ``process`` returned, where every field has the axes that it declares.

    :raises ConfigError: it is something else, or a field is of other tasks, or has another number of samples.
    """
    who, kind = f"process of the learner {_name(learner)}", learner.samples_type
    if not isinstance(samples, kind):
        how = "what metarl.agents.sampling.samples.pack makes of episodes"
        raise ConfigError(f"{who} returned {_what(samples)}, not {kind.__name__}: {how}")
    for axes, expected in ((("task",), [n_tasks]), (("task", "sample"), [n_tasks, samples.obs.shape[1]])):
        for name, value in samples.present({"axes": axes}).items():
            shape = list(value.shape[: len(axes)])
            if shape != expected:
                raise ConfigError(f"{who} returned {shorten(name)} of {', '.join(axes)} {shape}, not {expected}")
    return samples


def require_state(learner: Learner, after: Any, before: LearnerState) -> LearnerState:
    """Return what a learner's ``update`` returned, where it has the parameters that it was given.

    :raises ConfigError: it is something else, or a tensor is missing, is another one's, or has another shape.
    """
    who = f"update of the learner {_name(learner)}"
    if not isinstance(after, LearnerState):
        raise ConfigError(f"{who} returned {_what(after)}, not a LearnerState")
    for name in {**before.params, **after.params}:
        has, had = (None if name not in each.params else list(each.params[name].shape) for each in (after, before))
        if has != had:
            raise ConfigError(f"{who} returned {shorten(name)} of shape {has}, where {had} was given")
    return after


def _name(learner: Learner) -> str:
    return repr(learner.name) if learner.name else type(learner).__name__


def _what(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
