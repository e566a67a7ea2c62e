"""Checkpoints come back bit for bit, survive kills and full disks, and refuse everything else in one line."""

import json
import os
import signal
import struct
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarl.errors import CheckpointError
from metarl.files import checkpoint
from metarl.files import header as headers
from metarl.files.checkpoint import load_checkpoint, save_checkpoint
from metarl.files.writing import read_npz, write_all_atomic, write_bytes_atomic, write_npz_atomic, write_text_atomic
from tests.processes import Program

DOCUMENT = {"algorithm": "fomaml", "counters": {"iteration": 3, "steps": 12_000}, "rates": [0.1, 1e-300], "note": None}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "policy/weight": torch.randn(5, 3, generator=generator),
        "policy/special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "outer/exact": torch.randn(7, dtype=torch.float64, generator=generator),
        "outer/count": torch.tensor(2**62 + 1),
        "mask": torch.tensor([[True, False], [False, True]]),
        "view": torch.arange(12.0).reshape(3, 4).T[::2],
        "empty": torch.zeros(0, 4),
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def one_line_error(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


# ----------------------------------------------------------------------------------------------------------- round trip
def test_round_trip_is_bitwise_and_keeps_order(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "model.metarl"
    original = tensors()
    save_checkpoint(path, original, DOCUMENT)
    loaded, document = load_checkpoint(path)
    assert document == DOCUMENT
    assert list(document) == list(DOCUMENT)
    assert list(loaded) == list(original)
    for name, tensor in original.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor)
    loaded["policy/weight"].add_(1.0)


def test_gradients_and_shared_memory_are_no_obstacle(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    save_checkpoint(tmp_path / "a", {"one": weight, "same": weight, "loss": weight.sum()}, {})
    loaded, _ = load_checkpoint(tmp_path / "a")
    assert [value.tolist() for value in loaded.values()] == [[1.0] * 3, [1.0] * 3, 3.0]
    assert not loaded["one"].requires_grad


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", tensors(), DOCUMENT)
    save_checkpoint(tmp_path / "b", tensors(), DOCUMENT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_npz_atomic(tmp_path / "c", x=np.arange(3))
    write_npz_atomic(tmp_path / "d", x=np.arange(3))
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(document=st.dictionaries(st.text(), json_values, max_size=4), names=st.sets(st.text(), max_size=4))
def test_any_json_and_any_name_round_trip(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, object], names: set[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    names -= {"__metadata__"}
    try:
        save_checkpoint(path, {name: torch.ones(1) for name in names}, document)
    except (UnicodeEncodeError, CheckpointError):
        # Lone surrogates are no text; they are refused, not mangled.
        assert any(0xD800 <= ord(c) <= 0xDFFF for c in json.dumps([document, *names], ensure_ascii=False))
        return
    loaded, back = load_checkpoint(path)
    assert back == document
    assert set(loaded) == names


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, np.float32(1.0), torch.ones(1)])
def test_a_document_that_is_not_json_is_refused_before_writing(tmp_path: Path, value: object) -> None:
    path = tmp_path / "model"
    path.write_text("before")
    with pytest.raises(CheckpointError, match="not JSON"):
        save_checkpoint(path, {}, {"value": value})
    assert path.read_text() == "before"


def test_text_and_arrays_round_trip(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "t", "θ → φ\n")
    assert (tmp_path / "t").read_text(encoding="utf-8") == "θ → φ\n"
    arrays = {"steps": np.array([1, 2]), "post": np.ones((2, 3, 4)), "names": np.array(["a", "bc"])}
    write_npz_atomic(tmp_path / "n.npz", **arrays)
    back = read_npz(tmp_path / "n.npz")
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    with np.load(tmp_path / "n.npz") as plain:
        assert plain["post"].shape == (2, 3, 4)


# --------------------------------------------------------------------------------------------------------------- faults
def test_killed_while_saving_the_file_always_loads(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_checkpoint(path, {"x": torch.zeros(1)}, {"count": 0})
    code = """
        import sys, torch
        from metarl.files.checkpoint import save_checkpoint
        torch.set_num_threads(1)
        print("ready", flush=True)
        for count in range(1, 10**9):
            save_checkpoint(sys.argv[1], {"x": torch.full((60_000,), float(count))}, {"count": count})
    """
    counts = []
    for delay in (0.02, 0.1, 0.23):
        process = Program(code, str(path))
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        loaded, document = load_checkpoint(path)
        assert (loaded["x"] == document["count"]).all()
        counts.append(document["count"])
    assert max(counts) > 0


def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_checkpoint(path, tensors(), DOCUMENT)
    before = path.read_bytes()
    code = """
        import resource, sys, torch
        from metarl.files.checkpoint import save_checkpoint
        from metarl.errors import CheckpointError
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        try:
            save_checkpoint(sys.argv[1], {"x": torch.zeros(100_000)}, {})
        except CheckpointError as error:
            print(error)
    """
    out, err = Program(code, str(path)).communicate()
    assert not err
    assert out.startswith(f"cannot write {path}: ")
    assert out.count("\n") == 1
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model"]


def test_no_space_at_fsync_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_text_atomic(path, "before")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CheckpointError, match="No space left"):
        write_text_atomic(path, "after")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes_atomic(tmp_path / "file", b"x")
    assert os.listdir(tmp_path) == []


def test_old_leftovers_go_and_fresh_ones_stay(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".file.1.tmp", tmp_path / ".file.2.tmp"
    for leftover in (old, fresh):
        leftover.write_text("half")
    os.utime(old, (0, 0))
    write_text_atomic(tmp_path / "file", "whole")
    assert sorted(os.listdir(tmp_path)) == [".file.2.tmp", "file"]


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "model"):
        with pytest.raises(CheckpointError, match="cannot write"):
            save_checkpoint(path, {}, {})
    assert "cannot read" in one_line_error(tmp_path)


# ------------------------------------------------------------------------------------------------------------ bad files
def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in one_line_error(tmp_path / "nothing.metarl")
    with pytest.raises(CheckpointError, match="no such file"):
        read_npz(tmp_path / "nothing.npz")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_checkpoint(path, {"x": torch.arange(400.0)}, DOCUMENT)
    whole = path.read_bytes()
    for length in [*range(0, 40), *range(40, len(whole), 100), len(whole) - 1]:
        path.write_bytes(whole[:length])
        one_line_error(path)
    path.write_bytes(whole + b"\0")
    one_line_error(path)


def test_every_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_checkpoint(path, {"x": torch.arange(50.0)}, DOCUMENT)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x11]) + whole[position + 1 :])
        try:
            loaded, document = load_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:
            assert (document, bits(loaded["x"])) == (DOCUMENT, bits(torch.arange(50.0)))
    assert refused > 0.9 * len(whole)


