"""Pictures of MuJoCo robots without a display, through EGL or OSMesa.

They are drawn in a process of their own (``painter.py``), one for all families, which starts with the first picture. A
process that has drawn with OpenGL cannot fork: whatever the child draws, or its mere end, hangs. So what trains never
loads a driver; it may fork, and its objects hold no handles that a copy or a pickle would have to leave out.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from metarl.envs.mujoco.bindings import mujoco
from metarl.envs.mujoco.painter import READY
from metarl.errors import MetaRLError, shorten

SIZE = 400
"""Height and width of a frame, pixels."""
CAMERA = 4.0, 90.0, -20.0
"""The camera's distance to the robot that it follows, m, and its azimuth and elevation, degrees: from the side."""
KEPT = 8
"""Models that the process keeps at a time; a further one takes the place of the oldest."""
TIMEOUT = 120.0
"""Seconds that a frame may take: the first one loads a driver, and compiles it on some machines."""
SCRIPT = Path(__file__).with_name("painter.py")
HELP = (
    "install EGL or OSMesa (Debian: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6) and set MUJOCO_GL=egl or "
    "MUJOCO_GL=osmesa, or leave it unset"
)
_OFF = ("disable", "disabled", "off", "false", "0")


class PictureError(MetaRLError, RuntimeError):
    """A picture that cannot be drawn on this machine."""


class _Failed(Exception):
    """The process that draws ended, or does not answer."""


def draw_robot(name: str, model: mujoco.MjModel, physics: np.ndarray, body: str) -> np.ndarray:
    """Return a picture of a robot; the camera follows it.

    :param name: the family, for messages.
    :param physics: MuJoCo's FULLPHYSICS state.
    :param body: the name of the robot's root body.
    :return: ``[SIZE, SIZE, 3]``, uint8, the same for the same state.
    :raises PictureError: there is neither EGL nor OSMesa; the message says what to install.
    """
    global _painter
    request = {
        "size": SIZE,
        "physics": physics.tolist(),
        "body": mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY.value, body),
        "camera": CAMERA,
    }
    with _lock:
        reasons = []
        for library in [_painter.library] if _painter else _libraries():
            painter, _painter = _painter, None
            try:
                painter = painter or _Painter(library)
                frame = painter.draw(model, request)
            except (_Failed, OSError) as error:
                reasons.append(f"{shorten(library, quote=False) or 'OpenGL'}: {shorten(error, quote=False)}")
            else:
                _painter = painter
                return frame
            finally:
                # Whatever happened in between, half an answer is no start for the next one.
                if painter is not None and _painter is None:
                    painter.stop()
    found = "; ".join(reasons) or f"MUJOCO_GL={shorten(os.environ['MUJOCO_GL'], quote=False)} turns drawing off"
    raise PictureError(f"no picture of {name} ({found}): {HELP}")


def _libraries() -> list[str]:
    """Return what to try, as values of ``MUJOCO_GL``."""
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen in _OFF:
        return []
    # MuJoCo by itself opens a window, which takes a display.
    return ["egl", "osmesa"] if not chosen and sys.platform == "linux" else [chosen]


class _Painter:
    """The process that draws.

    :param library: its ``MUJOCO_GL``.
    """

    def __init__(self, library: str) -> None:
        self.library = library
        self._known: list[str] = []
        # Its OpenGL bindings choose their library themselves.
        environment = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(SCRIPT)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**environment, "MUJOCO_GL": library},
                # A Ctrl-C is for the one who asked.
                start_new_session=True,
            )
        except OSError:
            self._errors.close()
            raise
        self.stop = weakref.finalize(self, _stop, self._process, self._errors)
        self._started = False

    def draw(self, model: mujoco.MjModel, request: dict[str, Any]) -> np.ndarray:
        """Return a frame."""
        if not self._started:
            self._receive(0)
            self._started = True
        name = _name(model)
        content, forget = b"", list[str]()
        if name not in self._known:
            content, forget = _compiled(model), self._known[: max(len(self._known) + 1 - KEPT, 0)]
            self._known = [*self._known[len(forget) :], name]
        request = {**request, "model": name, "n_bytes": len(content), "forget": forget}
        self._send(json.dumps(request).encode() + b"\n" + content)
        size = request["size"]
        return np.frombuffer(self._receive(size * size * 3), np.uint8).reshape(size, size, 3).copy()

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        left = memoryview(message)
        try:
            while left:
                left = left[os.write(self._process.stdin.fileno(), left) :]
        except BrokenPipeError:
            raise _Failed(self._last_words()) from None

    def _receive(self, n_bytes: int) -> bytes:
        """Return an answer without its first byte."""
        assert self._process.stdout is not None
        answer, pipe, end = bytearray(), self._process.stdout.fileno(), time.monotonic() + TIMEOUT
        while len(answer) < n_bytes + len(READY):
            if not select.select([pipe], [], [], max(end - time.monotonic(), 0.0))[0]:
                raise _Failed(f"no answer within {TIMEOUT:g} s")
            part = os.read(pipe, 1 << 20)
            if not part:
                raise _Failed(self._last_words())
            answer += part
        return bytes(answer[len(READY) :])

    def _last_words(self) -> str:
        """Return why the process ended."""
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return shorten(lines[-1], quote=False) if lines else f"it ended with code {code}"

    def abandon(self) -> None:
        """Leave the process to the one that this one was forked from."""
        self.stop.detach()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            assert file is not None
            file.close()
        self._process.returncode = 0


def _stop(process: subprocess.Popen[bytes], errors: Any) -> None:
    for file in (process.stdin, process.stdout, errors):
        assert file is not None
        file.close()
    process.kill()
    process.wait()


def _compiled(model: mujoco.MjModel) -> bytes:
    content = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return content.tobytes()


def _name(model: mujoco.MjModel) -> str:
    """Return the same name for equal models."""
    if model not in _names:
        _names[model] = hashlib.sha256(_compiled(model)).hexdigest()
    return _names[model]


def _after_fork() -> None:
    """Give a forked child a painter of its own, should it want one."""
    global _lock, _painter
    _lock = threading.Lock()
    if _painter is not None:
        _painter.abandon()
        _painter = None


_lock = threading.Lock()
_painter: _Painter | None = None
_names: weakref.WeakKeyDictionary[mujoco.MjModel, str] = weakref.WeakKeyDictionary()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
