"""The reports of papers: a module each, found by being here; it registers itself under the name of its experiment."""

from __future__ import annotations

import importlib
import pkgutil

from metarl.zoo.experiments.jobs import Experiment
from metarl.zoo.experiments.report import REPORTS, PaperReport

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def report_of(experiment: Experiment) -> PaperReport:
    """Return the report of an experiment; one without a report of its own has the parts that every experiment has."""
    return REPORTS.get(experiment.name, PaperReport)(experiment)
