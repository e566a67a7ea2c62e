"""The pictures of a family that says that it is drawn."""

from __future__ import annotations

import numpy as np

from metarl.envs.checker.common import copied, equal, is_array, require
from metarl.envs.family import Family, State
from metarl.envs.mujoco.pictures import PictureError
from metarl.envs.promises import kind_of
from metarl.envs.tasks import Tasks, n_tasks
from metarl.errors import shorten
from metarl.streams import stream


def check_pictures(family: Family, tasks: Tasks, seed: int) -> None:
    """Require that a picture is one, that it depends on its arguments alone, and that drawing it changes nothing."""
    fps = family.render_fps
    if fps is None:
        return
    number = isinstance(fps, int | float | np.integer | np.floating) and not isinstance(fps, bool)
    require(number and 0 < fps < np.inf, family, f"render_fps={shorten(fps)}: above 0, or None")
    rngs = [stream(seed, "check/pictures", task) for task in range(n_tasks(tasks))]
    trail: list[State] = [family.reset(tasks, rngs, 2)[0]]
    held, held_tasks = [copied(state) for state in trail], copied(tasks)
    frames = []
    try:
        # Another picture in between: what is drawn is not what was drawn last.
        for env in (0, 1, 0):
            frames.append(family.render(tasks, trail, 0, env))
    except PictureError:
        # Robots on a machine that has no OpenGL.
        return
    for frame in frames:
        sound = is_array(frame) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
        require(sound, family, f"render returns {kind_of(frame)}, not [height, width, 3] uint8")
    kept = equal(tasks, held_tasks) and all(equal(a, b) for a, b in zip(trail, held, strict=True))
    require(kept, family, "render changes the tasks or the states that it is given")
    require(np.array_equal(frames[0], frames[2]), family, "the same state is drawn differently from call to call")