@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random"
    for content in (data, struct.pack("<Q", len(data) + 1) + b"{" + data):
        path.write_bytes(content)
        one_line_error(path)
        with pytest.raises(CheckpointError, match="random"):
            read_npz(path)


def test_a_stable_baselines3_zip_is_named(tmp_path: Path) -> None:
    from stable_baselines3 import A2C

    env = gym.make("CartPole-v1")
    A2C("MlpPolicy", env, device="cpu").save(tmp_path / "sb3.zip")
    assert "Stable-Baselines3" in one_line_error(tmp_path / "sb3.zip")
    with pytest.raises(CheckpointError, match=r"sb3\.zip is no \.npz"):
        read_npz(tmp_path / "sb3.zip")


def test_other_programs_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    for metadata in (None, {"format": "pt"}, {"metarl": "{}"}, {"metarl": '{"format": "else"}'}, {"metarl": "[1]"}):
        safetensors.torch.save_file({"x": torch.ones(2)}, path, metadata)
        assert "another program" in one_line_error(path)


@pytest.mark.parametrize(
    ("version", "word"), [(99, "newer"), (0, "no longer"), ("1", "no longer"), (None, "no longer")]
)
def test_other_versions_are_refused(tmp_path: Path, version: object, word: str) -> None:
    path = tmp_path / "model"
    header = {"format": checkpoint.FORMAT, "version": version, "document": {}}
    safetensors.torch.save_file({}, path, {"metarl": json.dumps(header)})
    message = one_line_error(path)
    assert repr(version) in message
    assert word in message


@pytest.mark.parametrize("names", [["x"], ["x", "y", "z"], ["x", "x"], ["x", 1], [["x"], "y"]])
def test_tensors_other_than_those_named_are_refused(tmp_path: Path, names: list[object]) -> None:
    path = tmp_path / "model"
    header = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "document": {}, "tensors": names}
    safetensors.torch.save_file({"x": torch.ones(2), "y": torch.ones(2)}, path, {"metarl": json.dumps(header)})
    assert "its tensors are not the ones its document names" in one_line_error(path)


