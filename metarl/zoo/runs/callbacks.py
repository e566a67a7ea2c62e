"""What happens after every meta-iteration of a run, and inside long ones: evaluation, checkpoint, progress, stop.

The order matters for exact resumes: what belongs to an iteration (log entries, evaluations.npz, best_model) is written
before the checkpoint of that iteration. So whatever a kill leaves half done lies after the last checkpoint, is cut off
when the run goes on, and is done again with the same numbers.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from metarl.envs.family import score_of
from metarl.errors import DivergedError
from metarl.files.logging import flush, record_figure
from metarl.files.writing import npz_bytes, write_npz_atomic
from metarl.meta.base import MetaAlgorithm
from metarl.meta.evaluation.report import Report
from metarl.meta.progress import UnitCallback, Work
from metarl.zoo.console import Reporter, warn
from metarl.zoo.interrupts import Interrupts
from metarl.zoo.runs.evaluations import META, RESULTS, TASK, read_meta, read_results
from metarl.zoo.runs.folder import Held, Run

INNER_STEPS = 3
"""Inner steps of an evaluation, at least: further ones than in training show where adaptation begins to overshoot."""


SAVE_SECONDS = 300.0
"""At most so much work is lost of a meta-iteration, and that of one unit."""

SAVE_SPACING = 1.0
"""Seconds between checkpoints where no frequency is asked for. Writing one after every meta-iteration would take longer
than the meta-iteration itself where that takes a few milliseconds."""


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies in ``(before, after]``."""
    return after // every > before // every


class RunCallback(UnitCallback):
    """Evaluates on validation tasks, keeps the best model, saves checkpoints, shows progress, and stops on request.

    An evaluation in which adaptation diverges is left out, and said; training goes on. Inside a meta-iteration that
    takes long, what its tasks have learnt so far is saved too: every ``save_freq`` env steps, where a meta-iteration
    has more, and every :data:`SAVE_SECONDS`.

    :param held: the folder where files go; training stops where it is not in its place any more.
    :param reporter: shows progress.
    :param interrupts: says whether to stop.
    :param total_timesteps: env steps after which the run ends.
    :param save_freq: env steps between checkpoints; below 1: after a meta-iteration, at most one every
        :data:`SAVE_SPACING` seconds.
    :param evaluation: the periodic evaluation, None for no evaluations.
    """

    model: MetaAlgorithm  # type: ignore[assignment]

    def __init__(
        self,
        held: Held,
        reporter: Reporter,
        interrupts: Interrupts,
        total_timesteps: int,
        save_freq: int,
        evaluation: Evaluation | None,
    ) -> None:
        super().__init__()
        self._held, self._reporter, self._interrupts = held, reporter, interrupts
        self._total, self._save_freq, self._evaluation = total_timesteps, save_freq, evaluation
        self._seen = 0
        self._saved = 0, 0.0

    def _on_training_start(self) -> None:
        self._seen = self.model.num_timesteps
        self._saved = self._seen, time.monotonic()

    def on_unit(self, work: Work) -> bool:
        now = self.model.num_timesteps + work.env_steps
        self._reporter.inside(now, self.model.n_iterations, work)
        stop, (before, when) = self._interrupts.requested, self._saved
        is_long = 1 <= self._save_freq < self.model.steps_per_iteration
        if stop or (is_long and crossed(before, now, self._save_freq)) or time.monotonic() - when > SAVE_SECONDS:
            self._held.require_in_place()
            self._save(now)
        return not stop

    def _save(self, num_timesteps: int) -> None:
        self._held.run.save(self._held.run.checkpoint, self.model)
        self._saved = num_timesteps, time.monotonic()

    def _due(self, before: int, now: int) -> bool:
        if self._save_freq < 1:
            return time.monotonic() - self._saved[1] >= SAVE_SPACING
        return crossed(before, now, self._save_freq)

    def _on_step(self) -> bool:
        before, now = self._seen, self.model.num_timesteps
        self._seen = now
        self._held.require_in_place()
        if self._evaluation is not None and self._evaluation.due(before, now, now >= self._total):
            self._reporter.busy("validating", "the evaluation on validation tasks")
            try:
                self._evaluation.run(self.model)
            except DivergedError as error:
                # To stop here would be to stop here again whenever the run goes on.
                warn(f"no evaluation after {score_of(self.model.family).amount(now)}, adaptation diverged: {error}")
        # Asked once: what stops here has been saved, and what comes later waits for the next iteration.
        stop = self._interrupts.requested
        if stop or now >= self._total or self._due(before, now):
            flush(self.model.logger)
            self._save(now)
        self._reporter.update(now, self.model.n_iterations)
        return not stop


