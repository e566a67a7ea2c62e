"""Omniglot-v0: the drawings in the package, and the protocols of Leap and MAML."""

from __future__ import annotations

import pickle
import shutil
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import metarl
from metarl.envs import check_family, make_family
from metarl.envs.supervised.vision import drawings as shipped
from metarl.envs.supervised.vision.classification import draw_any, draw_balanced
from metarl.envs.supervised.vision.drawings import ARCHIVE, drawings
from metarl.errors import ConfigError, MetaRLError, TaskError, UnknownNameError
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.streams import stream


def streams(n, seed=0):
    return [stream(seed, "test", task) for task in range(n)]


def drawn(family, tasks, n, seed=0):
    return family.examples(tasks, streams(len(next(iter(tasks.values()))), seed), n)


def rows(images):
    """Return images as a set of bytes."""
    return {image.tobytes() for image in images}


# --------------------------------------------------------------------------------------------------------- the archive
def test_all_of_it_ships_and_is_small():
    assert ARCHIVE.stat().st_size < 1_000_000
    found = drawings()
    assert found.pixels.shape == (1623 * 20, 28 * 28 + 1)
    assert len(found.names) == 50
    assert sorted(found.sizes)[:5] == [14, 14, 16, 17, 20]
    assert found.sizes.sum() == 1623
    assert (np.diff(found.alphabet) >= 0).all()
    assert 0.02 < found.pixels[:, :-1].mean() < 0.2  # ink is rare
    assert not found.pixels[:, -1].any()
    assert "Copyright (c) 2015 Brenden Lake" in ARCHIVE.with_name("OMNIGLOT.md").read_text(encoding="utf-8")


def test_a_file_that_was_changed_or_is_missing_is_refused(tmp_path):
    other = tmp_path / "omniglot.npz"
    with pytest.raises(ConfigError, match="cannot be read"):
        shipped._read(other)
    shutil.copy(ARCHIVE, other)
    with other.open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    with pytest.raises(ConfigError, match="not the file that metarl comes with: its SHA-256"):
        shipped._read(other)