def with_header(header: dict[str, object], payload: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_checkpoint(path, {"x": torch.ones(4)}, {})
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    payload = data[8 + length :]
    path.write_bytes(with_header(header, payload))
    assert load_checkpoint(path)[0]["x"].tolist() == [1.0] * 4

    lies = [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**15]},
        {"dtype": "F32", "shape": [10**12, 10**12], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "I32", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        {"dtype": "nonsense", "shape": [4], "data_offsets": [0, 16]},
    ]
    for lie in lies:
        path.write_bytes(with_header({**header, "x": lie}, payload))
        one_line_error(path)
    for wrong in (2**63, checkpoint.MAX_HEADER + 1, length + 10**6, 5):
        path.write_bytes(with_header(header, payload, wrong))
        one_line_error(path)
    path.write_bytes(with_header({"__metadata__": header["__metadata__"], "y": header["x"]}, payload))
    one_line_error(path)


def test_a_checkpoint_is_read_without_pytorch_too(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", tensors(), DOCUMENT)
    arrays, document = headers.load_arrays(tmp_path / "a")
    assert document == DOCUMENT
    assert list(arrays) == list(tensors())
    for name, tensor in tensors().items():
        assert arrays[name].tobytes() == bits(tensor), name
    data = (tmp_path / "a").read_bytes()
    for cut in range(0, len(data), 97):
        (tmp_path / "b").write_bytes(data[:cut])
        with pytest.raises(CheckpointError) as error:
            headers.load_arrays(tmp_path / "b")
        assert "\n" not in str(error.value)
    changed = bytearray(data)
    changed[-3] ^= 1
    (tmp_path / "b").write_bytes(changed)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        headers.load_arrays(tmp_path / "b")


def test_a_header_beyond_the_limit_is_neither_written_nor_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "a", {}, {"long": "x" * 2000})
    for module in (checkpoint, headers):
        monkeypatch.setattr(module, "MAX_HEADER", 1000)
    assert "not a metarl checkpoint" in one_line_error(tmp_path / "a")
    with pytest.raises(CheckpointError, match="exceeds"):
        save_checkpoint(tmp_path / "b", {}, {"long": "x" * 2000})


class Loud:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_no_pickle_is_ever_opened(tmp_path: Path) -> None:
    loud = np.array([Loud(tmp_path / "proof")], dtype=object)
    with pytest.raises(CheckpointError, match="Python objects"):
        write_npz_atomic(tmp_path / "a.npz", x=loud)
    np.savez(tmp_path / "evil.npz", x=loud)
    torch.save({"x": Loud(tmp_path / "proof")}, tmp_path / "evil.pt")
    for name in ("evil.npz", "evil.pt"):
        one_line_error(tmp_path / name)
        with pytest.raises(CheckpointError):
            read_npz(tmp_path / name)
    assert not (tmp_path / "proof").exists()


def test_truncated_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz_atomic(path, x=np.arange(100.0), y=np.ones(3))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 50):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_npz(path)
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(CheckpointError, match="single array"):
        read_npz(tmp_path / "single.npy")


# ----------------------------------------------------------------------------------------------- several files at once
@pytest.mark.parametrize("moment", range(3))
def test_killed_between_renames_every_file_is_an_old_or_a_new_one(moment: int, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    write_all_atomic(dict.fromkeys(paths, b"old"))
    process = os.fork()
    if process == 0:
        replace, done = os.replace, [0]

        def killed(source: Path, target: Path) -> None:
            if done[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            done[0] += 1
            replace(source, target)

        os.replace = killed  # type: ignore[assignment]
        write_all_atomic(dict.fromkeys(paths, b"new"))
        os._exit(1)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    assert [path.read_bytes() for path in paths] == moment * [b"new"] + (3 - moment) * [b"old"]


def test_inside_a_folder_no_link_is_followed_and_the_folder_is_not_made_anew(tmp_path: Path) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    for folder in (run, home):
        folder.mkdir()
    write_all_atomic({run / "new" / "deep" / "file": b"1"}, [run])
    (run / "linked").symlink_to(home)
    (run / "file").symlink_to(home / "thesis")
    for path in (run / "linked" / "file", run / "linked" / "new" / "file", run / "file"):
        with pytest.raises(CheckpointError, match=r"is a link, and .*run is written to through none"):
            write_all_atomic({run / "whole": b"1", path: b"2"}, [run])
    assert os.listdir(home) == []
    assert sorted(os.listdir(run)) == ["file", "linked", "new"]
    (tmp_path / "way").symlink_to(run)  # the folder itself may be reached through one
    write_all_atomic({tmp_path / "way" / "whole": b"1"}, [tmp_path / "way"])
    assert (run / "whole").read_bytes() == b"1"
    with pytest.raises(CheckpointError, match="No such file or directory"):
        write_all_atomic({tmp_path / "gone" / "new" / "file": b"1"}, [tmp_path / "gone"])
    assert not (tmp_path / "gone").exists()
