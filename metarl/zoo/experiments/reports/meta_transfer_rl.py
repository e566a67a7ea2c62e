"""The report of ``meta-transfer-rl.yml``: whether meta-transfer learns from losses of reinforcement learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from metarl.zoo.experiments import comparison
from metarl.zoo.experiments.jobs import Entry
from metarl.zoo.experiments.report import PaperReport, Section, register_report
from metarl.zoo.experiments.testing import Tested, Trained, by_cell, tested


@register_report("meta-transfer-rl")
class MetaTransferRL(PaperReport):
    """Has the surrogates of an environment in one table, and compares every two of them on the same tasks."""

    about: ClassVar[str] = (
        "Returns on held-out tasks of policies that are decoded of nothing (after 0) and of one support (after 1). The "
        "query loss is the score function. The support is supervised in the first table of an environment: env steps "
        "of a random policy, or the cells of a maze; joint training, which sees none, stands beside it. In the second "
        "one it is episodes in which the encoder's learner acts, and the gradient of a surrogate is differentiated. A "
        "gain clear of zero says that what is seen is used. Intervals are 95% bootstrap intervals by task, then by "
        "training seed. last: the end of training. best: chosen on validation tasks."
    )

    def ablation(self, entry: Entry, runs: Sequence[Trained]) -> Section:
        """Return how the surrogates compare on one environment."""
        items = [_named(item, str(cell["support_surrogate"])) for cell, own in by_cell(runs) for item in tested(own)]
        found = comparison.verdicts(items, self.experiment.n_inner_steps)
        labels = list(dict.fromkeys(item.algo for item in items))
        figures = comparison.adaptation_figures(items, (), self.place(entry), labels)
        return Section(
            [comparison.returns_table(items, (), f"{entry.env}, test tasks: episodes as support")],
            comparison.sentences(found, items[0].report.score, comparison.point_of(runs)),
            figures,
            [{"env": entry.env, "cell": {}, **item.to_dict()} for item in found],
        )


def _named(item: Tested, name: str) -> Tested:
    """Return what an algorithm came to under a cell's name, by which figures colour it."""
    return replace(item, algo=name, report=replace(item.report, algo=name, label=f"{name}, {item.checkpoint}"))
