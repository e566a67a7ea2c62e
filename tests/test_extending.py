"""docs/extending.md: its files run as they stand, and what they register is found everywhere."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import stable_baselines3
import torch

import metarl
from metarl import ALGORITHMS, FOMAML
from metarl.agents import LEARNERS
from metarl.envs import check_family, make_family
from metarl.envs import registry as families
from metarl.errors import ConfigError, UnknownNameError
from metarl.meta.adaptive import AdaptiveAlgorithm
from metarl.meta.outer import OUTER
from metarl.zoo.__main__ import main
from tests.meta.small import SIZES, equal, run_iterations, small

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SMALLER = {
    '{"meta_batch_size": 10, "n_episodes": 10}': '{"meta_batch_size": 2, "n_episodes": 2}',
    "total_timesteps=10_000": "total_timesteps=1",
    "n_tasks=10": "n_tasks=2",
}
OF_FAMILIES = {"puck": "Puck-v0", "parabolas": "Parabolas-v0", "swing": "Swing-v0"}
OF_FAMILIES |= {"imitated_puck": "PuckImitation-v0"}
TINY = ["--num-threads", "1", "--n-eval-tasks", "2", "--verbose", "0", "-params"]
TINY += ["meta_batch_size:2", "n_episodes:2", "policy_kwargs.net_arch:[8]"]


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's files in a folder that is searched; what they register is forgotten afterwards."""
    for name, code in FILES.items():
        for size, smaller in SMALLER.items():
            code = code.replace(size, smaller)
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    for registry in (LEARNERS, ALGORITHMS, OUTER):
        monkeypatch.setattr(registry, "_items", dict(registry))
    monkeypatch.setattr(families, "_REGISTRY", dict(families._REGISTRY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in FILES:
        sys.modules.pop(name, None)
    for id in OF_FAMILIES.values():
        gymnasium.registry.pop(id, None)


def test_the_page_is_whole() -> None:
    assert PAGE.count("```python") == len(FILES) >= 3
    for size in SMALLER:
        assert PAGE.count(size) == 1, size
    assert len(COMMANDS) >= 5


def test_it_is_used_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("use_awr")
    assert "PointMass-v0" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(OF_FAMILIES))
def test_the_families_keep_every_promise(name: str) -> None:
    importlib.import_module(name)
    check_family(make_family(OF_FAMILIES[name]))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(command)
    assert program == "metarl"
    if words[0] == "list":
        assert main(words) == 0
        package = words[words.index("--gym-packages") + 1]
        assert f" {OF_FAMILIES.get(package, package)} " in capsys.readouterr().out
        return
    pairs = words.index("-params")
    words[words.index("-n") + 1] = "40"
    env = words[words.index("--env") + 1]
    tiny = [*(["--env-kwargs", "horizon:10"] if env == "PointMass-v0" else []), *TINY]
    if "meta_transfer" in words:  # its episodes are a support
        tiny = [pair.replace("n_episodes", "n_support") for pair in tiny]
    tiny = [pair for pair in tiny if pair.split(":")[0] not in {given.split(":")[0] for given in words[pairs + 1 :]}]
    assert main([*words[:pairs], "-f", str(tmp_path / "logs"), *tiny, *words[pairs + 1 :]]) == 0
    algo = words[words.index("--algo") + 1]
    (path,) = (tmp_path / "logs" / algo).glob(f"*/{env}.safetensors")
    model = metarl.load(path)
    assert model.name == algo
    for pair in words[pairs + 1 :]:
        name, value = pair.split(":")
        found: Any = model.arguments()
        for part in name.split("."):
            found = found[part]
        assert str(found) == value


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_the_learner_goes_with_every_wrapper(algo: str, tmp_path: Path) -> None:
    importlib.import_module("awr")
    wrapper = ALGORITHMS[algo]
    if not issubclass(wrapper, AdaptiveAlgorithm) or wrapper.refusal(LEARNERS["awr"]):
        return
    model: Any = ALGORITHMS[algo](env="PointMass-v0", learner="awr", n_inner_steps=2, **{**SIZES, "n_episodes": 2})
    before = dict(model.params)
    run_iterations(model, 1)
    again = metarl.load(model.save(tmp_path / "model"))
    assert equal(model.params, again.params)
    assert model.n_iterations == 0 or not equal(before, model.params)
    assert model.evaluate(n_tasks=2, n_inner_steps=1).returns.shape == (1, 2, 2)
    assert model.gamma == 0.99


def test_an_export_of_the_learner_starts_sb3_with_adam() -> None:
    importlib.import_module("awr")
    model: Any = FOMAML(learner="awr", gamma=0.9, **SIZES)
    sb3 = model.to_sb3(value_tasks=0)
    assert type(sb3) is stable_baselines3.PPO
    assert type(sb3.policy.optimizer) is torch.optim.Adam
    assert sb3.gamma == 0.99  # the learner does not say what of its own SB3 could take over
    with pytest.raises(ConfigError, match=r"^no step of ppo repeats one of 'awr': use optimizer='adam'$"):
        model.to_sb3(optimizer="sgd")


def test_the_outer_optimiser_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    importlib.import_module("signum")
    model = small(FOMAML, outer="signum", n_episodes=2)
    run_iterations(model, 1)
    again = metarl.load(model.save(tmp_path / "model"))
    run_iterations(model, 1)
    run_iterations(again, 1)
    assert equal(model.params, again.params)
    with pytest.raises(ConfigError, match=r"^beta=2 is not a number in \[0, 1\]$"):
        small(FOMAML, outer="signum", outer_kwargs={"beta": 2})
    with pytest.raises(UnknownNameError, match=r"outer optimiser 'signum': 'learnig_rate': did you mean"):
        small(FOMAML, outer="signum", outer_kwargs={"learnig_rate": 2})


@pytest.mark.parametrize("learner", sorted(LEARNERS))
def test_the_wrapper_goes_with_every_learner(learner: str) -> None:
    module = importlib.import_module("decayed_reptile")
    cls = ALGORITHMS["decayed_reptile"]
    assert cls is module.DecayedReptile
    if not LEARNERS[learner].differentiable:
        assert cls.refusal(LEARNERS[learner]) is None  # type: ignore[attr-defined]
        return
    model = small(cls, learner=learner, decay=1.0, n_inner_steps=1, n_episodes=2)
    run_iterations(model, 1)
    assert all(not tensor.any() for tensor in model.params.values())


def test_the_wrapper_takes_the_hyperparameters_of_what_it_inherits_from() -> None:
    from metarl.zoo.config import load_hyperparameters

    importlib.import_module("decayed_reptile")
    assert load_hyperparameters("decayed_reptile", "PointMass-v0") == load_hyperparameters("reptile", "PointMass-v0")
