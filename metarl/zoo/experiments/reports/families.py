"""The report of ``families.yml``: which families need adaptation, and what first-order wrappers gain on them."""

from __future__ import annotations

from typing import ClassVar

from metarl.meta.evaluation.points import so_many
from metarl.meta.evaluation.tables import Table
from metarl.zoo.experiments.comparison import Verdict, verdicts
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.report import PaperReport, Section, register_report
from metarl.zoo.experiments.testing import by_entry, of_checkpoint, tested

JOINT, ORACLE = "pretrain", "oracle"
"""Joint training, which adapts only when it is tested; and who is told the task, and stays as it is."""


@register_report("families")
class Families(PaperReport):
    """Says first whether a family needs adaptation, with all families in one table."""

    about: ClassVar[str] = (
        "Returns on held-out tasks before and after inner steps, with equal env steps of training, support and query "
        "together; of imitation, whose env steps are states of the expert's, the return of the adapted policy in the "
        "real family. Intervals are 95% bootstrap intervals by task, then by training seed; algorithms are compared on "
        "the same tasks and streams. last: the end of training, at its inner rate. best: checkpoint and inner rates "
        "chosen on validation tasks. The oracle is told the task and stays as it is: where joint training has its "
        "return, there is nothing to adapt to. With one training seed intervals say nothing about other seeds."
    )

    def sections(self, results: Results) -> dict[str, Section]:
        """Return the parts of the results, by title: the one table of all families first."""
        return {"All families": self.summary(results), **super().sections(results)}

    def summary(self, results: Results) -> Section:
        """Return all families in one table, and how joint training stands beside the oracle on each."""
        points = [0, *sorted({1, self.experiment.n_inner_steps})]
        rows, lines = [], []
        notes: dict[str, None] = {}
        for entry, runs in by_entry(results.runs):
            items = tested(runs)
            for item in of_checkpoint(items, "best"):
                reached = item.report.n_inner_steps
                cells = [str(item.report.interval(step)) if step <= reached else "" for step in points]
                rows.append([f"{entry.env}, {item.algo}", *cells])
                notes[item.report.describe_intervals()] = None
            found = verdicts(items, self.experiment.n_inner_steps)
            of_pair = [item for item in found if (item.a, item.b, item.checkpoint) == (JOINT, ORACLE, "best")]
            lines += [_sentence(entry.env, item) for item in of_pair]
        table = Table(["", *map(so_many, points)], rows, "Return on test tasks, best checkpoints", list(notes))
        return Section([table], lines)


def _sentence(env: str, found: Verdict) -> str:
    """Say how joint training stands beside the oracle after some inner steps."""
    place = {JOINT: "ahead of", ORACLE: "behind", None: "not clearly different from"}[found.winner]
    few = "" if found.supported else "; fewer than 20 tasks, which is too few for a verdict"
    return (
        f"{env}: joint training after {so_many(found.step)} is {place} the oracle, "
        f"by a return of {found.interval} (joint training minus oracle{few})."
    )
