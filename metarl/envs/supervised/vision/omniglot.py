"""Omniglot: handwritten characters of 50 alphabets, by several protocols."""

from __future__ import annotations

from typing import Any

from metarl.checks import check_arguments, choice
from metarl.envs.registry import register_family
from metarl.envs.supervised.vision.alphabets import OmniglotAlphabets
from metarl.envs.supervised.vision.augmentations import OmniglotAugmentations
from metarl.envs.supervised.vision.characters import OmniglotProtocol
from metarl.envs.supervised.vision.few_shot import OmniglotFewShot

PROTOCOLS: dict[str, type[OmniglotProtocol]] = {
    "alphabets": OmniglotAlphabets,
    "few-shot": OmniglotFewShot,
    "augmentations": OmniglotAugmentations,
}


def make_omniglot(protocol: str = "alphabets", **arguments: Any) -> OmniglotProtocol:
    """Return Omniglot (Lake et al., 2015) by one of several protocols; the drawings are part of the package.

    =================  =================================================================================================
    ``protocol``       is
    =================  =================================================================================================
    ``alphabets``      the default, Leap's: an alphabet is a task of 20 classes, and each example is turned, scaled and
                       shifted at random (:class:`~metarl.envs.supervised.vision.alphabets.OmniglotAlphabets`)
    ``few-shot``       N-way K-shot, MAML's: a task is N characters, of which K drawings each are shown; also registered
                       as ``OmniglotFewShot-v0`` (:class:`~metarl.envs.supervised.vision.few_shot.OmniglotFewShot`)
    ``augmentations``  families of augmentations: a class is one drawing, augmented; also registered as
                       ``OmniglotFamilies-v0``
                       (:class:`~metarl.envs.supervised.vision.augmentations.OmniglotAugmentations`)
    =================  =================================================================================================

    **Observation.** uint8, ``[1, 28, 28]``: a drawing, at the nearest neighbour of each pixel.

    **Action.** Discrete: the class, counted from 0 within the task.

    **Reward.** 1 for the right class, otherwise 0: a mean return is the accuracy. ``info`` has the ``target``. The loss
    is the cross-entropy, for the learner ``supervised``.

    **Episode.** One env step: an example.

    ::

        env = gymnasium.make("Omniglot-v0", alphabet="Greek")
        obs, info = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(3)
        assert terminated and reward == float(info["target"] == 3)

    **Versions.** v0: first version.

    :param protocol: see above.
    :param arguments: of the protocol's class.
    :raises UnknownNameError: an argument that the protocol does not take.
    """
    cls = PROTOCOLS[choice(*PROTOCOLS)("protocol", protocol)]
    check_arguments(cls, arguments, f"argument of Omniglot-v0 with protocol={protocol!r}")
    return cls(**arguments)


register_family("Omniglot-v0", make_omniglot)
# Its hyperparameters are others, and are found by the name.
register_family("OmniglotFewShot-v0", OmniglotFewShot)
register_family("OmniglotFamilies-v0", OmniglotAugmentations)
