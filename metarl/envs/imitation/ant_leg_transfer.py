"""AntLegTransfer: an Ant is seen moving at random, and how it should run is to be predicted."""

from __future__ import annotations

from typing import Any

from metarl.checks import check_arguments
from metarl.envs.imitation.ant_leg import AntLegImitation
from metarl.envs.imitation.imitation import Imitation
from metarl.envs.imitation.transitions import TRAJECTORIES, RandomTransitions, Transitions
from metarl.envs.registry import register_family


class AntLegTransfer(AntLegImitation):
    """Transfer from an Ant's dynamics to a policy for it (meta-transfer, section 5.4).

    **Task, observation, action, reward, score and expert** are those of ``AntLegImitation-v0``: what the expert does in
    states that it visits is asked for, and the score is the return of 5 episodes in ``AntLeg-v0``. The support is
    another one:

    **Support.** ``support_family``: T = ``n_steps`` = 30 transitions (s, a) → s' of a policy that draws each action
    uniformly, from a reset on in ``AntLeg-v0`` with the task's legs; where an episode ends on the way, the next one
    begins. s has 27 numbers, a 8. The target is s' itself, as in the paper, and not its change; a normal deviate of
    ``support_noise`` is added to each entry. Each task has ``n_trajectories`` such trajectories, which are made once,
    in batch, and kept as demonstrations are; whoever asks for 30 transitions gets one of them whole.

    The paper adds noise in testing only: train without it, then evaluate with ``support_noise``.

    Published (table 2, "final reward after one episode", unit not stated): gradient encoders 4.0 to 4.3 without noise
    and 4.1 to 4.4 with a noise of 4, mean 3.4, max 3.1 and transformer -31 there, deep kernel 0 always.

    To meta-wrappers that adapt by gradients in the family itself it is ``AntLegImitation-v0``::

        family = make_family("AntLegTransfer-v0", n_tasks=2, n_trajectories=1, n_demonstrations=1)
        tasks = family.tasks("test", 1)
        seen, then = family.support_family.examples(tasks, [np.random.default_rng(0)], 30)
        assert seen.shape == (1, 30, 35) and then.shape == (1, 30, 27)
        assert np.allclose(seen[0, 1:, :27], then[0, :-1])

    **Versions.** v0: first version.

    :param support_noise: σ of the normal deviate that is added to what is seen.
    :param n_steps: T, transitions of a trajectory.
    :param n_trajectories: of each task.
    :param arguments: those of :class:`~metarl.envs.imitation.ant_leg.AntLegImitation`.
    """

    id = "AntLegTransfer-v0"

    def __init__(
        self, *, support_noise: float = 0.0, n_steps: int = 30, n_trajectories: int = 10, **arguments: Any
    ) -> None:
        check_arguments(Imitation.__init__, arguments, "argument of AntLegTransfer-v0", around=AntLegTransfer.__init__)
        super().__init__(**arguments)
        n_trajectories, n_steps = TRAJECTORIES("n_trajectories", n_trajectories), TRAJECTORIES("n_steps", n_steps)
        shown = RandomTransitions(self.real, n_trajectories, n_steps, self.origin, self.pool)
        self.support_family = Transitions("AntLegTransfer-v0/support", self.real, shown, support_noise)


register_family("AntLegTransfer-v0", AntLegTransfer)
