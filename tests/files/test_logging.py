"""Logs have exactly one point for each step, whatever happened in between."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from stable_baselines3.common.logger import FormatUnsupportedError, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from metarl.errors import CheckpointError, UnknownNameError
from metarl.files.logging import (
    STEP_KEY,
    TEXT_FORMATS,
    cut_events,
    flush,
    log_hyperparameters,
    make_logger,
    record_figure,
)
from metarl.files.writing import write_all_atomic
from tests.processes import run_program

FILES = ("csv", "json", "log", "tensorboard")


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def points(folder: Path, tag: str = "meta/gain") -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 3)) for event in events(folder).Scalars(tag)]


def write(logger: Logger, steps: Any, shift: float = 0.0) -> None:
    for step in steps:
        logger.record("meta/gain", step + shift)
        logger.record(STEP_KEY, step, exclude="tensorboard")
        logger.dump(step)


def crashed(folder: Path, **arguments: Any) -> None:
    """Log up to 12 with values that the resumed run must not keep past 10, and stop without closing."""
    logger = make_logger(folder, FILES, **arguments)
    write(logger, range(1, 11))
    flush(logger)
    write(logger, (11, 12), shift=0.5)


# --------------------------------------------------------------------------------------------------------------- resume
def test_resume_has_exactly_one_point_for_each_step(tmp_path: Path) -> None:
    crashed(tmp_path)
    assert len(points(tmp_path)) == 12
    logger = make_logger(tmp_path, FILES, resume_step=10)
    write(logger, range(11, 21))
    logger.close()

    expected = [(step, float(step)) for step in range(1, 21)]
    assert points(tmp_path) == expected
    table = pd.read_csv(tmp_path / "progress.csv")
    assert list(zip(table[STEP_KEY], table["meta/gain"], strict=True)) == expected
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [(row[STEP_KEY], row["meta/gain"]) for row in rows] == expected
    assert (tmp_path / "log.txt").read_text().count("meta/") == 22


def test_resumes_add_up_and_step_zero_starts_over(tmp_path: Path) -> None:
    crashed(tmp_path)
    for start in (10, 12, 14):
        logger = make_logger(tmp_path, FILES, resume_step=start)
        write(logger, range(start + 1, start + 5))
    assert [step for step, _ in points(tmp_path)] == list(range(1, 19))
    logger = make_logger(tmp_path, FILES, resume_step=0)
    write(logger, (1, 2))
    assert [step for step, _ in points(tmp_path)] == [1, 2]
    assert pd.read_csv(tmp_path / "progress.csv")[STEP_KEY].tolist() == [1, 2]


def test_resume_into_a_folder_without_logs(tmp_path: Path) -> None:
    logger = make_logger(tmp_path / "new", FILES, resume_step=5)
    write(logger, (6, 7))
    assert points(tmp_path / "new") == [(6, 6.0), (7, 7.0)]


def test_tensorboard_folder_apart(tmp_path: Path) -> None:
    crashed(tmp_path / "run", tensorboard_folder=tmp_path / "tb")
    assert not list((tmp_path / "run").glob("events*"))
    logger = make_logger(tmp_path / "run", FILES, tmp_path / "tb", 10)
    write(logger, (11,))
    assert [step for step, _ in points(tmp_path / "tb")] == list(range(1, 12))


def test_a_new_run_starts_its_files_afresh(tmp_path: Path) -> None:
    for _ in range(2):
        write(make_logger(tmp_path, ("csv", "json", "log")), (1, 2))
    assert len(pd.read_csv(tmp_path / "progress.csv")) == 2
    assert len((tmp_path / "progress.json").read_text().splitlines()) == 2
    assert (tmp_path / "log.txt").read_text().count("meta/") == 2


def test_killed_process_resumed_again_and_again(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from metarl.files.logging import flush, make_logger
        start, folder = int(sys.argv[1]), sys.argv[2]
        logger = make_logger(folder, ("csv", "tensorboard"), resume_step=start or None)
        for step in range(start + 1, start + 8):
            logger.record("meta/gain", float(step))
            logger.dump(step)
            if step == start + 5:
                flush(logger)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    for start in (0, 5):
        done = run_program(code, str(start), str(tmp_path))
        assert done.returncode == -9, done.stderr
    write(make_logger(tmp_path, ("csv", "tensorboard"), resume_step=10), (11,))
    expected = [(step, float(step)) for step in range(1, 12)]
    assert points(tmp_path) == expected
    table = pd.read_csv(tmp_path / "progress.csv")
    assert list(zip(table[STEP_KEY], table["meta/gain"], strict=True)) == expected


# ---------------------------------------------------------------------------------------------------- TensorBoard files
def truncate(folder: Path, step: int) -> None:
    write_all_atomic(cut_events(folder, step))


def test_half_written_and_damaged_ends_are_cut(tmp_path: Path) -> None:
    write(make_logger(tmp_path, ("tensorboard",)), range(1, 6))
    (path,) = tmp_path.glob("events*")
    whole = path.read_bytes()
    truncate(tmp_path, 5)
    assert path.read_bytes() == whole
    for tail in (b"\0", b"\0" * 40, whole[-25:-1], b"\xff" * 12):
        path.write_bytes(whole + tail)
        truncate(tmp_path, 5)
        assert path.read_bytes() == whole
    path.write_bytes(whole[:-3])
    truncate(tmp_path, 5)
    assert [step for step, _ in points(tmp_path)] == [1, 2, 3, 4]
    truncate(tmp_path, 2)
    assert [step for step, _ in points(tmp_path)] == [1, 2]
    assert cut_events(tmp_path / "missing", 2) == {}


def test_figures_text_and_histograms_are_cut_by_step_too(tmp_path: Path) -> None:
    logger = make_logger(tmp_path, FILES)
    for step in (1, 2, 3):
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, step])
        record_figure(logger, "adaptation", figure)
        logger.record("parameters", torch.arange(4.0), exclude=("stdout", "log", "csv", "json"))
        logger.record("note", 'a, "b"\nc', exclude="tensorboard")
        logger.dump(step)
    truncate(tmp_path, 2)
    accumulator = events(tmp_path)
    assert [image.step for image in accumulator.Images("adaptation")] == [1, 2]
    assert accumulator.Images("adaptation")[0].encoded_image_string[:4] == b"\x89PNG"
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["note"] for row in rows] == ['a, "b"\nc'] * 3
    make_logger(tmp_path, FILES, resume_step=1)
    with open(tmp_path / "progress.csv", newline="") as file:
        assert [row["note"] for row in csv.DictReader(file)] == ['a, "b"\nc']


def hyperparameters(folder: Path) -> list[dict[str, Any]]:
    content = events(folder).PluginTagToContent("hparams")
    starts = [HParamsPluginData.FromString(data).session_start_info.hparams for data in content.values()]
    return [{name: (value.string_value or value.number_value) for name, value in found.items()} for found in starts]


def count_hyperparameters(folder: Path) -> int:
    from metarl.files.logging import _event_files, _records

    data = b"".join(path.read_bytes() for path in _event_files(folder))
    return sum(b"_hparams_/session_start_info" in record for record, _ in _records(data))


def test_hyperparameters_appear_once(tmp_path: Path) -> None:
    given = {"inner_lr": 0.1, "outer": "trpo", "layers": [100, 100], "nothing": None, "n_inner_steps": 1}
    logger = make_logger(tmp_path, FILES)
    assert log_hyperparameters(logger, given, ["meta/gain"])
    assert not log_hyperparameters(logger, given, ["meta/gain"])
    write(logger, range(1, 4))
    logger = make_logger(tmp_path, FILES, resume_step=0)
    assert not log_hyperparameters(logger, given, ["meta/gain"])
    write(logger, range(1, 4))
    assert count_hyperparameters(tmp_path) == 1
    shown = [found for found in hyperparameters(tmp_path) if found]
    assert shown == [{"inner_lr": 0.1, "outer": "trpo", "layers": "[100, 100]", "n_inner_steps": 1.0}]
    assert not log_hyperparameters(make_logger(tmp_path, ("csv",)), given, ["meta/gain"])


# --------------------------------------------------------------------------------------------------------------- tables
def test_keys_that_come_later_get_a_column(tmp_path: Path) -> None:
    logger = make_logger(tmp_path, ("csv",))
    write(logger, (1,))
    logger.record("b", np.float32(0.5))
    logger.record("a", True)
    logger.record("hidden", 1, exclude="csv")
    logger.dump(2)
    write(logger, (3,))
    logger = make_logger(tmp_path, ("csv",), resume_step=3)
    logger.record("c", 0.1 + 0.2)
    logger.dump(4)
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["meta/gain", STEP_KEY, "a", "b", "c"],
        ["1.0", "1", "", "", ""],
        ["", "2", "True", "0.5", ""],
        ["3.0", "3", "", "", ""],
        ["", "4", "", "", "0.30000000000000004"],
    ]


def test_half_written_rows_are_left_out(tmp_path: Path) -> None:
    write(make_logger(tmp_path, ("csv", "json")), (1, 2))
    for name, tail in (("progress.csv", "3.0,"), ("progress.json", '{"meta/gain": 3')):
        with open(tmp_path / name, "a") as file:
            file.write(tail)
    write(make_logger(tmp_path, ("csv", "json"), resume_step=2), (3,))
    assert pd.read_csv(tmp_path / "progress.csv")[STEP_KEY].tolist() == [1, 2, 3]
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [row[STEP_KEY] for row in rows] == [1, 2, 3]


def test_what_a_table_cannot_hold_is_refused(tmp_path: Path) -> None:
    logger = make_logger(tmp_path, ("csv",))
    record_figure(logger, "fine", Figure())
    logger.dump(1)
    from stable_baselines3.common.logger import Figure as SB3Figure

    logger.record("figure", SB3Figure(Figure(), close=False))
    with pytest.raises(FormatUnsupportedError, match="csv"):
        logger.dump(2)


def test_stdout_shows_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = make_logger(tmp_path, ("stdout",))
    record_figure(logger, "figure", Figure())
    write(logger, (7,))
    out = capsys.readouterr().out
    assert "gain" in out
    assert "figure" not in out
    assert os.listdir(tmp_path) == []
    assert "stdout" in TEXT_FORMATS


# --------------------------------------------------------------------------------------------------------------- faults
def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'tensorboard'"):
        make_logger(tmp_path / "run", ("tensorbord",))
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        make_logger(tmp_path / "run", ("csv",))


def test_full_disk_is_one_error_in_every_format(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from metarl.errors import CheckpointError
        from metarl.files.logging import make_logger
        loggers = [make_logger(sys.argv[1], (name,)) for name in ("csv", "json", "log", "tensorboard")]
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        for logger in loggers:
            try:
                for step in range(10_000):
                    logger.record("meta/gain", float(step))
                    logger.dump(step)
            except CheckpointError as error:
                print(error)
            logger.close()
    """
    done = run_program(code, str(tmp_path))
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line, name in zip(lines, ("progress.csv", "progress.json", "log.txt", "events.out"), strict=True):
        assert line.startswith(f"cannot write {tmp_path / name}")
    assert [step for step, _ in points(tmp_path)] == list(range(len(points(tmp_path))))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    code = """
        import sys
        from metarl.files.checkpoint import load_checkpoint, save_checkpoint
        from metarl.files.writing import read_npz, write_npz_atomic
        from metarl.files.logging import log_hyperparameters, make_logger, record_figure
        from matplotlib.figure import Figure
        import torch
        seen = []
        sys.addaudithook(lambda event, arguments: seen.append(event))
        folder = sys.argv[1]
        for resume in (None, 1):
            logger = make_logger(folder, ("csv", "json", "log", "tensorboard"), resume_step=resume)
            log_hyperparameters(logger, {"a": 1}, ["x"])
            record_figure(logger, "figure", Figure())
            logger.record("x", 1.0)
            logger.dump(1)
        save_checkpoint(folder + "/c", {"x": torch.ones(2)}, {"a": [1, "b"]})
        load_checkpoint(folder + "/c")
        write_npz_atomic(folder + "/d.npz", x=[1, 2], y=["a", "b"])
        read_npz(folder + "/d.npz")
        print([event for event in seen if event.startswith("pickle.")])
    """
    done = run_program(code, str(tmp_path))
    assert done.stdout == "[]\n", done.stderr
