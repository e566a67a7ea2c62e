"""CosineSine-v0: a cosine is seen, a sine is to be predicted; and what a support family promises."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from metarl.envs.checker.common import FamilyCheckError
from metarl.envs.checker.family import check_family
from metarl.envs.registry import make_family
from metarl.envs.supervised.cosine_sine import Cosine, CosineSine
from metarl.envs.supervised.one_step import OneStep, with_noise
from metarl.envs.supervised.sinusoid import Sinusoid
from metarl.errors import ConfigError
from metarl.streams import stream


def rngs(n):
    return [stream(0, "test", task) for task in range(n)]


@pytest.mark.parametrize("make", [CosineSine, lambda: CosineSine(support_noise=1.5), Cosine])
def test_it_keeps_every_promise(make):
    check_family(make(), n=2)


def test_what_is_seen_is_a_cosine_and_what_is_predicted_a_sine_of_the_same_task():
    family = make_family("CosineSine-v0")
    tasks = family.sample_tasks(stream(0, "tasks"), 5)
    amplitude, phase = (tasks[name][:, None, None] for name in ("amplitude", "phase"))
    for shown, function in ((family, np.sin), (family.support_family, np.cos)):
        x, y = shown.examples(tasks, rngs(5), 7)
        np.testing.assert_allclose(y, amplitude * function(x + phase), rtol=1e-12)
    assert tasks["phase"].min() < 0.0
    assert family.tasks("shifted")["amplitude"].min() > 5.0


def test_noise_is_on_the_targets_that_are_seen_and_nowhere_else():
    tasks = CosineSine().tasks("test", 3)
    families = [make_family("CosineSine-v0", support_noise=sigma) for sigma in (0.0, 1.0, 2.0)]
    shown = [family.support_family.examples(tasks, rngs(3), 2000) for family in families]
    for x, _ in shown:
        np.testing.assert_array_equal(x, shown[0][0])
    once, twice = (y - shown[0][1] for _, y in shown[1:])
    np.testing.assert_allclose(twice, 2.0 * once, atol=1e-9)
    assert once.std() == pytest.approx(1.0, abs=0.02)
    asked = [family.examples(tasks, rngs(3), 10)[1] for family in families]
    for y in asked:
        np.testing.assert_array_equal(y, asked[0])


def test_noise_of_a_task_comes_from_its_own_stream():
    targets = np.zeros((2, 3, 4))
    both, one = with_noise(targets, rngs(2), 0.5), with_noise(targets[1:], rngs(2)[1:], 0.5)
    np.testing.assert_array_equal(both[1], one[0])
    assert len(np.unique(both)) == both.size


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), "much"])
def test_noise_that_is_none_is_refused(sigma):
    with pytest.raises(ConfigError, match="support_noise"):
        make_family("CosineSine-v0", support_noise=sigma)


# ----------------------------------------------------------------------------------- what support families promise
class Seen(OneStep):
    def __init__(self):
        self.id, self.task_space = "Seen", Sinusoid().task_space
        self.observation_space, self.action_space = Box(-1, 1, (2,), np.float32), Box(-1, 1, (3,), np.float32)

    def examples(self, tasks, rngs, n):
        x = np.stack([rng.uniform(-1, 1, (n, 2)) for rng in rngs])
        return x, np.repeat(x.sum(-1, keepdims=True), 3, -1) * tasks["amplitude"][:, None, None]


class Wide(Seen):
    def examples(self, tasks, rngs, n):
        x, y = super().examples(tasks, rngs, n)
        return 2 * x, y


class Narrow(Seen):
    def examples(self, tasks, rngs, n):
        x, y = super().examples(tasks, rngs, n)
        return x, y[..., :1]


class Infinite(Seen):
    def examples(self, tasks, rngs, n):
        x, y = super().examples(tasks, rngs, n)
        return x, y / 0.0


class Mixed(Seen):
    def examples(self, tasks, rngs, n):
        x, y = super().examples(tasks, rngs[:1] * len(rngs), n)
        return x, y


class Foreign(Seen):
    def __init__(self):
        super().__init__()
        self.task_space = Dict({"amplitude": Box(0.1, 5.0, (), np.float64)})


class Nested(Seen):
    def __init__(self):
        super().__init__()
        self.support_family = Seen()


def shown_by(support):
    family = Sinusoid()
    family.support_family = support
    return family


def test_a_support_family_has_spaces_of_its_own():
    check_family(shown_by(Seen()), n=2)


@pytest.mark.parametrize(
    ("support", "words"),
    [
        ("Cosine-v0", "support_family is a str, not a supervised family"),
        (Foreign(), "support_family Seen has another task_space"),
        (Nested(), "support_family Seen has one itself"),
        (Wide(), r"Seen: examples gives inputs .*, at reset, copy \d of task \d"),
        (Narrow(), r"examples gives targets \[2, 5, 1\], not \[2, 5, 3\] numbers"),
        (Infinite(), "examples gives targets .*inf"),
        (Mixed(), "examples of a task depend on the other tasks or their streams"),
    ],
)
def test_what_a_support_family_may_not_be_is_found(support, words):
    with pytest.raises(FamilyCheckError, match=words):
        check_family(shown_by(support), n=2)
