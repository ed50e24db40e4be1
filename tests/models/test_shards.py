"""Weight files: read lazily, written shard by shard, and refused with the file's name when they are broken."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_pat.models.shards import LazyTensor, lazy, plan_shards, shard_bytes, tensor_files, write_shards

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.odd": torch.randn(3).to(torch.bfloat16),
    "c": torch.randn(5, 7).half(),
    "d": torch.tensor(3.5),
    "e": torch.tensor([1, 2, 3]),
    "f": torch.tensor([True, False, True]),
    "g": torch.zeros(0, 4),
}


def same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        read = found[name].read()
        assert found[name].shape == tuple(tensor.shape) and read.dtype == found[name].dtype == tensor.dtype
        assert torch.equal(read, tensor), name


def test_our_writer_by_safetensors_own_reader(tmp_path):
    files = write_shards(tmp_path, {name: lazy(tensor) for name, tensor in TENSORS.items()})
    assert files == [tmp_path / "model.safetensors"] and os.listdir(tmp_path) == ["model.safetensors"]
    found = load_file(files[0])
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    same(tensor_files(tmp_path), TENSORS)


def test_shards_and_their_index(tmp_path):
    big = {f"layer.{i}": torch.randn(100, 10) for i in range(7)}  # 4000 bytes each
    files = write_shards(tmp_path, {name: lazy(tensor) for name, tensor in big.items()}, 8001)
    assert [file.name for file in files] == [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 7 * 4000
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], big[name])
    same(tensor_files(tmp_path), big)
    write_shards(tmp_path, {"only": lazy(torch.ones(2))})  # another model in its place: nothing of the first stays
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    write_shards(tmp_path, {"x": lazy(torch.ones(2))})

    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_shards(tmp_path, {"y": lazy(torch.ones(9)), "z": LazyTensor((2,), torch.float32, fail)}, 20)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    same(tensor_files(tmp_path), {"x": torch.ones(2)})


def test_a_tensor_that_is_not_as_announced(tmp_path):
    with pytest.raises(ValueError, match=r"x: read as torch.float32 \[2\], announced as torch.float32 \[3\]"):
        write_shards(tmp_path, {"x": LazyTensor((3,), torch.float32, lambda: torch.ones(2))})


def test_one_tensor_is_held_at_a_time(tmp_path):
    alive = []

    def read(i):
        alive.append(torch.full((10,), float(i)))
        return alive.pop()

    order = []
    tensors = {str(i): LazyTensor((10,), torch.float32, lambda i=i: (order.append(i), read(i))[1]) for i in range(5)}
    write_shards(tmp_path, tensors, 80)
    assert order == [0, 1, 2, 3, 4]  # each once, in the order that the source has them


def test_what_torch_saves_is_read_too(tmp_path):
    torch.save({"a": TENSORS["a"]}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save(
        {"c": TENSORS["c"].T}, tmp_path / "pytorch_model-00002-of-00002.bin", _use_new_zipfile_serialization=False
    )
    places = {"a": "pytorch_model-00001-of-00002.bin", "c": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    same(tensor_files(tmp_path), {"a": TENSORS["a"], "c": TENSORS["c"].T})


def test_sizes():
    assert (shard_bytes("5GB"), shard_bytes("500 MB"), shard_bytes(7)) == (5_000_000_000, 500_000_000, 7)
    with pytest.raises(ValueError, match="'5 apples' is not understood"):
        shard_bytes("5 apples")
    tensors = {name: lazy(torch.zeros(size)) for name, size in (("a", 1), ("b", 100), ("c", 1), ("d", 1))}
    assert plan_shards(tensors, 10) == [["a"], ["b"], ["c", "d"]]  # one that is too large stands alone


@pytest.fixture
def sharded(tmp_path):
    write_shards(tmp_path, {f"t{i}": lazy(torch.randn(100)) for i in range(4)}, 800)
    return tmp_path


def test_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="index.json names the shard model-00002-of-00002.safetensors.*missing"):
        tensor_files(sharded)


def test_truncated_shard(sharded):
    file = sharded / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors: not a whole safetensors file"):
        tensor_files(sharded)


def test_index_and_shards_disagree(sharded):
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="says that model-00001-of-00002.safetensors holds ghost, but it does not"):
        tensor_files(sharded)
    del index["weight_map"]["ghost"], index["weight_map"]["t0"]
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"does not say that model-00001-of-00002.safetensors holds \['t0'\]"):
        tensor_files(sharded)
    file.write_text(json.dumps({"weight_map": {"t0": "../elsewhere.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="names the shard ../elsewhere.safetensors"):
        tensor_files(sharded)
    file.write_text("{")
    with pytest.raises(ValueError, match="not an index of shards"):
        tensor_files(sharded)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_is_no_tensor_dict_is_refused_and_not_executed(tmp_path):
    harm = tmp_path / "harmful-was-here"
    file = tmp_path / "pytorch_model.bin"
    for content, zipped in (({"a": Harmful(harm)}, True), ({"a": Harmful(harm)}, False)):
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match="pytorch_model.bin: not a file of plain tensors"):
            tensor_files(tmp_path)
    assert not harm.exists()
    for content, what in (([1], "holds a list"), ({"a": 3.0}, "entry 'a' is a float"), ({1: torch.ones(1)}, "entry 1")):
        torch.save(content, file)
        with pytest.raises(ValueError, match=f"pytorch_model.bin: {what}"):
            tensor_files(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weights: expected model.safetensors"):
        tensor_files(tmp_path)


def test_safetensors_before_pickles(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert tensor_files(tmp_path)["x"].read() == 1
