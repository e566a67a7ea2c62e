"""What adapted policies predict, and its cards."""

from __future__ import annotations

import numpy as np
import pytest

import metarl
from metarl.meta.evaluation.predictions import prediction_cards, predictions_of
from tests.contract.kinds import KINDS

CNN = {"policy_kwargs": {"features_extractor_kwargs": {"n_filters": 12, "strided": True}}, "n_threads": 1, "seed": 0}


def test_regression_is_drawn_as_curves_of_targets_and_of_predictions_before_and_after():
    options = {"policy_kwargs": {"net_arch": [8]}, "n_threads": 1, "seed": 0, "n_episodes": 5, "meta_batch_size": 2}
    model = metarl.MAML("MlpPolicy", "Sinusoid-v0", learner="supervised", **options)
    found = predictions_of(model, 2)
    x = found.inputs.astype(np.float64)
    amplitude, phase = (found.tasks[name][:, None, None] for name in ("amplitude", "phase"))
    np.testing.assert_allclose(found.targets, amplitude * np.sin(x - phase), rtol=1e-6)
    said = [model.predict(each, deterministic=True)[0] for each in found.inputs]
    np.testing.assert_allclose(found.before, said, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found.before, found.after)
    (figure,) = prediction_cards(found).values()
    assert len(figure.axes) == 3
    lines = figure.axes[1].get_lines()
    assert [line.get_label() for line in lines] == ["target", "before", "after"]
    order = np.argsort(found.inputs[1, :, 0])
    np.testing.assert_array_equal(lines[2].get_ydata(), found.after[1, order, 0])


def test_classes_are_drawn_as_a_confusion_matrix_and_images():
    options = {"env_kwargs": {"ways": 3}, "learner": "supervised", "n_episodes": 6, "meta_batch_size": 2, **CNN}
    model = metarl.FOMAML("FewShotCnnPolicy", "OmniglotFewShot-v0", inner_lr=0.4, **options)
    found = predictions_of(model, 10)
    # Adaptation says of held-out drawings more than chance does; they are none of those learnt from.
    before, after = (float(np.mean(each == found.targets)) for each in (found.before, found.after))
    assert after > max(before, 0.5)
    learnt_from = {image.tobytes() for image in found.support[0][0]}
    assert not learnt_from & {image.tobytes() for image in found.inputs[0]}
    cards = prediction_cards(found)
    assert list(cards) == ["confusion", "predictions", "support_images"]
    matrix = np.asarray(cards["confusion"].axes[1].images[0].get_array())
    for target in range(3):
        of_class = found.after[0][found.targets[0] == target]
        np.testing.assert_allclose(matrix[target], np.bincount(of_class, minlength=3) / len(of_class))
    first = cards["predictions"].axes[0]
    words = f"{found.targets[0, 0]}: {found.before[0, 0]} → {found.after[0, 0]}"
    assert first.get_title() == words
    np.testing.assert_array_equal(first.images[0].get_array(), found.inputs[0, 0, 0])


@pytest.mark.parametrize("kind", ["continuous", "data sets"])
def test_where_nobody_predicts_there_is_nothing_to_draw(kind):
    # Data sets have heads of each task's own.
    made = KINDS[kind]
    options = {"policy_kwargs": made.policy_kwargs, "n_episodes": 2, "meta_batch_size": 2, "n_threads": 1, "seed": 0}
    learner = "supervised" if kind == "data sets" else "vpg"
    model = metarl.FOMAML(made.policy, made.make(), learner=learner, **options)
    assert predictions_of(model, 1) is None
    assert prediction_cards(None) == {}


def test_what_is_decoded_of_a_support_is_drawn_too():
    sizes = {"n_support": 5, "meta_batch_size": 2, "policy_kwargs": {"net_arch": [8]}, "n_threads": 1, "seed": 0}
    model = metarl.MetaTransfer("MlpPolicy", "CosineSine-v0", encoder="linear", **sizes)
    found = predictions_of(model, 1)
    said = [model.predict(each, deterministic=True)[0] for each in found.inputs]
    np.testing.assert_allclose(found.before, said, rtol=1e-5, atol=1e-6)
    assert list(prediction_cards(found)) == ["predictions"]


def test_several_numbers_are_drawn_against_their_targets():
    options = {"policy_kwargs": {"net_arch": [8]}, "n_threads": 1, "seed": 0, "n_episodes": 5, "meta_batch_size": 2}
    model = metarl.MAML("MlpPolicy", "DoublePendulum-v0", learner="supervised", **options)
    found = predictions_of(model, 1)
    (figure,) = prediction_cards(found).values()
    for axis, said in zip(figure.axes, (found.before, found.after), strict=True):
        line, *entries = axis.get_lines()
        np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
        assert len(entries) == found.targets.shape[2]
        for entry, points in enumerate(entries):
            np.testing.assert_array_equal(points.get_xdata(), found.targets[0, :, entry])
            np.testing.assert_array_equal(points.get_ydata(), said[0, :, entry])
        assert axis.get_title().endswith(f"MSE {np.square(said[0] - found.targets[0]).sum(1).mean():.3g}")


def test_a_drawing_that_is_learnt_from_is_shown_once():
    options = {"env_kwargs": {"ways": 3}, "learner": "supervised", "n_episodes": 3, "meta_batch_size": 2, **CNN}
    found = predictions_of(metarl.MAML("FewShotCnnPolicy", "OmniglotFewShot-v0", **options), 1)
    assert found.support[1].shape == (3, 3)  # 3 ways, 1 shot
    shown = [axis for axis in prediction_cards(found)["support_images"].axes if axis.images]
    assert len(shown) == 3
