"""Reports: what they say, that they survive JSON, and that unlike things are not compared."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from metarl import FOMAML, RandomInit
from metarl.errors import CheckpointError, ConfigError, UnknownNameError
from metarl.meta.evaluation.comparison import compare, comparison_figure, comparison_table
from metarl.meta.evaluation.figures import adaptation_cards
from metarl.meta.evaluation.published import PUBLISHED, published_for
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.statistics import MIN_UNITS, bootstrap_interval, paired_bands, paired_interval
from metarl.meta.evaluation.tables import Table
from tests.meta.walk import Walk

N_TASKS = 30


def make_report(
    algo: str = "fomaml", shift: float = 0.0, seeds: tuple[int, ...] = (0,), n_steps: int = 3, meta_seed: int = 5
) -> Report:
    """A report whose tasks differ a lot and whose adaptation adds 10 a step."""
    difficulty = np.random.default_rng(0).normal(0, 30.0, N_TASKS)
    noise = np.random.default_rng([*seeds, 7]).normal(0, 2.0, (len(seeds), N_TASKS, n_steps + 1))
    returns = difficulty[None, :, None] + 10.0 * np.arange(n_steps + 1) + noise + shift
    return Report(
        algo=algo,
        env="AntVel-v0",
        split="test",
        returns=returns,
        env_steps=np.arange(n_steps + 1) * 4000,
        tasks={"velocity": np.linspace(0, 3, N_TASKS, dtype=np.float32)},
        seeds=seeds,
        meta={"evaluation_seed": meta_seed, "n_episodes": 20, "env_kwargs": {}, "commit": "abc"},
    )


def test_intervals_and_gains_are_the_statistics_of_the_returns() -> None:
    report = make_report(seeds=(0, 1, 2))
    assert report.interval(2) == pytest.approx(bootstrap_interval(report.returns[..., 2]))
    gain = report.returns[..., 3] - report.returns[..., 0]
    assert report.gain(3) == pytest.approx(bootstrap_interval(gain))
    assert report.gain(0) == (0.0, 0.0, 0.0)
    # Gains are paired by task, so the spread between tasks is not in them.
    assert report.gain(1).high - report.gain(1).low < 0.2 * (report.interval(1).high - report.interval(1).low)
    with pytest.raises(ConfigError, match="step=4 is outside 0 to 3"):
        report.interval(4)


def test_few_tasks_are_stratified() -> None:
    strata = np.arange(N_TASKS) % 2
    report = make_report()
    returns = report.returns + np.where(strata, 500.0, -500.0)[None, :, None]
    wide = dataclasses.replace(report, returns=returns)
    narrow = dataclasses.replace(report, returns=returns, strata=strata)
    assert narrow.interval(0).mean == wide.interval(0).mean
    assert narrow.interval(0).high - narrow.interval(0).low < 0.2 * (wide.interval(0).high - wide.interval(0).low)
    assert "30 adaptations to 2 tasks" in str(narrow.table())


def shortened(report: Report, n: int) -> Report:
    """Return a report on the first tasks only."""
    tasks = {name: value[:n] for name, value in report.tasks.items()}
    return dataclasses.replace(report, returns=report.returns[:, :n], tasks=tasks)


@pytest.mark.parametrize("n", [1, 2, 5, 19, 20, 30])
def test_no_difference_is_clear_on_too_few_tasks(n: int) -> None:
    a, b = shortened(make_report(shift=100.0), n), shortened(make_report("pretrain", seeds=(1,)), n)
    pair = compare(a, b)
    assert pair.n_units == n
    enough = n >= MIN_UNITS
    assert (pair.is_supported, pair.is_clear(pair.returns.at(3))) == (enough, enough)
    if n > 1:
        assert pair.returns.at(3).excludes_zero
        assert ("too narrow" in str(a.table())) != enough
    for text in (str(pair.table()), str(comparison_table([a, b]))):
        assert (" *" in text.replace("* excludes", "").replace("* paired", "")) == enough
        assert ("no difference counts as clear with fewer than 20 tasks" in text) != enough


def test_adaptations_to_all_tasks_count_and_tasks_that_stand_for_others_do() -> None:
    strata = np.arange(N_TASKS) % 3
    a, b = (
        dataclasses.replace(make_report(name, shift), strata=strata)
        for name, shift in (("fomaml", 99.0), ("maml", 0.0))
    )
    assert compare(a, b).n_units == N_TASKS
    assert "over 30 adaptations to 3 tasks, 1 and 1 runs" in str(compare(a, b).table())
    a, b = (dataclasses.replace(report, meta={**report.meta, "family_tasks": 15}) for report in (a, b))
    pair = compare(a, b)
    assert pair.n_units == 3
    assert "over 30 adaptations to 3 of 15 tasks, 1 and 1 runs" in str(pair.table())
    # The mean over tasks of the means over adaptations, with the task as the unit.
    difference = (a.returns - b.returns).reshape(1, 10, 3, 4).mean(1)
    assert pair.returns.at(2) == pytest.approx(bootstrap_interval(difference[..., 2]), rel=1e-9)


def test_table_has_every_step() -> None:
    report = make_report()
    table = report.table()
    assert [row[0] for row in table.rows] == ["0", "1", "2", "3"]
    assert [row[1] for row in table.rows] == ["0", "4,000", "8,000", "12,000"]
    assert table.rows[2][2] == str(report.interval(2))
    assert table.rows[2][3] == str(report.gain(2))
    assert "one run" in table.notes[0]
    assert str(report) == str(table)


def test_tables_print_as_text_markdown_and_rich() -> None:
    from rich.console import Console

    table = Table(("a", "b"), [["x [bold]", "1"], ["longer", "-22"]], "title", ["note"])
    assert str(table).splitlines() == ["title", "a           b", "x [bold]    1", "longer    -22", "note"]
    assert table.markdown().splitlines()[2:5] == ["| a | b |", "|---|---:|", "| x [bold] | 1 |"]
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "x [bold]" in drawn
    assert "note" in drawn


def test_json_round_trip_is_exact_and_strict(tmp_path: Path) -> None:
    report = dataclasses.replace(make_report(seeds=(3, 4)), strata=np.arange(N_TASKS) % 3)
    path = tmp_path / "report.json"
    report.save(path)
    again = Report.load(path)
    for part in dataclasses.fields(Report):
        a, b = getattr(report, part.name), getattr(again, part.name)
        if part.name == "tasks":
            np.testing.assert_array_equal(a["velocity"], b["velocity"])
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b
    assert again.to_json() == report.to_json()
    document = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert document["summary"]["return"][1] == list(report.interval(1))
    with pytest.raises(ConfigError, match="not JSON"):
        dataclasses.replace(report, meta={"loss": float("nan")}).to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "truncated or damaged"),
        ("[1]", "not a metarl report"),
        ('{"format": "metarl-report", "version": 99}', "format 99"),
        ('{"format": "metarl-report", "version": 1}', "is damaged: algo is missing"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        Report.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no such file"):
        Report.load(tmp_path / "other.json")


def test_damaged_content_is_refused() -> None:
    document = json.loads(make_report().to_json())
    document["returns"][0][0] = document["returns"][0][0][:2]
    with pytest.raises(CheckpointError, match="damaged"):
        Report.from_json(json.dumps(document))
    document = json.loads(make_report().to_json())
    document["meta"]["point"] = "year"
    with pytest.raises(CheckpointError, match="'year'"):
        Report.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"returns": np.zeros((1, N_TASKS))}, "returns has shape"),
        ({"returns": np.full((1, N_TASKS, 4), np.inf)}, "NaN or infinity"),
        ({"env_steps": np.zeros(3)}, "env_steps has shape"),
        ({"seeds": (0, 1)}, "2 seeds for 1 runs"),
        ({"tasks": {"velocity": np.zeros(3)}}, "3 values for 30 tasks"),
        ({"tasks": {"velocity": np.array(["fast"] * N_TASKS)}}, "not numbers"),
        ({"strata": np.zeros(3)}, "strata has shape"),
    ],
)
def test_shapes_must_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(make_report(), **changes)  # type: ignore[arg-type]


def test_merge_joins_seeds() -> None:
    reports = [make_report(seeds=(seed,), shift=float(seed)) for seed in range(3)]
    merged = Report.merge(reports, label="FOMAML")
    assert merged.seeds == (0, 1, 2)
    assert merged.label == "FOMAML"
    np.testing.assert_array_equal(merged.returns, np.concatenate([report.returns for report in reports]))
    np.testing.assert_array_equal(merged.env_steps, reports[0].env_steps)
    assert len(merged.meta["merged"]) == 2
    with pytest.raises(ConfigError, match="a training seed is given twice"):
        Report.merge([reports[0], reports[0]])
    with pytest.raises(ConfigError, match="cannot merge fomaml"):
        Report.merge([reports[0], make_report("maml", seeds=(1,))])
    with pytest.raises(ConfigError, match="no reports"):
        Report.merge([])


def test_merged_env_steps_are_the_mean_over_runs_and_the_rest_is_the_first_reports() -> None:
    strata = np.arange(N_TASKS) % 2
    two, one = (dataclasses.replace(make_report(seeds=seeds), strata=strata) for seeds in ((0, 1), (2,)))
    one = dataclasses.replace(one, env_steps=np.arange(4) * 1000, label="other", meta={**one.meta, "commit": "def"})
    merged = Report.merge([two, one])
    assert merged.env_steps.tolist() == [0, 3000, 6000, 9000]
    assert (merged.algo, merged.env, merged.split, merged.label) == (two.algo, two.env, two.split, two.label)
    assert merged.meta == {**two.meta, "merged": [one.meta]}
    np.testing.assert_array_equal(merged.strata, strata)
    assert merged.tasks.keys() == two.tasks.keys()
    np.testing.assert_array_equal(merged.tasks["velocity"], two.tasks["velocity"])
    with pytest.raises(ConfigError, match="cannot merge fomaml with 3 inner steps and fomaml with 1"):
        Report.merge([two, make_report(seeds=(2,), n_steps=1)])


@pytest.mark.parametrize("n_strata", [0, 2])
def test_a_comparison_is_the_paired_statistics_of_returns_and_of_gains(n_strata: int) -> None:
    strata = np.arange(N_TASKS) % n_strata if n_strata else None
    a, b = (dataclasses.replace(make_report(name, meta_seed=1), strata=strata) for name in "ab")
    rng = np.random.default_rng(1)
    b = dataclasses.replace(
        b, returns=b.returns + rng.normal(0, 5.0, b.returns.shape) + 3.0 * np.arange(N_TASKS)[:, None]
    )
    found = compare(a, b, 0.9, 2000)
    assert (found.a, found.b, found.env, found.split, found.level) == ("a", "b", "AntVel-v0", "test", 0.9)
    rises = [report.returns - report.returns[..., :1] for report in (a, b)]
    for bands, (x, y) in ((found.returns, (a.returns, b.returns)), (found.gains, rises)):
        (left, by), (right, _) = a.units(x), b.units(y)
        assert (by is None) == (strata is None)
        expected = paired_bands(left, right, 0.9, 2000, strata=by)
        assert bands.at(2) == expected.at(2)
        assert bands.at(2).mean == pytest.approx((x - y)[..., 2].mean())
    assert "0.0" not in found.table().rows[0][2]


def test_comparison_is_paired_by_task() -> None:
    a, b = make_report("fomaml", shift=4.0, seeds=(0, 1)), make_report("pretrain", seeds=(2,), n_steps=1)
    comparison = compare(a, b)
    assert comparison.returns.n_points == 2
    assert comparison.returns.at(1) == pytest.approx(paired_interval(a.returns[..., 1], b.returns[..., 1]))
    assert comparison.returns.at(1).excludes_zero
    assert not comparison.gains.at(1).excludes_zero
    text = str(comparison.table())
    assert "fomaml minus pretrain" in text
    assert "2 and 1 runs" in text


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_report(meta_seed=6), "evaluation_seed is 5 and 6"),
        (dataclasses.replace(make_report(), split="shifted"), "split is 'test' and 'shifted'"),
        (
            dataclasses.replace(make_report(), tasks={"velocity": np.linspace(0, 2, N_TASKS)}),
            "the tasks differ in velocity",
        ),
        (dataclasses.replace(make_report(), tasks={"speed": np.zeros(N_TASKS)}), "cannot be paired"),
        (
            dataclasses.replace(
                make_report(), meta={"evaluation_seed": 5, "n_episodes": 20, "env_kwargs": {"physics": "gym"}}
            ),
            "env_kwargs is {} and {'physics': 'gym'}",
        ),
    ],
)
def test_unlike_reports_are_not_paired(other: Report, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        compare(make_report(), other)
    assert "\n" not in str(caught.value)


def test_the_oracle_can_be_paired() -> None:
    meta = {**make_report().meta, "env_kwargs": {"oracle": True}}
    oracle = dataclasses.replace(make_report("oracle"), meta=meta)
    assert compare(oracle, make_report()).returns.mean == pytest.approx(np.zeros(4))


def test_comparison_table_and_published_rows() -> None:
    first, second = make_report("fomaml"), make_report("pretrain", shift=-20.0, n_steps=1, seeds=(1,))
    other = make_report("maml", meta_seed=9)
    table = comparison_table([first, second, other], published_for("AntVel-v0", ("MAML",)))
    assert list(table.columns) == ["", "0 steps", "1 step", "2 steps", "3 steps", "gain", "minus fomaml"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.rows[0][-1] == ""
    assert table.rows[1][3] == ""
    assert table.rows[1][-1].startswith("-19")
    assert table.rows[1][-1].endswith("*")
    assert table.rows[2][-1] == "not paired"
    assert list(table.rows[3]) == [
        "MAML, published", "30.6 ±30.0", "96.7 ±21.0", "100.1 ±21.0", "101.4 ±21.0", "70.8", ""
    ]  # fmt: skip
    assert any("one training seed" in note for note in table.notes)


def test_comparison_table_of_one_report() -> None:
    """Nothing to be paired with: no column and no star for it. Published gains end where the table ends."""
    table = comparison_table([make_report("fomaml", n_steps=1)], published_for("AntVel-v0", ("MAML",)))
    assert list(table.columns) == ["", "0 steps", "1 step", "gain"]
    assert list(table.rows[1]) == ["MAML, published", "30.6 ±30.0", "96.7 ±21.0", "66.2"]
    assert "*" not in table.notes[0]


def test_one_task_has_no_interval() -> None:
    """One task says nothing about others: no interval of width zero, and no star in a comparison."""
    one, other = (
        dataclasses.replace(report, returns=report.returns[:, :1], tasks={"velocity": np.zeros(1)})
        for report in (make_report(), make_report("maml", shift=5.0))
    )
    assert "[" not in str(one.table())
    assert "one task, one run: no intervals" in str(one.table())
    assert "one task, one run: no intervals" in str(comparison_table([one]))
    assert "*" not in str(compare(other, one).table().rows)
    assert str(compare(other, one).returns.at(1)) == f"{compare(other, one).returns.mean[1]:.2f}"


def test_published_numbers() -> None:
    assert published_for("Nowhere-v0") == ()
    assert {row.method for row in published_for("AntDir-v0", ("MAML",))} == {"MAML (40 episodes)", "MAML (20 episodes)"}
    for rows in PUBLISHED.values():
        for row in rows:
            assert len(row.half_widths) in (0, len(row.returns))


def test_figures(tmp_path: Path) -> None:
    report = make_report()
    figure = report.figure(task_parameter="velocity")
    by_step, by_env_step, by_task = figure.axes
    np.testing.assert_allclose(by_step.lines[0].get_ydata(), report.bands().mean)
    np.testing.assert_array_equal(by_step.lines[0].get_xdata(), np.arange(4))
    np.testing.assert_array_equal(by_env_step.lines[0].get_xdata(), report.env_steps)
    offsets = np.asarray(by_task.collections[1].get_offsets())
    np.testing.assert_allclose(offsets[:, 1], report.returns[0, :, 3])
    both = comparison_figure([report, make_report("maml", n_steps=1)], published_for("AntVel-v0"))
    assert len(both.axes[0].lines) == 2 + len(PUBLISHED["AntVel-v0"])
    assert len(both.axes[1].lines) == 2
    for name in ("figure.png", "figure.svg"):
        both.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(UnknownNameError, match="velocty"):
        report.figure(task_parameter="velocty")
    with pytest.raises(ConfigError, match="no reports"):
        comparison_figure([])


def test_a_card_of_tensorboard_has_one_panel_and_large_text() -> None:
    report = dataclasses.replace(make_report(), env="HalfCheetahVel-v0", env_steps=np.arange(4) * 1_234_500)
    cards = adaptation_cards(report)
    for figure, x in zip(cards.values(), (np.arange(4), report.env_steps), strict=True):
        (axis,) = figure.axes
        np.testing.assert_array_equal(axis.lines[0].get_xdata(), x)
        np.testing.assert_allclose(axis.lines[0].get_ydata(), report.bands().mean)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        assert canvas.get_width_height() == (400, 300)
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert len(sizes) > 8
        assert min(sizes) >= 12
        box = axis.get_tightbbox()
        assert box.x0 >= 0
        assert box.x1 <= 400
    assert list(cards) == ["", "_env_steps"]


def test_evaluations_of_two_algorithms_are_paired(tmp_path: Path) -> None:
    """The reports that algorithms write: equal tasks and streams can be compared, other streams cannot."""
    kwargs = {"policy_kwargs": {"net_arch": [8]}, "n_episodes": 5, "n_threads": 1}
    first, second = (
        algo("MlpPolicy", Walk(), seed=seed, **kwargs)  # type: ignore[arg-type]
        for seed, algo in enumerate((FOMAML, RandomInit))
    )
    a, b = first.evaluate("test", 1, n_tasks=12), second.evaluate("test", 1, n_tasks=12)
    a.save(tmp_path / "a.json")
    comparison = compare(Report.load(tmp_path / "a.json"), b)
    assert comparison.returns.mean[1] == pytest.approx((a.returns - b.returns)[..., 1].mean())
    assert a.env_steps[0] == 0
    assert 5 <= a.env_steps[1] <= 40
    with pytest.raises(ConfigError, match="evaluation_seed is 0 and 1"):
        compare(a, second.evaluate("test", 1, n_tasks=12, seed=1))