class Evaluation:
    """Returns before and after adaptation on fixed validation tasks, kept in the run folder.

    SB3's keys hold the return after as many inner steps as in training, and it chooses the best model. For a model that
    is told the task it is the return before any inner step. The adaptation curve goes on to :data:`INNER_STEPS`.

    :param run: where evaluations.npz, meta_evaluations.npz and best_model.safetensors go.
    :param every: env steps between evaluations.
    :param n_tasks: validation tasks.
    :param n_episodes: for each inner step and task; None as in training.
    :param subject: the same algorithm on another configuration of the family, to evaluate there; None: as in training.
    """

    def __init__(
        self, run: Run, every: int, n_tasks: int, n_episodes: int | None, subject: MetaAlgorithm | None = None
    ) -> None:
        self._run, self._every, self._subject = run, every, subject
        self._n_tasks, self._n_episodes = n_tasks, n_episodes
        self._results, self._meta = run.folder / "evaluations.npz", run.folder / "meta_evaluations.npz"
        self.best = -np.inf

    def due(self, before: int, now: int, last: bool) -> bool:
        """Whether an evaluation belongs between two numbers of env steps; one always belongs to the last."""
        return last or crossed(before, now, self._every)

    def run(self, model: MetaAlgorithm) -> None:
        """Evaluate, log, and write the files."""
        subject = model if self._subject is None else self._subject
        subject.params = model.params
        trained = 0 if model.is_told_the_task else max(1, getattr(model, "n_inner_steps", 1))
        # A run goes on with as many inner steps as its evaluations have.
        former = read_meta(self._meta) if self._meta.is_file() else None
        steps = max(trained, INNER_STEPS) if former is None else former["post"].shape[1]
        report = subject.evaluate("validation", steps, n_tasks=self._n_tasks, n_episodes=self._n_episodes)
        lengths = np.asarray(report.meta["ep_lengths"], dtype=np.float64)[:, trained]
        returns = report.returns[0]
        self._log(model, subject, report, trained, float(lengths.mean()))
        mean = float(np.mean(returns[:, trained]))
        if mean > self.best:
            self.best = mean
            self._run.save(self._run.best, model)
        now = np.array([model.num_timesteps])
        results = {"timesteps": now, "results": returns[None, :, trained], "ep_lengths": lengths[None]}
        if self._results.is_file():
            results = _joined(read_results(self._results), results)
        self._write(self._results, results)
        meta = {
            "timesteps": now,
            "pre": returns[None, :, 0],
            "post": returns.T[None, 1:],
            "env_steps": report.env_steps[None],
        }
        if former is not None:
            meta = _joined(former, meta)
        tasks = {f"{TASK}{name}": value for name, value in report.tasks.items()}
        self._write(self._meta, {**meta, **tasks})

    def _write(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        write_npz_atomic(path, self._run.folder, **arrays)

    def cut(self, num_timesteps: int) -> dict[Path, bytes]:
        """Return the files without what lies after a checkpoint; the best return before it is the best so far."""
        contents = {}
        for path, read, per_evaluation in ((self._results, read_results, RESULTS), (self._meta, read_meta, META)):
            if not path.is_file():
                continue
            arrays = read(path)
            keep = arrays["timesteps"] <= num_timesteps
            if not keep.all():
                arrays |= {name: arrays[name][keep] for name in per_evaluation}
                contents[path] = npz_bytes(path, arrays)
            if path == self._results and keep.any():
                self.best = float(np.mean(arrays["results"], axis=1).max())
        return contents

    def _log(self, model: MetaAlgorithm, subject: MetaAlgorithm, report: Report, trained: int, length: float) -> None:
        # Matplotlib takes 0.5 s: not before training.
        from metarl.meta.evaluation.figures import adaptation_cards
        from metarl.meta.evaluation.predictions import prediction_cards, predictions_of

        logger = model.logger
        means = report.returns.mean(axis=(0, 1))
        logger.record("eval/mean_reward", float(means[trained]))
        logger.record("eval/mean_ep_length", length)
        logger.record("eval/adapt_gain", float(means[trained] - means[0]))
        for step, value in enumerate(means):
            logger.record(f"eval/return_after_{step}", float(value))
        if report.learning_returns is not None:
            for step, value in enumerate(report.learning_returns.mean(axis=(0, 1))):
                logger.record(f"eval/learning_return_after_{step}", float(value))
        for name, card in adaptation_cards(report).items():
            record_figure(logger, f"eval/adaptation{name}", card)
        for name, card in prediction_cards(predictions_of(subject, max(1, trained))).items():
            record_figure(logger, f"eval/{name}", card)
        # A point of its own at this step, so that nothing waits in memory for an iteration that a kill may prevent.
        logger.record("time/total_timesteps", model.num_timesteps, exclude="tensorboard")
        logger.dump(model.num_timesteps)


def _joined(old: dict[str, np.ndarray], rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return rows with new ones after them."""
    return {name: np.concatenate([old[name], value]) for name, value in rows.items()}
