"""MuJoCo, which cannot be imported where ``MUJOCO_GL`` names an OpenGL library that is not there.

Only pictures need that library, and another process draws those (:mod:`metarl.envs.mujoco.pictures`) and says what is
missing. So whoever trains on such a machine does without it.
"""

from __future__ import annotations

import os

try:
    import mujoco
except Exception:  # bindings raise what their missing library leads to
    if "MUJOCO_GL" not in os.environ:
        raise
    named = os.environ["MUJOCO_GL"]
    os.environ["MUJOCO_GL"] = "off"
    try:
        import mujoco
    finally:
        os.environ["MUJOCO_GL"] = named

from mujoco.rollout import Rollout

__all__ = ["Rollout", "mujoco"]
