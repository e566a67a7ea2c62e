"""Published returns, to stand beside ours: raw results shipped with the MAML paper's reinforcement learning code.

They are undiscounted mean returns on 40 goals after 0 to 3 inner steps, from one training seed each. The half-widths
are 1.96 standard deviations over goals divided by √40, so they say nothing about other training seeds.
"""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "Finn, Abbeel and Levine (2017), results shipped with cbfinn/maml_rl"
CAVEAT = (
    "published: one training seed, 40 other goals, old physics engine, 4,000 env steps for each inner step "
    "(AntDir 8,000), full inner rate on the first step and half of it after (AntDir a hundredth)"
)


class Published(NamedTuple):
    """One method's published returns.

    :param method: its name.
    :param returns: after 0, 1, 2, … inner steps.
    :param half_widths: of the 95% interval over goals, None where it is not known.
    :param source: where the numbers are from.
    :param caveat: how the protocol differs from ours.
    """

    method: str
    returns: tuple[float, ...]
    half_widths: tuple[float | None, ...] = ()
    source: str = SOURCE
    caveat: str = CAVEAT


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "PointMass-v0": (
        Published("MAML", (-40.41, -11.68, -3.33, -3.23), (4.0, 2.2, 0.55, 0.58)),
        Published("random", (-82.66, -57.96, -53.84, -46.81)),
        Published("oracle", (-2.29,), (0.14,)),
    ),
    "AntVel-v0": (
        Published("MAML", (30.58, 96.74, 100.06, 101.41), (30.0, 21.0, 21.0, 21.0)),
        Published("pretrain", (-1.83, 6.11, 8.47, 9.47)),
        Published("random", (-78.64, -62.81, -48.55, -35.56)),
        Published("oracle", (107.89,), (20.0,)),
    ),
    "AntDir-v0": (
        Published("MAML (40 episodes)", (8.66, 499.15, 500.68, 499.11), (None, 32.0, None, None)),
        Published("MAML (20 episodes)", (12.91, 434.36, 425.63, 411.75)),
        Published("pretrain", (3.16, 1.27, 6.51, 6.86)),
        Published("random", (3.11, 9.25, 15.96, 26.11)),
        Published("oracle", (524.80,), (12.0,)),
    ),
    "HalfCheetahVel-v0": (
        Published("MAML", (-129.53, -78.57, -66.62, -60.78), (17.0, 9.9, None, 8.6)),
        Published("pretrain", (-158.00, -135.39, -128.47, -133.61)),
        Published("random", (-254.83, -254.33, -246.79, -230.83)),
        Published("oracle", (-54.47,), (6.9,)),
    ),
    "HalfCheetahDir-v0": (
        Published("MAML", (-50.69, 293.19, 313.48, 315.65), (None, 17.0, None, 14.0)),
        Published("pretrain", (-43.03, -24.75, -12.85, 19.57)),
        Published("random", (-35.73, 21.83, 62.32, 86.18)),
        Published("oracle", (442.69,), (8.0,)),
    ),
}
"""By family. The families' default arguments are the definitions that these numbers belong to."""


def published_for(env: str, methods: tuple[str, ...] = ()) -> tuple[Published, ...]:
    """Return the published rows of a family, none where there are none.

    :param env: a registered family's id.
    :param methods: only these (``"MAML"`` matches ``"MAML (40 episodes)"`` too); all by default.
    """
    rows = PUBLISHED.get(env, ())
    return tuple(row for row in rows if not methods or row.method.split(" ")[0] in methods)
