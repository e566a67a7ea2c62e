"""The models of robots: how they are compiled for batched steps, and which searches they do without."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import gymnasium
import numpy as np

from metarl.envs.mujoco.bindings import mujoco
from metarl.processes import NATIVE_WORK

N_KEPT = 256
"""Tasks whose models a process keeps, unless a batch has more."""

_DISABLE = mujoco.mjtDisableBit
_CONTACT_FIELDS = (
    1 << mujoco.mjtConDataField.mjCONDATA_FORCE.value
    | 1 << mujoco.mjtConDataField.mjCONDATA_TORQUE.value
    | 1 << mujoco.mjtConDataField.mjCONDATA_POS.value
)
_CONTACT_NETFORCE = 3
"""MJCF's ``reduce="netforce"``: the sum over a body's contacts, at their force-weighted centre."""


class Model(NamedTuple):
    """One task's physics, compiled twice."""

    step: mujoco.MjModel
    """Advances the state."""
    sense: mujoco.MjModel | None
    """Evaluates a state once, with sensors; None for families that need positions and velocities only."""


class Blueprint:
    """A robot's two specifications, from which its models are compiled, again after each change of their numbers.

    :param spec: the robot; sensors and flags are added here, so the spec is used up.
    :param warm_start: let the contact solver start at the last physics step's solution.
    :param root: the body whose sensors are read; None: nothing is sensed.
    :param contact_forces: whether contact forces are sensed as well.
    """

    def __init__(self, spec: mujoco.MjSpec, warm_start: bool, root: str | None, contact_forces: bool) -> None:
        _pair_with_ground(spec)
        spec.option.disableflags |= int(_DISABLE.mjDSBL_AUTORESET)
        # A single robot is a single island: looking for islands takes a tenth of a step and changes no bit of it.
        spec.option.disableflags |= int(getattr(_DISABLE, "mjDSBL_ISLAND", 0))
        if not warm_start:
            spec.option.disableflags |= int(_DISABLE.mjDSBL_WARMSTART)
        self.step = spec
        self.sense = None if root is None else _with_sensors(spec.copy(), root, contact_forces)

    def specs(self) -> list[mujoco.MjSpec]:
        """Return the specifications: a change belongs into each."""
        return [self.step] if self.sense is None else [self.step, self.sense]

    def compile(self) -> Model:
        """Return the models as the specifications are now."""
        return Model(self.step.compile(), None if self.sense is None else self.sense.compile())


class KeptModels:
    """The robots of one process, compiled when they are first asked for; those asked for last are kept.

    :param blueprint: what they are compiled from.
    :param change: gives a specification the numbers of one robot.
    """

    def __init__(self, blueprint: Blueprint, change: Callable[[mujoco.MjSpec, np.ndarray], None]) -> None:
        self._blueprint = blueprint
        self._change = change
        self._kept: OrderedDict[bytes, Model] = OrderedDict()
        self._lock = Lock()

    def __call__(self, numbers: np.ndarray) -> list[Model]:
        """Return the model of each row of ``numbers``, ``[task, ...]``."""
        found = []
        with NATIVE_WORK, self._lock:
            for row in numbers:
                key = row.tobytes()
                model = self._kept.pop(key) if key in self._kept else self._compile(row)
                self._kept[key] = model
                found.append(model)
            while len(self._kept) > max(N_KEPT, len(numbers)):
                self._kept.popitem(last=False)
        return found

    def _compile(self, row: np.ndarray) -> Model:
        for spec in self._blueprint.specs():
            self._change(spec, row)
        return self._blueprint.compile()


def gymnasium_spec(name: str) -> mujoco.MjSpec:
    """Load a robot that comes with Gymnasium, for instance ``"ant.xml"``."""
    return mujoco.MjSpec.from_file(str(Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / name))


def _with_sensors(spec: mujoco.MjSpec, root: str, contact_forces: bool) -> mujoco.MjSpec:
    # One Euler step costs one evaluation; its result is thrown away, its sensors describe the state it starts from.
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
    spec.option.disableflags |= int(_DISABLE.mjDSBL_EULERDAMP)
    if contact_forces:
        for index, body in enumerate(spec.bodies[1:], start=1):
            body.name = body.name or f"body_{index}"
            spec.add_sensor(
                type=mujoco.mjtSensor.mjSENS_CONTACT,
                objtype=mujoco.mjtObj.mjOBJ_BODY,
                objname=body.name,
                intprm=[_CONTACT_FIELDS, _CONTACT_NETFORCE, 1],
            )
    else:
        for flag in (_DISABLE.mjDSBL_CONSTRAINT, _DISABLE.mjDSBL_ACTUATION, _DISABLE.mjDSBL_GRAVITY):
            spec.option.disableflags |= int(flag)
    for kind in _ROOT_SENSORS:
        spec.add_sensor(type=kind, objtype=_ROOT_SENSORS[kind], objname=root)
    return spec


def _pair_with_ground(spec: mujoco.MjSpec) -> None:
    """List the pairs of geoms that can touch, where those are the robot's with the ground's and nothing else.

    MuJoCo then does not look for close bodies, a sixth of an Ant's step. Contacts, and with them every bit of a step,
    stay the same; robots whose contacts would not are left alone.
    """
    for index, geom in enumerate(spec.geoms):
        geom.name = geom.name or f"geom_{index}"
    ground = list(spec.worldbody.geoms)
    fixed = {geom.name for geom in ground}
    robot = [geom for geom in spec.geoms if geom.name not in fixed]
    pairs = [(a, b) for a in ground for b in robot if _can_touch(a, b)]
    if (
        any(_can_touch(a, b) for a, b in combinations(robot, 2))
        or spec.pairs
        or spec.excludes
        # What is fixed to the world does not touch the ground.
        or not all(body.joints for body in spec.worldbody.bodies)
        # Of these, MuJoCo takes a mixture.
        or not all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in _MIXED)
    ):
        return
    for a, b in pairs:
        slide, spin, roll = np.maximum(a.friction, b.friction)
        spec.add_pair(
            geomname1=a.name,
            geomname2=b.name,
            condim=max(a.condim, b.condim),
            friction=[slide, slide, spin, roll, roll],
            solref=a.solref,
            solimp=a.solimp,
            margin=a.margin + b.margin,
            gap=a.gap + b.gap,
            adhesion=a.adhesion + b.adhesion,
        )
    for geom in robot:
        geom.contype = geom.conaffinity = 0


def _can_touch(a: mujoco.MjsGeom, b: mujoco.MjsGeom) -> bool:
    return bool(a.contype & b.conaffinity or b.contype & a.conaffinity)


_MIXED = ("priority", "solmix", "solref", "solimp")

_ROOT_SENSORS = {
    mujoco.mjtSensor.mjSENS_SUBTREECOM: mujoco.mjtObj.mjOBJ_BODY,
    mujoco.mjtSensor.mjSENS_SUBTREELINVEL: mujoco.mjtObj.mjOBJ_BODY,
    mujoco.mjtSensor.mjSENS_FRAMEXAXIS: mujoco.mjtObj.mjOBJ_XBODY,
    mujoco.mjtSensor.mjSENS_FRAMEYAXIS: mujoco.mjtObj.mjOBJ_XBODY,
    mujoco.mjtSensor.mjSENS_FRAMEZAXIS: mujoco.mjtObj.mjOBJ_XBODY,
}
