"""What finished runs of meta-transfer draw: figure 2 of the paper, and episodes in tasks that were seen."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from metarl import MetaTransfer
from metarl.envs.maze.maze import Maze
from metarl.envs.mujoco.pictures import PictureError
from metarl.zoo.experiments.jobs import Job, load_experiment
from metarl.zoo.experiments.report import Section
from metarl.zoo.experiments.reports import report_of
from metarl.zoo.experiments.reports.meta_transfer import MetaTransfer as Report
from metarl.zoo.experiments.testing import Trained
from metarl.zoo.runs.folder import Run


def shown(name: str, folder: Path) -> tuple[Section, Report]:
    """Return what untrained models of every cell of an experiment at smoke scale draw."""
    experiment = load_experiment(f"meta-transfer-{name}", "smoke")
    (entry,) = experiment.entries
    runs = []
    for number, cell in enumerate(entry.cells()):
        run = Run(folder / str(number), "meta_transfer", entry.env, number)
        env_kwargs = {key.removeprefix("env_kwargs."): value for key, value in cell.items() if "." in key}
        network = {"net_arch": [8]}
        model = MetaTransfer(
            "MlpPolicy", entry.env, encoder=cell["encoder"], env_kwargs=env_kwargs, policy_kwargs=network, init="naive"
        )
        run.folder.mkdir()
        model.save(run.final)
        runs.append(Trained(Job(entry, "meta_transfer", 0, cell), run, {}))
    report = report_of(experiment)
    assert isinstance(report, Report)
    section = report.show(entry, runs)
    assert {f"{name}.png" for name in section.figures} <= set(report.file_names())
    return section, report


def test_figure_2_shows_support_sine_and_predictions_over_samples_of_noise(tmp_path: Path) -> None:
    section, _ = shown("cosine", tmp_path)
    figure = section.figures["CosineSine-v0_sines"]
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["linear, σ = 0", "mean, σ = 0", "linear, σ = 0.5", "mean, σ = 0.5"]
    spreads = []
    for ax in figure.axes:
        sine, mean = (np.asarray(line.get_ydata()) for line in ax.get_lines())
        (points,) = (part for part in ax.collections if len(part.get_offsets()) == 3)
        amplitude = sine.max()
        assert np.isclose(sine.min(), -amplitude, atol=1e-2)
        (band,) = (part for part in ax.collections if part is not points)
        (path,) = band.get_paths()
        spreads.append(path.vertices[1 : 2 * len(mean) + 2, 1])
        assert points.get_offsets().shape == (3, 2)
    for clean, noisy in zip(spreads[:2], spreads[2:], strict=True):
        assert np.ptp(noisy) > 0.0
        assert not np.allclose(clean, noisy)
    (line,) = section.sentences
    assert "over 100 samples of noise on the same 3 inputs" in line


def test_three_mazes_show_the_ways_of_all_encoders(tmp_path: Path) -> None:
    section, _ = shown("maze", tmp_path)
    ((name, figure),) = section.figures.items()
    assert name == "MazeTransfer-v0_tasks_width6"
    frames = [ax for ax in figure.axes if ax.images]
    assert len(frames) == 3 * 2
    words = [ax.texts[0].get_text() for ax in frames]
    assert [text.partition(":")[0] for text in words] == ["linear", "mean"] * 3
    assert all(re.fullmatch(r"\w+: score -?\d\.\d\d", text) and "-0.00" not in text for text in words)
    assert all(np.ptp(np.asarray(ax.images[0].get_array())) > 0 for ax in frames)


def test_where_nothing_can_be_drawn_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise PictureError("no picture of Maze-v0 (egl: none): install EGL")

    monkeypatch.setattr(Maze, "render", fails)
    section, _ = shown("maze", tmp_path)
    assert section.figures == {}
    assert section.sentences == ["no picture of Maze-v0 (egl: none): install EGL."]
