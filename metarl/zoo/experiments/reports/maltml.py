"""The report of ``maltml-*.yml`` and ``continual-sinusoid.yml``: what a few tasks of a held-out family are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from metarl.envs.score import fixed
from metarl.meta.evaluation.comparison import compare, comparison_figure
from metarl.meta.evaluation.moved import moved_table
from metarl.meta.evaluation.points import so_many
from metarl.meta.evaluation.statistics import MIN_UNITS
from metarl.zoo.experiments.jobs import Entry
from metarl.zoo.experiments.report import PaperReport, Section, register_report
from metarl.zoo.experiments.testing import NO_TASKS, Tested, Trained, of_checkpoint, tested


@register_report("maltml-navigation")
@register_report("maltml-sinusoid")
class MALTML(PaperReport):
    """Each wrapper's initialisation with and without meta-finetuning on few tasks, and which layers move in it."""

    about: ClassVar[str] = (
        "Scores on goal tasks of held-out families, before and after inner steps: last and best after meta-finetuning "
        "to the family on few of its tasks, no tasks without. Every wrapper's initialisation is met by the same tasks, "
        "examples and step of meta-finetuning. Intervals are 95% bootstrap intervals by family, then by training seed; "
        "algorithms are compared on the same families and streams, with equally much training. The oracle is "
        "told the task, and takes no inner steps."
    )

    def file_names(self) -> list[str]:
        """Return the names of what the results may be written to beside the record."""
        return [*super().file_names(), *(f"{entry.env}_few_tasks.png" for entry in self.experiment.entries)]

    def comparison(self, entry: Entry, runs: Sequence[Trained]) -> Section:
        """Return how the algorithms compare, what few tasks add to each, and which layers move."""
        section, items = super().comparison(entry, runs), tested(runs)
        if not items:
            return section
        few = {item.algo: item for item in of_checkpoint(items, "last")}
        pairs = [(few[item.algo], item) for item in of_checkpoint(items, NO_TASKS) if item.algo in few]
        moved = moved_table([after.report for after, _ in pairs])
        both = [item.report for after, before in pairs for item in (before, after)]
        return replace(
            section,
            tables=[*section.tables, *([] if moved is None else [moved])],
            sentences=[*section.sentences, *(_added(*pair) for pair in pairs)],
            figures={**section.figures, **({f"{entry.env}_few_tasks": comparison_figure(both)} if both else {})},
        )


@register_report("continual-sinusoid")
class ContinualSinusoid(PaperReport):
    """What is left of all tasks of a sequence while they are met one after another."""

    about: ClassVar[str] = (
        "The score on all tasks of a sequence, all of one held-out frequency, after so many of them were met, one "
        "after another. Intervals are 95% bootstrap intervals by frequency, then by training seed; algorithms are "
        "compared on the same sequences and streams, with equal examples of training. Every wrapper learns the "
        "sequence by its own inner steps: OML and ANIL move the head, the others everything."
    )

    def comparison(self, entry: Entry, runs: Sequence[Trained]) -> Section:
        """Return how the algorithms compare, and how well each does the task that it met last."""
        section = super().comparison(entry, runs)
        return replace(section, sentences=[*section.sentences, *map(_kept, of_checkpoint(tested(runs), "last"))])


def _added(after: Tested, before: Tested) -> str:
    """Say what meta-finetuning adds to an algorithm's initialisation."""
    pair = compare(after.report, before.report).returns
    points = sorted({0, after.report.n_inner_steps})
    words = "; ".join(f"after {so_many(point)} {pair.at(point)}" for point in points)
    few = "" if after.report.n_tasks >= MIN_UNITS else ", of too few families for a verdict"
    score = after.report.score
    does = f"lowers the {score.name}" if score.lower_is_better else f"adds to the {score.name}"
    return f"{after.algo}: meta-finetuning on few tasks {does}, {words} (by family{few})."


def _kept(item: Tested) -> str:
    """Say what is left of the tasks of a sequence, beside how well the last one is done when it is met."""
    report = item.report
    last_met: Any = report.meta.get("last_met")  # of the first run; a record may say anything
    when = ""
    if isinstance(last_met, list) and last_met and all(isinstance(value, float | int) for value in last_met):
        when = f"; when each was met last, {fixed(report.score.sign * sum(last_met) / len(last_met))}"
    kept = report.score.sign * report.returns[..., -1].mean()
    return f"{item.algo}: {report.score.name} of all tasks at the end {fixed(kept)}{when}."
