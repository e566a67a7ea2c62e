"""The worker processes of a model, as the process that trains sees them."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metarl import errors
from metarl.errors import MetaRLError, WorkerError
from metarl.files.checkpoint import save_checkpoint
from metarl.meta.workers.messages import parse, receive, send
from metarl.params import Params

Message = tuple[dict[str, Any], Params]
State = tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]
PROGRAM = "from metarl.meta.workers.worker import main; main()"


class Workers:
    """Processes that have loaded a model, and are told which blocks of its meta-iterations to learn.

    They are fresh interpreters, which share nothing with this process but two pipes. They hear no Ctrl-C, and end when
    their pipe is closed, which it is too when this process is killed.
    """

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._seed: int | None = None

    def start(
        self, state: Callable[[], State], seed: int, modules: Sequence[str], n_workers: int, n_threads: int
    ) -> None:
        """Start processes, unless there are as many already.

        :param state: what a file of the model holds.
        :param seed: the model's; those that were started with another one are ended.
        :param modules: those that register what the model consists of; they are imported first.
        :param n_threads: threads of each process.
        :raises MetaRLError: one cannot load the model.
        """
        if seed != self._seed:
            self.close()
            self._seed = seed
        if len(self._workers) >= n_workers:
            return
        with tempfile.TemporaryDirectory(prefix="metarl_") as folder:
            path = Path(folder) / "model.safetensors"
            save_checkpoint(path, *state())
            hello = {"path": str(path), "modules": list(modules), "n_threads": n_threads}
            try:
                fresh = [_Worker(number) for number in range(len(self._workers), n_workers)]
                self._workers += fresh
                for worker in fresh:
                    worker.send(hello, {})
                for worker in fresh:
                    worker.receive()
            except BaseException:
                self.close()
                raise

    def run(self, jobs: Sequence[Callable[[], Message]], told: Callable[[int, Message], None]) -> None:
        """Do jobs, as many at once as there are processes.

        :param jobs: return what a worker is sent.
        :param told: is called with the number of a job, and what its worker answered, for each unit of work. Where it
            raises, the processes are ended.
        :raises WorkerError: a process ended, or failed for no reason that a user can act on.
        :raises MetaRLError: the error that a worker met.
        """
        waiting, idle, busy = deque(range(len(jobs))), deque(self._workers), dict[_Worker, int]()
        try:
            with selectors.DefaultSelector() as selector:
                for worker in self._workers:
                    selector.register(worker.answers, selectors.EVENT_READ, worker)
                while waiting or busy:
                    while waiting and idle:
                        worker, number = idle.popleft(), waiting.popleft()
                        worker.send(*jobs[number]())
                        busy[worker] = number
                    for key, _ in selector.select():
                        answer = key.data.receive()
                        number = busy[key.data]
                        if answer[0]["is_last"]:
                            del busy[key.data]
                            idle.append(key.data)
                        told(number, answer)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes, in the middle of what they do."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.close()


class _Worker:
    """A process and the two pipes to it.

    :param number: its number, for messages.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        path = os.pathsep.join(os.path.abspath(place) for place in sys.path)
        # A session of its own, so that a terminal's Ctrl-C does not reach it, while it is imported neither.
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self.answers = self._answers.fileno()
        """The descriptor that answers are read from."""

    def send(self, document: Mapping[str, Any], tensors: Params) -> None:
        """Send a message.

        :raises WorkerError: the process has ended.
        """
        try:
            send(self._questions.fileno(), document, tensors)
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self) -> Message:
        """Return the next answer.

        :raises WorkerError: the process has ended, or failed for no reason that a user can act on.
        :raises MetaRLError: the error that it met.
        """
        frame = receive(self.answers)
        if frame is None:
            raise self._ended()
        document, tensors = parse(frame)
        if "error" in document:
            kind, words = getattr(errors, document["error"], None), document["words"]
            if isinstance(kind, type) and issubclass(kind, MetaRLError):
                raise kind(words)
            raise WorkerError(f"worker process {self._number + 1} failed: {document['error']}: {words}")
        return document, tensors

    def _ended(self) -> WorkerError:
        """Return the error for a process that has closed its pipe without an answer."""
        code = self._process.wait()
        how = f"with exit code {code}"
        if code < 0:
            known = {each.value: each.name for each in signal.Signals}
            how = f"by {known.get(-code, f'signal {-code}')}"
            if -code == signal.SIGKILL:
                how += ", as the system ends processes where memory is short: take fewer workers"
        return WorkerError(f"worker process {self._number + 1} was ended {how}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._questions.close()
        self._answers.close()
        self._process.wait()