# ----------------------------------------------------------------------------------------------------------- alphabets
def test_tasks_are_the_46_alphabets_of_20_characters_cut_as_the_paper_does():
    family = make_family("Omniglot-v0")
    tasks = family.finite_tasks()["alphabet"]
    assert len(tasks) == 46
    parts = [family.finite_split(split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [25, 11, 10]
    assert sorted(np.concatenate(parts)) == list(range(46))
    assert family.action_space.n == 20
    few = make_family("Omniglot-v0", n_alphabets=1)
    # Fewer training alphabets are some of the same, and tests are the next ten, as there.
    assert set(few.sample_tasks(stream(0, "x"), 30)["alphabet"]) <= set(tasks[parts[0]])
    other = make_family("Omniglot-v0", split_seed=1)
    assert set(other.tasks("test")["alphabet"]) != set(family.tasks("test")["alphabet"])


def test_more_alphabets_for_testing_are_taken_from_validation():
    usual, more = make_family("Omniglot-v0"), make_family("Omniglot-v0", n_test=20)
    np.testing.assert_array_equal(more.finite_split("train"), usual.finite_split("train"))
    tests, validation = ([set(each.finite_split(split)) for each in (usual, more)] for split in ("test", "validation"))
    assert tests[0] < tests[1]
    assert validation[1] < validation[0]
    assert (len(tests[1]), len(validation[1])) == (20, 1)
    assert tests[1] - tests[0] == validation[0] - validation[1]
    np.testing.assert_array_equal(more.tasks("test", 10)["alphabet"], usual.tasks("test")["alphabet"])
    shifted = {"alphabet": np.arange(50, 70)}
    assert len(set(shifted["alphabet"])) == 20
    images, _ = more.examples(shifted, [np.random.default_rng(i) for i in range(20)], 20)
    assert images.shape[:2] == (20, 20)


def test_a_meta_batch_holds_alphabets_equally_often():
    family = make_family("Omniglot-v0", n_alphabets=5)
    counts = np.unique(family.sample_tasks(stream(0, "x"), 12)["alphabet"], return_counts=True)[1]
    assert sorted(counts) == [2, 2, 2, 3, 3]


def test_support_and_query_are_of_other_drawings():
    family = make_family("Omniglot-v0", augment=False, ink="white")
    tasks = family.tasks("test", 2)
    support, labels = drawn(family, tasks, 300)
    query, of_query = drawn(family.query_family, tasks, 100)
    assert support.dtype == np.uint8
    assert set(np.unique(support)) == {0, 255}
    for task in range(2):
        assert np.bincount(labels[task]).tolist() == [15] * 20
        assert np.bincount(of_query[task]).tolist() == [5] * 20
        assert len(rows(support[task])) >= 299  # each once; two drawings may be alike
        assert len(rows(query[task]) & rows(support[task])) <= 1
    # The images are those of the task's characters.
    alphabet = int(tasks["alphabet"][0])
    known = drawings()
    pixels = known.pixels[:, :-1].reshape(1623, 20, -1)[known.characters(alphabet)]
    wanted = {(255 * each).tobytes() for each in pixels[:, 5:].reshape(-1, 28 * 28)}
    assert {image.tobytes() for image in support[0].reshape(300, -1)} <= wanted


def test_a_class_is_one_character_whoever_asks():
    family = make_family("Omniglot-v0", augment=False)
    tasks = family.tasks("validation", 1)
    seen = {}
    for seed in range(3):
        images, labels = drawn(family, tasks, 300, seed)
        for image, label in zip(images[0], labels[0], strict=True):
            seen.setdefault(image.tobytes(), set()).add(int(label))
    assert sum(len(labels) > 1 for labels in seen.values()) <= 1


def test_augmented_examples_are_new_each_time_and_show_what_is_beside_the_paper():
    family = make_family("Omniglot-v0")
    tasks = family.tasks("test", 1)
    a, b = (drawn(family, tasks, 300, seed)[0][0] for seed in (0, 1))
    assert not rows(a) & rows(b)
    assert set(np.unique(a)) == {0, 255}
    # Ink is black, and so is what is beside the paper: corners are, more often than not; the middle of most is white.
    assert (a[:, 0, 0, 0] == 0).mean() > 0.5
    assert (a == 255).mean() > 0.5
    white = drawn(make_family("Omniglot-v0", ink="white"), tasks, 300)[0][0]
    assert (white[:, 0, 0, 0] == 0).mean() > 0.95
    # It is the same ink.
    assert ((white == 255) == ((a == 0) & (white == 255))).all()


def test_shifted_tasks_mix_the_test_alphabets():
    family = make_family("Omniglot-v0")
    tasks = family.tasks("shifted", 20)
    assert (tasks["alphabet"] >= 50).all()
    family.validate_tasks(tasks)
    assert "mixture" in family.describe({"alphabet": tasks["alphabet"][0]})
    characters = family.pool({"alphabet": np.arange(50, 60)}).images[:, :, 0] // 20
    of_test = family.pool(family.tasks("test")).images[:, :, 0] // 20
    assert sorted(characters.ravel()) == sorted(of_test.ravel())


def test_an_alphabet_has_a_name():
    env = gymnasium.make("Omniglot-v0", alphabet="Greek")
    obs, _ = env.reset(seed=0)
    _, reward, terminated, _, info = env.step(3)
    assert terminated
    assert reward == float(info["target"] == 3)
    assert obs.shape == (1, 28, 28)
    family = make_family("Omniglot-v0")
    assert family.describe({"alphabet": family.validate_tasks({"alphabet": ["N_Ko"]})["alphabet"][0]}) == "N Ko"


# ------------------------------------------------------------------------------------------------------------ few shot
@pytest.mark.parametrize(("ways", "shots"), [(5, 1), (20, 5)])
def test_a_support_holds_each_of_its_drawings_once(ways, shots):
    family = make_family("OmniglotFewShot-v0", ways=ways, shots=shots)
    tasks = family.tasks("test", 3)
    support, labels = drawn(family, tasks, ways * shots)
    query, of_query = drawn(family.query_family, tasks, 3 * ways)
    for task in range(3):
        assert np.bincount(labels[task]).tolist() == [shots] * ways
        assert np.bincount(of_query[task]).tolist() == [3] * ways
        assert len(rows(support[task])) == ways * shots
        assert not rows(support[task]) & rows(query[task])
    again, same = drawn(family, tasks, ways * shots, seed=1)
    assert rows(again[0]) == rows(support[0])
    assert not np.array_equal(same, labels)  # in another order


def test_characters_are_cut_as_mamls_code_does_and_turned():
    family = make_family("OmniglotFewShot-v0", ways=20)
    found = {split: family.tasks(split, 300)["classes"] for split in ("validation", "test")}
    found["train"] = family.sample_tasks(stream(0, "tasks"), 900)["classes"]
    characters = {split: set((classes % 1623).ravel()) for split, classes in found.items()}
    assert {split: len(each) for split, each in characters.items()} == {"validation": 100, "test": 423, "train": 1100}
    assert not characters["train"] & (characters["test"] | characters["validation"])
    assert not characters["test"] & characters["validation"]
    for classes in found.values():
        assert set((classes // 1623).ravel()) == {0, 1, 2, 3}
    shifted = family.tasks("shifted", 100)
    assert set((shifted["classes"] // 1623).ravel()) == {4, 5, 6, 7}
    assert set((shifted["classes"] % 1623).ravel()) <= characters["test"]
    assert not family.in_training_range(family.tasks("test", 50)).any()


def test_a_class_is_a_character_turned_by_quarters():
    family = make_family("OmniglotFewShot-v0", ways=2)
    character = 700
    for quarters in range(8):
        classes = np.array([[character + 1623 * quarters, 3 + 1623 * quarters]])
        tasks = family.validate_tasks({"classes": classes, "drawings": [[[4], [2]]]})
        images, labels = drawn(family, tasks, 2)
        upright = drawings().pixels[character * 20 + 4, :-1].reshape(28, 28)
        upright = upright if quarters < 4 else upright[:, ::-1]
        expected = 255 * np.rot90(upright, quarters % 4)
        np.testing.assert_array_equal(images[0, list(labels[0]).index(0), 0], expected)


def test_more_shots_in_training_than_in_tests():
    family = make_family("OmniglotFewShot-v0", train_shots=10)
    training, tests = family.sample_tasks(stream(0, "tasks"), 2), family.tasks("test", 2)
    assert len(rows(drawn(family, training, 50)[0][0])) == 50
    assert len(rows(drawn(family, tests, 50)[0][0])) == 5
    both = {name: np.concatenate([training[name], tests[name]]) for name in training}
    images, _ = drawn(family, both, 50)
    np.testing.assert_array_equal(images[:2], drawn(family, training, 50)[0])
    query, _ = drawn(family.query_family, both, 50)
    assert not any(rows(query[i]) & rows(images[i]) for i in range(4))


def test_examples_are_drawn_without_replacement_round_by_round():
    for draw in (draw_any, draw_balanced):
        labels, images = draw(np.random.default_rng(0), 70, 5, 4)
        pairs = np.unique(5 * images + labels, return_counts=True)[1]
        assert sorted(set(pairs)) == [3, 4]
        assert len(pairs) == 20
    labels, _ = draw_balanced(np.random.default_rng(0), 13, 5, 4)
    assert sorted(labels[:5]) == sorted(labels[5:10]) == [0, 1, 2, 3, 4]
    assert len(set(labels[10:])) == 3


# ------------------------------------------------------------------------------------------------------- augmentations
def test_a_class_is_one_drawing_augmented_anew_each_time():
    family = make_family("OmniglotFamilies-v0")
    tasks = family.tasks("test", 2)
    images, labels = drawn(family, tasks, 50)
    known = drawings()
    for task in range(2):
        assert np.bincount(labels[task]).tolist() == [10] * 5
        alphabet = int(tasks["alphabet"][task])
        first = 20 * int(known.characters(alphabet)[0])
        ink = known.pixels[first + tasks["drawings"][task], :-1].sum(1)
        shown = (images[task] == 255).sum((1, 2, 3))
        # A scale of 0.8 to 1.2 changes the ink by 0.64 to 1.44, and some is shifted out of sight.
        assert (shown <= 1.7 * ink[labels[task]]).all()
        assert len(rows(images[task])) > 25


def test_a_family_holds_what_its_tasks_share():
    family = make_family("OmniglotFamilies-v0", ways=2)
    own = {"alphabet": [3], "augmentation": [[0.25, 0.5, 0.5, 0.5]], "drawings": [[0, 21]]}
    held = family.validate_tasks({**own, "held": [[1, 1, 1, 1]]})
    images, labels = drawn(family, held, 8)
    # A quarter turn, of the size it has, where it is: the same each time.
    first = 20 * int(drawings().characters(3)[0])
    for label, index in enumerate((0, 21)):
        expected = 255 * np.rot90(drawings().pixels[first + index, :-1].reshape(28, 28), -1)
        of_class = images[0][labels[0] == label][:, 0]
        assert len(of_class) == 4
        np.testing.assert_array_equal(of_class, np.broadcast_to(expected, of_class.shape))
    free, labels = drawn(family, family.validate_tasks({**own, "held": [[1, 1, 0, 1]]}), 40)
    columns = (free[0][labels[0] == 0, 0] == 255).any(1).argmax(1)
    assert len(set(columns.tolist())) > 3  # it is shifted to the right, or left
    assert len({image.any(1).tobytes() for image in free[0][labels[0] == 0, 0]}) < len(set(columns.tolist())) + 3


def test_families_are_cut_by_alphabets_and_hold_one_to_three_numbers():
    family = make_family("OmniglotFamilies-v0")
    parts = {split: family.families(split, 300) for split in ("validation", "test")}
    parts["train"] = family.sample_families(stream(0, "families"), 600)
    alphabets = {split: set(each["alphabet"]) for split, each in parts.items()}
    assert {split: len(each) for split, each in alphabets.items()} == {"train": 30, "validation": 10, "test": 10}
    assert len(set.union(*alphabets.values())) == 50
    for each in parts.values():
        assert set(each["held"].sum(1)) == {1, 2, 3}
    shifted = family.tasks("shifted", 30)
    assert set(shifted["alphabet"]) <= alphabets["test"]
    assert (shifted["held"][:, 1] == 1).all()
    assert (shifted["augmentation"] >= 1.0).all()
    tasks = family.sample_tasks(stream(0, "x"), 3, families=family.sample_families(stream(1, "x"), 2))
    family.validate_tasks(tasks)
    with pytest.raises(TaskError, match=r"Blackfoot.* has 280, counted from 0"):
        family.validate_tasks(
            {**{name: each[:1] for name, each in tasks.items()}, "alphabet": [5], "drawings": [[0, 1, 2, 3, 280]]}
        )
    with pytest.raises(TaskError, match="the drawings of a task of OmniglotFamilies-v0 differ"):
        family.validate_tasks({**{name: each[:1] for name, each in tasks.items()}, "drawings": [[0, 1, 2, 3, 3]]})


# --------------------------------------------------------------------------------------------------------------- doors
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"protocol": "augmentations"},
        {"protocol": "few-shot"},
        {"protocol": "few-shot", "ways": 3, "shots": 2, "train_shots": 4, "augment": True},
    ],
    ids=str,
)
def test_every_promise_is_kept(kwargs):
    family = make_family("Omniglot-v0", **kwargs)
    check_family(family)
    check_family(family if family.query_family is None else family.query_family)
    assert pickle.loads(pickle.dumps(family)).observation_space == family.observation_space  # for worker processes


def test_images_may_have_paper_around():
    family = make_family("Omniglot-v0", size=36, augment=False)
    images, _ = drawn(family, family.tasks("test", 1), 20)
    small, _ = drawn(make_family("Omniglot-v0", augment=False), family.tasks("test", 1), 20)
    np.testing.assert_array_equal(images[..., 4:32, 4:32], small)
    assert (images[..., :4, :] == 255).all()


def test_the_picture_says_whether_the_prediction_is_right():
    family = make_family("Omniglot-v0")
    tasks = family.tasks("test", 1)
    state, _ = family.reset(tasks, streams(1), 2)
    actions = state["target"].copy()
    actions[0, 1] = (actions[0, 1] + 1) % 20
    step = family.step(tasks, state, actions, [], None)
    asked = family.render(tasks, [state], 0, 0)
    right, wrong = (family.render(tasks, [state, step.state], 0, env) for env in (0, 1))
    assert asked.shape == right.shape == (360, 360, 3)
    assert right[0, 0].tolist() == [44, 160, 44]
    assert wrong[0, 0].tolist() == [214, 39, 40]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"protocol": "zero-shot"}, "protocol='zero-shot' is not one of"),
        ({"shots": 1}, "has no 'shots'|unknown argument of Omniglot-v0 with protocol='alphabets'"),
        ({"n_alphabets": 40}, "n_alphabets=40, n_test=10 with ways=20: 46 alphabets have so many .* at most 45"),
        ({"n_test": 21}, "n_alphabets=25, n_test=21 with ways=20"),
        ({"n_test": 9}, "n_test=9"),
        ({"ways": 56}, "ways=56"),
        ({"ways": 1}, "ways=1"),
        ({"protocol": "few-shot", "ways": 101}, "ways=101: Omniglot has 100 characters for validation"),
        ({"protocol": "few-shot", "shots": 20}, "shots=20: Omniglot has 20 drawings of a character"),
        ({"protocol": "few-shot", "train_shots": 25}, "train_shots=25: Omniglot has 20 drawings"),
        ({"ink": "red"}, "ink='red' is not one of"),
        ({"size": 27}, "size=27"),
        ({"n_held_out": 20}, "n_held_out=20"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_line(kwargs, words):
    with pytest.raises(MetaRLError, match=words) as caught:
        make_family("Omniglot-v0", **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["OmniglotFewShot-v0", "OmniglotFamilies-v0"])
def test_a_misspelt_argument_names_the_family_that_was_asked_for(name):
    with pytest.raises(UnknownNameError, match=f"unknown argument of {name} 'way': did you mean 'ways'"):
        make_family(name, way=3)
    assert make_family(name, ways=3).id == name


def test_wrong_tasks_are_one_line():
    alphabets, few = make_family("Omniglot-v0"), make_family("OmniglotFewShot-v0", ways=2)
    with pytest.raises(UnknownNameError, match="unknown alphabet 'Greeek': did you mean 'Greek'"):
        alphabets.validate_tasks({"alphabet": ["Greeek"]})
    with pytest.raises(TaskError, match="not one of the 46 tasks"):
        alphabets.validate_tasks({"alphabet": ["Tagalog"]})
    with pytest.raises(TaskError, match="outside the task space"):
        alphabets.validate_tasks({"alphabet": [60]})
    with pytest.raises(TaskError, match="outside the task space"):
        few.validate_tasks({"classes": [[1, 4 * 2 * 1623]], "drawings": [[[0], [0]]]})
    with pytest.raises(TaskError, match="characters of a task of OmniglotFewShot-v0 differ"):
        few.validate_tasks({"classes": [[1, 1 + 1623]], "drawings": [[[0], [0]]]})
    with pytest.raises(TaskError, match="drawings of a class"):
        make_family("OmniglotFewShot-v0", ways=2, shots=2).validate_tasks(
            {"classes": [[1, 2]], "drawings": [[[0, 1], [3, 3]]]}
        )


def test_scores_and_queries_are_of_held_out_drawings(monkeypatch):
    family = make_family("OmniglotFewShot-v0", ways=2, shots=2)
    model = metarl.FOMAML(
        "FewShotCnnPolicy",
        family,
        learner="supervised",
        learner_kwargs={"n_query": 6, "n_eval": 10},
        n_episodes=4,
        meta_batch_size=2,
        policy_kwargs={"features_extractor_kwargs": {"n_filters": 2}},
        n_threads=1,
        seed=0,
    )
    asked = []
    for each in (family, family.query_family):
        own = each.examples
        monkeypatch.setattr(
            each, "examples", lambda t, r, n, own=own, each=each: asked.append((each, n)) or own(t, r, n)
        )
    model.learn(1)
    assert [(each.held_out, n) for each, n in asked if n != 10] == [(False, 4), (True, 6)]
    assert all(each.held_out for each, n in asked if n == 10)
    asked.clear()
    model.evaluate("test", 2, n_tasks=2)
    assert [(each.held_out, n) for each, n in asked] == [(False, 4), (True, 10), (True, 10), (True, 10)]


def test_without_reuse_each_step_has_a_batch_of_its_own_and_both_scores_are_reported():
    def reports(reuses_support):
        model = metarl.Reptile(
            "FewShotCnnPolicy",
            "Omniglot-v0",
            env_kwargs={"ways": 2, "augment": False},
            learner="supervised",
            learner_kwargs={"reuses_support": reuses_support, "n_eval": 10},
            n_inner_steps=2,
            n_episodes=4,
            meta_batch_size=2,
            policy_kwargs={"features_extractor_kwargs": {"n_filters": 2}},
            n_threads=1,
            seed=0,
        ).learn(1)
        return model.num_timesteps, model.evaluate("test", 2, n_tasks=2)

    (n_reused, reused), (n, fresh) = reports(True), reports(False)
    assert (n_reused, n) == (2 * 4, 2 * 2 * 4)
    assert reused.learning_returns is None
    assert fresh.learning_returns.shape == fresh.returns.shape == (1, 2, 3)
    assert fresh.env_steps.tolist() == [0.0, 4.0, 8.0]
    assert reused.env_steps.tolist() == [0.0, 4.0, 4.0]


def test_batches_in_the_middle_are_drawn_without_asking_the_policy_to_the_same_bits(monkeypatch):
    def trained(acting):
        if acting:
            monkeypatch.setattr(BatchedAdaptation, "drawn", lambda *_: None)
        model = metarl.Leap(
            "FewShotCnnPolicy",
            "Omniglot-v0",
            env_kwargs={"ways": 2},
            learner="supervised",
            learner_kwargs={"reuses_support": False},
            n_inner_steps=4,
            n_episodes=4,
            meta_batch_size=2,
            policy_kwargs={"features_extractor_kwargs": {"n_filters": 2, "strided": True}},
            n_threads=1,
            seed=0,
        )
        asked = []
        network = model.policy.network
        own = network.outputs
        monkeypatch.setattr(network, "outputs", lambda p, obs, critic: asked.append(1) or own(p, obs, critic))
        stats = model.train()
        return model.params, stats, len(asked)

    (params, stats, n), (theirs, other, n_asked) = trained(False), trained(True)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in params.items())
    for name in ("meta/pre_adapt_rew", "meta/post_adapt_rew", "rollout/ep_len_mean"):
        assert stats[name] == other[name]
    assert n == n_asked - 2


@pytest.mark.parametrize(
    ("env", "argument", "most"),
    [
        ("OmniglotFewShot-v0", {"learner_kwargs": {"n_query": 39}}, "OmniglotFewShot-v0 has 38"),
        ("OmniglotFewShot-v0", {"n_episodes": 201}, "OmniglotFewShot-v0 has 200"),
        ("OmniglotFewShot-v0", {"learner_kwargs": {"n_eval": 3801}}, "OmniglotFewShot-v0 has 3,800"),
        ("Omniglot-v0", {"learner_kwargs": {"n_query": 1001}}, "Omniglot-v0 has 1,000"),
        ("OmniglotFamilies-v0", {"learner_kwargs": {"n_query": 201}}, "OmniglotFamilies-v0 has 200"),
    ],
    ids=str,
)
def test_batches_are_no_larger_than_the_data(env: str, argument: dict[str, Any], most: str) -> None:
    def make(**kwargs: Any) -> metarl.MAML:
        family = make_family(env, ways=2, size=36)
        return metarl.MAML("CnnPolicy", family, learner="supervised", meta_batch_size=2, **kwargs)

    ((name, given),) = argument.items()
    inner = given if isinstance(given, dict) else argument
    ((word, count),) = inner.items()
    with pytest.raises(ConfigError, match=rf"^{word}={count:,}: a (task|batch) of {most} such examples.*, at most$"):
        make(**argument)
    model = make(**{name: {word: count - 1} if isinstance(given, dict) else count - 1})
    assert model.adaptation.option("n_eval") >= 100
    with pytest.raises(ConfigError, match=r"^n_episodes=100,000: a batch of "):
        model.evaluate(n_episodes=100_000)
