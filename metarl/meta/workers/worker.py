"""The program of a worker process: it loads a model, and learns the blocks of a meta-batch that it is told to.

It learns by itself what a block is, because tasks and streams are addressed; what it goes on from, and what it answers
after every unit of work, is the state of a walk.
"""

from __future__ import annotations

import importlib
import os
import queue
import signal
import threading
import traceback
from typing import Any

import metarl
from metarl.agents.parallel import library_torch
from metarl.errors import ConfigError, MetaRLError
from metarl.meta.iterating import Iterates
from metarl.meta.progress import Timer
from metarl.meta.workers.messages import Frame, parse, receive, send
from metarl.params import Params, group


def main() -> None:
    """Answer messages until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print goes to the errors, not among the messages, and they read nothing.
    questions, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions, frames), daemon=True).start()
    try:
        with library_torch():
            _serve(answers, frames)
    except BrokenPipeError:  # nobody wants to know any more
        os._exit(0)


def _listen(questions: int, frames: queue.SimpleQueue[Frame]) -> None:
    """Hand on what is asked; end the process when the other end is closed, also in the middle of a unit of work."""
    while (frame := receive(questions)) is not None:
        frames.put(frame)
    os._exit(0)


def _serve(answers: int, frames: queue.SimpleQueue[Frame]) -> None:
    model: Iterates | None = None
    while True:
        document, tensors = parse(frames.get())
        try:
            if model is None:
                model = _load(document)
                send(answers, {}, {})
            else:
                _learn(answers, model, document, tensors)
        except BrokenPipeError:
            raise
        except MetaRLError as error:
            _fail(answers, error)
        except Exception as error:
            traceback.print_exc()
            _fail(answers, error)


def _fail(answers: int, error: Exception) -> None:
    send(answers, {"error": type(error).__name__, "words": str(error)}, {})


def _load(document: dict[str, Any]) -> Iterates:
    for name in document["modules"]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"a worker process cannot import {name}, which the model needs: {error}") from None
    model = metarl.load(document["path"], n_threads=document["n_threads"])
    assert isinstance(model, Iterates)
    return model


def _learn(answers: int, model: Iterates, document: dict[str, Any], tensors: Params) -> None:
    """Do the units of a walk that are left, and answer with its state after each."""
    model.n_iterations, model.params = document["iteration"], group(tensors, "params/")
    walk = model.walk_of(document["indices"], **document["how"])
    if state := group(tensors, "walk/"):
        walk.load_state(state)
    going_on = True
    while going_on:
        timer = Timer()
        going_on = walk.work(timer)
        send(answers, {"seconds": timer.seconds, "is_last": not going_on}, walk.state())
