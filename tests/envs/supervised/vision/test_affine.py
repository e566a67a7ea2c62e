"""Affine maps of images against one at a time, by the definition."""

import numpy as np

from metarl.envs.supervised.vision.affine import Affine, symmetries

SIDE = 9


def by_definition(image, angle, scale, shift_x, shift_y):
    """Return the mapped image, pixel by pixel."""
    shown, middle = np.zeros_like(image), image.shape[0] / 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for row, column in np.ndindex(image.shape):
        place = np.array([column + 0.5 - middle - shift_x, row + 0.5 - middle - shift_y])
        x, y = np.floor(turn @ place / scale + middle).astype(int)
        if 0 <= x < image.shape[1] and 0 <= y < image.shape[0]:
            shown[row, column] = image[y, x]
    return shown


def mapped(images, affine):
    flat = np.concatenate([images.reshape(len(images), -1), np.zeros((len(images), 1), images.dtype)], axis=1)
    return np.take_along_axis(flat, affine.sources(SIDE), axis=1).reshape(images.shape)


def test_every_pixel_shows_its_nearest_neighbour():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (20, SIDE, SIDE))
    affine = Affine(rng.uniform(0, 2 * np.pi, 20), rng.uniform(0.8, 1.2, 20), *rng.integers(-2, 3, (2, 20)))
    expected = [by_definition(image, *each) for image, *each in zip(images, *affine, strict=True)]
    np.testing.assert_array_equal(mapped(images, affine), expected)


def test_quarter_turns_are_exact_and_go_the_way_the_symmetries_do():
    images = np.arange(4 * SIDE * SIDE).reshape(4, SIDE, SIDE)
    zeros = np.zeros(4)
    turned = mapped(images, Affine(np.pi / 2 * np.arange(4), zeros + 1.0, zeros, zeros))
    for quarter in range(4):
        np.testing.assert_array_equal(turned[quarter], np.rot90(images[quarter], -quarter))
    flat = np.append(images[0].ravel(), 0)
    found = flat[symmetries(SIDE)[:, :-1]].reshape(8, SIDE, SIDE)
    for quarter in range(4):
        np.testing.assert_array_equal(found[quarter], np.rot90(images[0], quarter))
        np.testing.assert_array_equal(found[4 + quarter], np.rot90(images[0][:, ::-1], quarter))


def test_the_ranges_are_the_published_ones():
    numbers = np.random.default_rng(0).random((5000, 4))
    affine = Affine.of(numbers, 28)
    assert 0.0 <= affine.angle.min() < 0.01
    assert 6.27 < affine.angle.max() <= 2 * np.pi
    assert 0.8 <= affine.scale.min() < affine.scale.max() <= 1.2
    for shift in (affine.shift_x, affine.shift_y):
        assert set(shift.tolist()) == set(range(-6, 7))  # 0.2 of 28 pixels is 5.6, which is rounded
