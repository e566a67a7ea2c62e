"""MultiCV-v0: data sets as tasks, on tiny files."""

from __future__ import annotations

import numpy as np
import pytest

import metarl
from metarl.envs import check_family, make_family
from metarl.errors import CheckpointError, MetaRLError, UnknownNameError
from metarl.streams import stream


def arrays(n_classes, side=4, channels=(), n=12, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    for part, size in (("train", n), ("test", n_classes)):
        found[f"{part}_images"] = rng.integers(1, 256, (size, side, side, *channels), dtype=np.uint8)
        found[f"{part}_labels"] = np.arange(size) % n_classes
    return found


@pytest.fixture
def folder(tmp_path):
    np.savez(tmp_path / "ants.npz", **arrays(2, side=16))
    np.savez(tmp_path / "bees.npz", **arrays(3, side=20, channels=(3,)), class_names=np.array(["a", "b", "c"]))
    np.savez(tmp_path / "cows.npz", **arrays(2, side=18, channels=(1,)))
    return tmp_path


def test_every_promise_is_kept(folder):
    for family in (
        make_family("MultiCV-v0"),
        make_family("MultiCV-v0", folder=str(folder), held_out="bees"),
        make_family("MultiCV-v0", folder=str(folder)).query_family,
    ):
        check_family(family)


def test_data_sets_are_tasks_with_heads_of_their_own(folder):
    family = make_family("MultiCV-v0", folder=str(folder), held_out=["bees"])
    assert family.names == ["ants", "bees", "cows"]
    assert family.observation_space.shape == (3, 20, 20)
    assert [family.spaces({"dataset": index})[1].n for index in range(3)] == [2, 3, 2]
    assert family.tasks("test")["dataset"].tolist() == [1]
    assert family.tasks("validation")["dataset"].tolist() == [0, 2]
    assert set(family.sample_tasks(stream(0, "x"), 20)["dataset"]) == {0, 2}
    assert family.validate_tasks({"dataset": ["cows"]})["dataset"].tolist() == [2]
    assert make_family("MultiCV-v0", folder=str(folder)).splits_coincide


def test_smaller_images_have_zeros_around_and_grey_ones_three_channels(folder):
    family = make_family("MultiCV-v0", folder=str(folder), size=24)
    images, labels = family.examples({"dataset": np.array([0, 2])}, [stream(0, "a"), stream(0, "b")], 12)
    data = arrays(2, side=16)
    assert images.shape == (2, 12, 3, 24, 24)
    np.testing.assert_array_equal(images[:, :, 0], images[:, :, 2])
    inner = images[0, :, 0, 4:20, 4:20]
    assert images[0].sum() == 3 * inner.sum(dtype=np.int64)
    # Each image once, with its own label.
    own = {image.tobytes(): label for image, label in zip(data["train_images"], data["train_labels"], strict=True)}
    assert {image.tobytes(): label for image, label in zip(inner, labels[0], strict=True)} == own
    held_out, _ = family.query_family.examples({"dataset": np.array([0])}, [stream(0, "a")], 5)
    theirs = {image.tobytes() for image in data["test_images"]}
    assert {image.tobytes() for image in held_out[0, :, 0, 4:20, 4:20]} == theirs


def test_leap_learns_the_shared_trunk_and_each_task_a_head(folder):
    model = metarl.Leap(
        "FewShotCnnPolicy",
        "MultiCV-v0",
        env_kwargs={"folder": str(folder), "held_out": "bees"},
        learner="supervised",
        learner_kwargs={"reuses_support": False, "n_eval": 3},
        n_inner_steps=2,
        n_episodes=4,
        meta_batch_size=3,
        policy_kwargs={"features_extractor_kwargs": {"n_filters": 2}},
        n_threads=1,
        seed=0,
    ).learn(1)
    assert model.adaptations.has_local
    report = model.evaluate("test", 2, n_tasks=1)
    assert report.returns.shape == report.learning_returns.shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_images": None}, "has no train_images: a data set has"),
        ({"train_images": np.zeros((12, 16, 16), np.float32)}, r"\[12, 16, 16\] float32, not uint8"),
        ({"train_images": np.zeros((12, 16), np.uint8)}, r"\[12, 16\] uint8, not uint8 \[image, height, width\]"),
        ({"train_images": np.zeros((12, 16, 16, 2), np.uint8)}, "one channel or three"),
        ({"train_images": np.zeros((0, 16, 16), np.uint8)}, "at least one image"),
        ({"test_images": np.zeros((2, 15, 16), np.uint8)}, "of two shapes"),
        ({"train_labels": np.zeros(11, int)}, r"train_labels is \[11\] int64, not integers \[12\]"),
        ({"train_labels": np.zeros(12)}, "float64, not integers"),
        ({"train_labels": np.arange(12) - 1}, "train_labels has -1, and classes are counted from 0"),
        ({"test_labels": np.array([0, 2])}, "test_labels has 2, and classes are 0 to 1"),
        ({"train_labels": np.zeros(12, int), "test_labels": np.zeros(2, int)}, "has one class"),
        ({"class_names": np.array(["only"])}, "train_labels has 1, and classes are 0 to 0"),
    ],
    ids=str,
)
def test_another_layout_is_one_line(tmp_path, change, words):
    found = {**arrays(2, side=16), **change}
    np.savez(tmp_path / "ants.npz", **{name: value for name, value in found.items() if value is not None})
    with pytest.raises(MetaRLError, match=words) as caught:
        make_family("MultiCV-v0", folder=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert "ants.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"folder": "nowhere"}, "folder='nowhere': there is no such folder"),
        ({"datasets": "mnist"}, r"data set 'mnist': folder says where mnist\.npz is"),
        ({"datasets": "omniglot/Greeek"}, "unknown alphabet 'Greeek'"),
        ({"datasets": []}, "names of data sets"),
        ({"datasets": "omniglot/Greek,omniglot/Greek"}, "has a name twice"),
        ({"datasets": "omniglot/Greek", "held_out": "omniglot/Greek"}, "no data set is left"),
        ({"datasets": "omniglot/Greek", "held_out": "mnist"}, "unknown data set 'mnist'"),
        ({"size": 20}, "size=20: images of omniglot/Arcadian have 28 pixels"),
    ],
    ids=str,
)
def test_what_is_missing_is_one_line(kwargs, words):
    with pytest.raises(MetaRLError, match=words):
        make_family("MultiCV-v0", **kwargs)


def test_a_folder_without_or_with_bad_files(tmp_path):
    with pytest.raises(MetaRLError, match="has no data set"):
        make_family("MultiCV-v0", folder=str(tmp_path))
    np.savez(tmp_path / "ants.npz", **arrays(2))
    with pytest.raises(UnknownNameError, match="did you mean 'ants'"):
        make_family("MultiCV-v0", folder=str(tmp_path), datasets="antz")
    with pytest.raises(UnknownNameError, match=r"'mnist': known: ants, omniglot/<alphabet>$"):
        make_family("MultiCV-v0", folder=str(tmp_path), datasets="mnist")
    np.savez(tmp_path / "ants.npz", train_images=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"no \.npz of plain arrays"):
        make_family("MultiCV-v0", folder=str(tmp_path))
    (tmp_path / "ants.npz").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"no \.npz of plain arrays"):
        make_family("MultiCV-v0", folder=str(tmp_path))
