"""The process that draws MuJoCo models for ``pictures.py``, run as a script. It imports nothing of ours.

It takes requests from its standard input: a line of JSON, followed by a compiled model where it is a new one. It
answers each with :data:`READY` and a frame, ``[height, width, 3]`` bytes; the first answer, without a frame, says that
it is there. What goes wrong ends it, with the reason on its standard error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

READY = b"+"


def main() -> None:
    """Draw until the input ends."""
    # Whatever a driver prints is no answer.
    requests, answers = sys.stdin.buffer, os.dup(1)
    os.dup2(2, 1)
    # The folder of this script, which Python looks in first, has a mujoco.py.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    import mujoco
    import numpy as np

    renderers: dict[str, tuple[Any, Any]] = {}
    os.write(answers, READY)
    while line := requests.readline():
        request = json.loads(line)
        size, name = request["size"], request["model"]
        for forgotten in request["forget"]:
            renderers.pop(forgotten)[0].close()
        if request["n_bytes"]:
            model = mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": requests.read(request["n_bytes"])})
            # Without a graphics card, smooth edges and fine shadows take most of the time.
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 1024
            font = mujoco.mjtFontScale.mjFONTSCALE_50
            renderers[name] = mujoco.Renderer(model, size, size, font_scale=font), mujoco.MjData(model)
        renderer, data = renderers[name]
        mujoco.mj_setState(
            renderer.model, data, np.array(request["physics"]), mujoco.mjtState.mjSTATE_FULLPHYSICS.value
        )
        mujoco.mj_forward(renderer.model, data)
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        camera.trackbodyid = request["body"]
        camera.distance, camera.azimuth, camera.elevation = request["camera"]
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        renderer.update_scene(data, camera)
        answer = memoryview(READY + renderer.render().tobytes())
        while answer:
            answer = answer[os.write(answers, answer) :]


if __name__ == "__main__":
    main()
