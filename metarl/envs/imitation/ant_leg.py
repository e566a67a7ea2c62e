"""AntLegImitation: a run to imitate, shown by a policy that was told the lengths of its legs."""

from __future__ import annotations

from pathlib import Path

from metarl.envs.family import Family
from metarl.envs.imitation.expert import Expert
from metarl.envs.imitation.imitation import Imitation
from metarl.envs.imitation.network import NetworkExpert
from metarl.envs.registry import register_family

SHIPPED = Path(__file__).with_name("experts") / "AntLeg-v0.safetensors"
"""A stock PPO of SB3 that learnt in the oracle view, on all lengths at once; its card is in it."""


class AntLegImitation(Imitation):
    """Imitation of a policy that runs on legs of any length in ``AntLeg-v0``, because it is told the lengths.

    **Task.** ``upper_leg`` and ``ankle``, as in ``AntLeg-v0``: the splits are its own, the corners of the square among
    them (``shifted``), and training tasks are 100 draws, as many as in the meta-transfer paper (S0).

    **Observation.** Box of 27: a state that the expert visits, without the lengths. It acts with noise of a tenth of
    the motors' range (``acting_noise=0.1``), and shows what it would do where that leads.

    **Action.** Box(-1, 1) of 8: what the policy would do there. It is not clipped: an action costs what it says.

    **Reward.** −‖a − a*‖², with a* what the expert does. ``info`` has the ``target`` a*.

    **Episode.** One env step: a pair of a state and an action. K episodes are K pairs. S0 infers lengths from T = 30
    transitions of a random policy; here the support are K pairs of the expert, as the query is.

    **Score.** The return of 5 episodes of the adapted policy in ``AntLeg-v0``, beside that of the expert
    (``expert_returns``).

    **Expert.** The file that ships with the package, or another one (``expert=``), such as `metarl export --to expert`
    writes of a run of ``oracle`` on AntLeg-v0; for other arguments of the real family, its own. Its checksum is
    verified, and its card has the returns by task.

    ::

        env = gymnasium.make("AntLegImitation-v0", upper_leg=0.3, ankle=0.5, n_tasks=1, n_demonstrations=1)
        obs, info = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(np.zeros(8, np.float32))
        assert terminated and np.isclose(reward, -np.square(info["target"]).sum())

    **Versions.** v0: first version.

    The arguments are those of :class:`~metarl.envs.imitation.imitation.Imitation`; ``real_kwargs`` are those of
    :class:`~metarl.envs.mujoco.ant_leg.AntLeg`.
    """

    id = "AntLegImitation-v0"
    real_id = "AntLeg-v0"
    default_acting_noise = 0.1
    default_demonstrations = 1

    def make_expert(self, real: Family) -> Expert:
        return NetworkExpert(SHIPPED, real)


register_family("AntLegImitation-v0", AntLegImitation)
