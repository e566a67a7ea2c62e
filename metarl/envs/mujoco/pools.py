"""The threads that step robots, and the scratch data that belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import numpy as np

from metarl.envs.mujoco.bindings import Rollout, mujoco
from metarl.envs.mujoco.rows import Bodies
from metarl.processes import NATIVE_WORK, ProcessLocal


class _Pool:
    """A thread pool with its scratch data: used by one caller at a time."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        # Without a pool, rollouts run on the calling thread: no hand-over to a lone worker.
        self.rollout = Rollout(nthread=n_threads if n_threads > 1 else 0)
        self._data: dict[tuple[int, ...], list[mujoco.MjData]] = {}

    def run(self, bodies: Bodies, physics: np.ndarray, controls: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        models, data = bodies.models, self._data.get(bodies.sizes)
        if data is None:
            data = self._data[bodies.sizes] = [mujoco.MjData(models[0]) for _ in range(self.n_threads)]
        # MuJoCo's own choice for a few rows hands them out one by one, and wakes a thread for each.
        chunk = max(len(models) // (10 * self.n_threads), min(4, -(-len(models) // self.n_threads)))
        n_steps = controls.shape[1]
        self.rollout.rollout(models, data, physics, controls, skip_checks=True, nstep=n_steps, chunk_size=chunk, **out)

    def close(self) -> None:
        self.rollout.close()


class Pools:
    """The pools of one family: each of several callers at once gets one of its own."""

    def __init__(self) -> None:
        self._callers: ProcessLocal[list[int]] = ProcessLocal(list)
        self._idle: ProcessLocal[list[_Pool]] = ProcessLocal(list)

    def run(self, bodies: Bodies, n_threads: int, physics: np.ndarray, controls: np.ndarray, **out: np.ndarray) -> None:
        """Fill ``out`` from one rollout of every row.

        :param n_threads: of all callers together.
        :param physics: where it starts, ``[n, physics]``.
        :param controls: ``[n, step, motor]``.
        """
        if not bodies.models:
            return
        n_threads = -(-n_threads // (sum(self._callers.get()) or 1))
        idle = self._idle.get()
        pool = self._taken(idle, n_threads)
        with NATIVE_WORK:
            pool = pool or _Pool(n_threads)
            pool.run(bodies, physics, controls, out)
        idle.append(pool)

    @staticmethod
    def _taken(idle: list[_Pool], n_threads: int) -> _Pool | None:
        """Take a pool with so many threads out of those that are idle, None without one; others are closed."""
        # List operations are atomic.
        try:
            while (pool := idle.pop()).n_threads != n_threads:
                pool.close()
        except IndexError:
            return None
        return pool

    @contextmanager
    def shared_by(self, n_callers: int) -> Iterator[None]:
        """Return a context in which ``n_callers`` share the threads."""
        callers = self._callers.get()
        callers.append(n_callers)
        try:
            yield
        finally:
            callers.remove(n_callers)

    def close(self) -> None:
        """End the threads; the object can be used again."""
        idle = self._idle.get()
        with suppress(IndexError):
            while True:
                idle.pop().close()
