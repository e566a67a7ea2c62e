"""Breaking sound families, one promise at a time."""

import re
from types import SimpleNamespace

import pytest

from metarl.envs.checker.family import FamilyCheckError, check_family


def wrong(base, **methods):
    """Return a family of which some methods are wrong; ``reset`` and ``step`` may call ``self.right``."""

    def right(self):
        return SimpleNamespace(**{name: getattr(super(cls, self), name) for name in methods})

    cls = type(base.__name__, (base,), {**methods, "right": property(right)})
    return cls


def step_with(base, change):
    """Return a family whose step is ``change(right step, tasks, state, actions, self)``."""

    def step(self, tasks, state, actions, rngs, active=None):
        return change(self.right.step(tasks, state, actions, rngs, active), tasks, state, actions, self)

    return wrong(base, step=step)


def reset_with(base, change):
    """Return a family whose reset is ``change(state, obs, tasks, rngs)``."""

    def reset(self, tasks, rngs, n_envs):
        return change(*self.right.reset(tasks, rngs, n_envs), tasks, rngs)

    return wrong(base, reset=reset)


def declared(base, **attributes):
    """Return a family that declares something else."""

    def make():
        family = base()
        for name, value in attributes.items():
            setattr(family, name, value)
        return family

    return make


def at(state, t):
    """Return which copies of Reach are past step ``t``."""
    return state["t"] >= t


def require_refused(make, message):
    """Require that the check refuses a family in one line in which ``message``, a pattern, is found."""
    with pytest.raises(FamilyCheckError) as error:
        check_family(make())
    said = str(error.value)
    assert re.search(message, said), said
    assert "\n" not in said
    assert len(said) < 500
