"""Official files of data sets become one layout: tiny ones of each kind."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imsave

from metarl.envs.supervised.vision import convert as module
from metarl.envs.supervised.vision.convert import convert, main
from metarl.envs.supervised.vision.data_sets import read_data_set
from metarl.errors import ConfigError

RNG = np.random.default_rng(0)


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, packed):
    arrays = {
        "train-images": RNG.integers(0, 256, (6, 5, 4)),
        "train-labels": np.arange(6) % 3,
        "t10k-images": RNG.integers(0, 256, (3, 5, 4)),
        "t10k-labels": np.arange(3),
    }
    for name, array in arrays.items():
        data = idx(array)
        file = tmp_path / f"{name}-idx{array.ndim}-ubyte{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(data) if packed else data)
    convert(tmp_path, tmp_path / "tiny.npz")
    found = read_data_set(tmp_path / "tiny.npz")
    np.testing.assert_array_equal(found.train_images[..., 0], arrays["train-images"])
    np.testing.assert_array_equal(found.test_labels, arrays["t10k-labels"])
    assert found.class_names == ("0", "1", "2")
    file.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="no gzip file" if packed else "no idx file of bytes"):
        convert(tmp_path, tmp_path / "other.npz")
    assert not (tmp_path / "other.npz").exists()


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar_batches(tmp_path, hundred):
    images, labels = RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), np.array([0, 1, 1, 0], np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(4, -1)
    coarse = [np.full((4, 1), 7, np.uint8)] if hundred else []
    rows = np.concatenate([*coarse, labels[:, None], planes], axis=1)
    names = ("train.bin", "test.bin") if hundred else ("data_batch_1.bin", "test_batch.bin")
    for name in names:
        (tmp_path / name).write_bytes(rows.tobytes())
    convert(tmp_path, tmp_path / "tiny.npz")
    found = read_data_set(tmp_path / "tiny.npz")
    np.testing.assert_array_equal(found.train_images, images)
    np.testing.assert_array_equal(found.train_labels, labels)
    (tmp_path / names[0]).write_bytes(b"x" * 100)
    with pytest.raises(ConfigError, match="100 bytes, no multiple of"):
        convert(tmp_path, tmp_path / "tiny.npz")


def test_svhn_takes_scipy_which_need_not_be_there(tmp_path, monkeypatch):
    images, labels = (
        RNG.integers(0, 256, (32, 32, 3, 5), dtype=np.uint8),
        np.array([[10], [1], [2], [9], [10]], np.uint8),
    )
    for part in ("train", "test"):
        (tmp_path / f"{part}_32x32.mat").write_bytes(b"MATLAB")

    def without(name):
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", without)
    with pytest.raises(ConfigError, match="read by scipy, which is not installed"):
        convert(tmp_path, tmp_path / "tiny.npz")
    theirs = SimpleNamespace(loadmat=lambda file, variable_names: {"X": images, "y": labels})
    monkeypatch.setattr(module.importlib, "import_module", lambda name: theirs)
    found = convert(tmp_path, tmp_path / "tiny.npz")
    assert found.train_labels.tolist() == [0, 1, 2, 9, 0]
    np.testing.assert_array_equal(found.train_images[3], images[..., 3])

    def refuses(file, variable_names):
        raise ValueError("Unknown mat file type")

    theirs.loadmat = refuses
    with pytest.raises(ConfigError, match=r"no \.mat file of X and y: Unknown mat file type"):
        convert(tmp_path, tmp_path / "tiny.npz")


def test_folders_of_pngs(tmp_path):
    images = RNG.integers(0, 256, (2, 3, 6, 7, 3), dtype=np.uint8)
    for part, n in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                imsave(folder / f"{i}.png", images[label, i])
    convert(tmp_path, tmp_path / "tiny.npz")
    found = read_data_set(tmp_path / "tiny.npz")
    assert found.class_names == ("cat", "dog")
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(found.train_images, images.reshape(6, 6, 7, 3))
    imsave(tmp_path / "test" / "dog" / "grey.png", images[0, 0, :5, :5])
    with pytest.raises(ConfigError, match="images of a data set have one size"):
        convert(tmp_path, tmp_path / "tiny.npz")
    (tmp_path / "test" / "dog" / "grey.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"is no PNG"):
        convert(tmp_path, tmp_path / "tiny.npz")
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(ConfigError, match="is a class that train has not"):
        convert(tmp_path, tmp_path / "tiny.npz")


def test_grey_pngs_have_one_channel(tmp_path):
    image = np.repeat(RNG.integers(0, 256, (4, 4, 1), dtype=np.uint8), 3, axis=2)
    imsave(tmp_path / "grey.png", image)
    np.testing.assert_array_equal(module._read_png(tmp_path / "grey.png"), image[..., 0])


def test_the_command_says_what_it_made_or_what_is_wrong(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    assert main([str(source), str(tmp_path / "tiny.npz")]) == 2
    assert "holds none of idx (MNIST)" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), "x.npz"]) == 2
    assert main([str(source), "x.zip"]) == 2
    assert "a data set is an .npz file" in capsys.readouterr().err
    for words in ([], [str(source)], [str(source), "x.npz", "y.npz"]):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith(f"metarl: error: {len(words)} of two arguments: python -m metarl.")
        assert err.count("\n") == 1
    assert main([str(source), "--help"]) == 0
    assert "CIFAR binary" in capsys.readouterr().out
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        (source / name).write_bytes(idx(np.zeros((2, 3, 3))))
    for name in ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"):
        (source / name).write_bytes(idx(np.arange(2)))
    words = [sys.executable, "-m", "metarl.envs.supervised.vision.convert", str(source), str(tmp_path / "tiny.npz")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "2 classes, 2 + 2 images of 3 by 3 by 1" in done.stdout
    assert done.stderr == ""
    assert io.BytesIO((tmp_path / "tiny.npz").read_bytes()).read(2) == b"PK"
