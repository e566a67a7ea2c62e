"""Tables, figures and text of an experiment's results, and a report of one's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from metarl.zoo.__main__ import main
from metarl.zoo.experiments import EXPERIMENTS, comparison, testing
from metarl.zoo.experiments.measuring import Results
from metarl.zoo.experiments.report import REPORTS, PaperReport, Section, register_report
from metarl.zoo.experiments.reports.first_order_rl import speed_sentences
from metarl.zoo.runs.held_out import published
from tests.zoo.experiments.smoke import NAME, read, reports


def test_tables_figures_and_text(smoke: Path) -> None:
    record = read(smoke / "results")
    text = (smoke / "results" / "results.md").read_text()
    assert list(record["tables"]) == ["PointMass-v0", "Ablation on PointMass-v0", "AntVel-v0", "Training", "Time"]
    for name, sentences in record["sentences"].items():
        assert f"\n## {name}\n" in text
        assert all(sentence in text for sentence in sentences)
    (table,) = record["tables"]["PointMass-v0"]
    assert "published" not in table  # the numbers belong to episodes of 100 steps
    last, best = record["tables"]["Ablation on PointMass-v0"]
    for table in (last, best):
        assert "meta_batch_size 3, n_episodes 2" in table
    figures = {path.stem for path in (smoke / "results").glob("*.png")}
    panels = ("PointMass-v0", "AntVel-v0", "ablation_PointMass-v0")
    kinds = [f"{name}_{kind}" for name in panels for kind in ("last", "best")]
    assert figures == {"learning", *kinds}
    assert all(f"![{name}]({name}.png)" in text for name in figures)
    assert {curve["algo"] for curve in record["learning"]} == {"maml", "fomaml", "oracle"}
    assert set(record["times"]["AntVel-v0"]) == {"maml", "fomaml", "oracle"}
    for env, seconds in record["step_seconds"].items():
        assert env in ("PointMass-v0", "AntVel-v0")
        assert list(seconds) == ["maml", "fomaml"]
        assert all(len(rounds) == 3 and min(rounds) > 0 for rounds in seconds.values())
    assert len(record["sentences"]["Time"]) == len(record["step_seconds"]) == 2


def test_published_numbers_stand_beside_the_families_as_they_are(smoke: Path) -> None:

    report = reports(read(smoke / "results"))["AntVel-v0", "maml, last"]
    plain = dataclasses.replace(report, meta={**report.meta, "env_kwargs": {"oracle": True}})
    assert published(report) == ()
    table = comparison.returns_table(
        [testing.Tested("maml", "last", plain, [1_000_000])], published(plain), "AntVel-v0"
    )
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["maml, last"][:2] == ["1.00", "1"]
    assert rows["MAML, published"] == ["", "1", "30.6 ±30.0", "96.7 ±21.0", "100.1 ±21.0", "69.5"]


def test_the_ratio_of_the_two_orders() -> None:
    assert speed_sentences({"A": {"maml": [4.0, 3.0, 3.0], "fomaml": [2.0, 2.0, 1.0]}}, 1.5) == [
        "Meta-optimisation step on A: maml takes 2.00 times as long as fomaml, 3.000 s and 2.000 s on the same batches "
        "(1.50 to 3.00 times in 3 rounds; the paper says 1.5)."
    ]
    assert speed_sentences({}, 1.5) == []


def test_a_second_paper_is_a_yaml_and_a_report_that_registers_itself(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runs are looked for like any other's, and its report has the parts of every experiment and its own."""
    document = yaml.safe_load((EXPERIMENTS / f"{NAME}.yml").read_text())
    (entry, *_) = document["scales"]["smoke"]["entries"]
    document["scales"] = {
        "smoke": {**document["scales"]["smoke"], "entries": [{**entry, "algos": ["fomaml", "random"]}]}
    }
    document |= {"algos": ["fomaml", "random"], "timed": [], "report": {"title": "What a second paper says"}}
    (tmp_path / "second.yml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr("metarl.zoo.experiments.EXPERIMENTS", tmp_path)
    monkeypatch.setattr(REPORTS, "_items", dict(REPORTS))
    argv = ["reproduce", "second", "--scale", "smoke", "--num-threads", "1", "--no-train", "-f", str(smoke)]
    assert main([*argv, "-o", str(tmp_path / "plain")]) == 0
    assert list(read(tmp_path / "plain")["tables"]) == ["PointMass-v0", "Training", "Time"]

    @register_report("second")
    class Second(PaperReport):
        about = "Of a second paper."

        def sections(self, results: Results) -> dict[str, Section]:
            return {**super().sections(results), self.experiment.settings["title"]: Section(sentences=["It is so."])}

    assert main([*argv, "-o", str(tmp_path / "own")]) == 0
    assert read(tmp_path / "own")["sentences"]["What a second paper says"] == ["It is so."]
    text = (tmp_path / "own" / "results.md").read_text()
    assert "Of a second paper." in text
    assert "## What a second paper says\n\n- It is so.\n" in text
