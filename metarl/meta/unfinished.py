"""A meta-iteration that is going on: what it has learnt so far, which a run goes on from when it was stopped inside.

A meta-iteration is done as a whole or not at all, but one in which tasks are learnt for millions of env steps takes
days. So a file that is written in the middle of one holds the model before it, and beside that the state of each walk
(:class:`~metarl.meta.adaptation.base.Walk`). Going on is doing the meta-iteration again, with walks that have done
their units already; streams are addressed, so the bits are those of a run that was never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from metarl.errors import CheckpointError, MetaRLError, shorten
from metarl.meta.adaptation.base import Walk
from metarl.params import Params, group, grouped

UNFINISHED = "unfinished/"
"""Begins the names of tensors that belong to a meta-iteration that is going on."""


class Halfway(Exception):
    """A callback asked for a stop inside a meta-iteration."""


class Unfinished:
    """A meta-iteration that is going on.

    :param address: the seed and the number of the meta-iteration, which its streams are of.
    :param params: the meta-parameters that it began with.
    :param outer: the state of the outer optimiser that it began with.
    :param saved: the states of walks that were done, as a whole or in part, before it was stopped.
    """

    def __init__(self, address: tuple[int, int], params: Params, outer: Params, saved: Sequence[Params] = ()) -> None:
        self.address, self.params, self.outer = address, params, outer
        self._saved = list(saved)
        self._walks: list[Walk] = []

    @classmethod
    def of_file(cls, address: tuple[int, int], params: Params, outer: Params, tensors: Params) -> Unfinished:
        """Return what a file holds.

        :param tensors: those that :meth:`state` returned.
        :raises CheckpointError: other ones.
        """
        own, saved = group(tensors, UNFINISHED), []
        numbers = {name.partition("/")[0] for name in own}
        for number in range(len(numbers)):
            if str(number) not in numbers:
                raise CheckpointError(f"a meta-iteration that was stopped inside has no walk {number}")
            saved.append(group(own, f"{number}/"))
        return cls(address, params, outer, saved)

    def is_of(self, address: tuple[int, int], params: Params) -> bool:
        """Whether a model that has these parameters, and is there, goes on with this meta-iteration."""
        same = params.keys() == self.params.keys() and all(params[name] is self.params[name] for name in params)
        return same and address == self.address

    def take(self, walk: Walk) -> Walk:
        """Return the next walk of the meta-iteration, with the units done that were done before.

        :raises CheckpointError: what was saved is not of such a walk.
        """
        number = len(self._walks)
        if number < len(self._saved):
            try:
                walk.load_state(self._saved[number])
            except MetaRLError:
                raise
            except Exception as error:  # of any kind: tensors that are missing, or of other shapes
                words = shorten(" ".join(str(error).split()), quote=False)
                raise CheckpointError(f"what was learnt of a meta-iteration does not fit: {words}") from error
        self._walks.append(walk)
        return walk

    def stopped(self) -> Unfinished:
        """Return the same meta-iteration to go on with later, from what it has done."""
        states = [walk.state() for walk in self._walks]
        return Unfinished(self.address, self.params, self.outer, [*states, *self._saved[len(states) :]])

    @property
    def env_steps(self) -> int:
        """Env steps that the walks have taken."""
        return sum(walk.env_steps for walk in self._walks)

    def state(self) -> Params:
        """Return what the walks go on from, as named tensors."""
        found: Params = {}
        for number, state in enumerate(self.stopped()._saved):
            found |= grouped(state, f"{UNFINISHED}{number}/")
        return found
