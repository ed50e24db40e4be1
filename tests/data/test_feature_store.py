from __future__ import annotations

import os
import pickle

import pytest
import torch

from llava_pat.data import feature_meta
from llava_pat.data.feature_dtypes import pack
from llava_pat.data.feature_meta import FeatureAccount, FeatureMeta
from llava_pat.data.feature_store import FeatureStore
from llava_pat.data.file_facts import MISSING, FileFacts
from llava_pat.types import DataError

NAMES = tuple(f"{number}.png" for number in range(5))


def account(**changes):
    sizes = {"layer": 2, "select_feature": "patch", "patch_size": 4, "positions": 3, "width": 2}
    stored = {"precision": "float32", "dtype": "float32", "geometry": {"kind": "Pad", "size": 8}}
    return FeatureAccount(**({"tower": "a/clip", "tower_sha256": "0" * 64} | sizes | stored | changes))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Five images in shards of two; image k is filled with k."""
    monkeypatch.setattr(feature_meta, "_SHARD_ROWS", 2)
    store = FeatureStore.create(tmp_path / "train", FeatureMeta.of(account(), "images", NAMES), NAMES)
    for shard in (2, 0, 1):
        write(store, shard)
    return store


def write(store, shard):
    rows = store.rows_of(shard)
    features = torch.stack([torch.full((3, 2), float(row)) for row in rows])
    facts = [FileFacts(row, 10 * row, f"{row:064x}") for row in rows]
    store.write(shard, pack(features, "float32"), facts, torch.tensor([0.25 * shard] * 3 * len(rows)))


def test_rows_by_name_whatever_the_order_of_shards(store):
    assert store.shards() == ([0, 1, 2], []) and store.meta.shards == 3
    again = FeatureStore.open(store.folder)
    found = again.features(["4.png", "0.png", "3.png"], torch.float64, "here")
    assert found.shape == (3, 3, 2) and found.dtype == torch.float64
    assert found[:, 0, 0].tolist() == [4, 0, 3]
    assert again.features([], torch.bfloat16, "here").shape == (0, 3, 2)
    with pytest.raises(DataError, match=r"here: image 'x.png' is not among the 5 images"):
        again.features(["x.png"], torch.float32, "here")


def test_facts_and_errors(store):
    assert store.facts([1]) == {f"{k}.png": FileFacts(k, 10 * k, f"{k:064x}") for k in (2, 3)}
    total, positions, largest = store.errors()
    assert (total, positions, largest) == (6 * 0.25 + 3 * 0.5, 15, 0.5)
    store.write(2, pack(torch.zeros(1, 3, 2), "float32"), [MISSING], torch.zeros(3))
    assert FeatureStore.open(store.folder).facts([2]) == {"4.png": MISSING}


def test_a_copy_in_another_process_opens_the_files_itself(store):
    store.features(NAMES, torch.float32, "")
    carried = pickle.dumps(store)
    assert len(carried) < 3000
    assert pickle.loads(carried).features(["2.png"], torch.float32, "")[0, 0, 0] == 2


def test_rows_are_not_the_shard(store):
    """A worker hands its tensors over with all of their storage."""
    assert store.features(["0.png"], torch.float32, "").untyped_storage().nbytes() == 3 * 2 * 4


def test_a_shard_that_is_not_there_yet(store):
    store.shard_file(1).unlink()
    (store.folder / ".features-00001.safetensors.77").write_bytes(b"being written")
    os.utime(store.folder / ".features-00001.safetensors.77", (1, 1))
    again = FeatureStore.open(store.folder)
    assert again.shards() == ([0, 2], [1])
    again.remove_left_over()
    write(again, 1)
    assert again.shards() == ([0, 1, 2], []) and not list(store.folder.glob(".*"))


@pytest.mark.parametrize("key", ["features", "file_bytes", "file_mtime_ns", "file_sha256", "error_sum", "error_max"])
def test_a_shard_whose_header_was_altered(store, key):
    file = store.shard_file(1)
    file.write_bytes(file.read_bytes().replace(f'"{key}":{{'.encode(), f'"{key[:-1]}?":{{'.encode(), 1))
    with pytest.raises(DataError, match=f"00001.safetensors: lacks {key}; delete this file"):
        FeatureStore.open(store.folder).facts([1])


def test_what_is_being_written_now_stays(store):
    (store.folder / ".features-00001.safetensors.77").write_bytes(b"being written")
    store.remove_left_over()
    assert len(list(store.folder.glob(".features-*"))) == 1


def test_what_makes_features_others():
    """The name of the tower does not; a folder's shards belong to its list of images."""
    same = account(tower="./a/clip")
    assert same.identity() == account().identity()
    for change in ({"layer": 1}, {"geometry": {"kind": "Pad", "size": 9}}, {"tower_sha256": "1" * 64}):
        assert account(**change).identity() != account().identity()
    metas = [FeatureMeta.of(account(), "here", NAMES), FeatureMeta.of(same, "there", NAMES)]
    assert metas[0].sha256 == metas[1].sha256 != FeatureMeta.of(account(), "here", NAMES[::-1]).sha256


def test_a_shard_is_256_mib_or_512_images():
    assert FeatureMeta.of(account(), "", NAMES).rows_per_shard == 512
    clip = account(positions=576, width=1024, dtype="bfloat16")
    assert FeatureMeta.of(clip, "", NAMES).rows_per_shard == (256 << 20) // (576 * 1024 * 2) == 227
    huge = account(positions=1 << 20, width=1024)
    assert FeatureMeta.of(huge, "", NAMES).rows_per_shard == 1


def test_no_folder_that_others_see(tmp_path):
    with pytest.raises(DataError, match="must be a folder that all machines share"):
        FeatureStore.open(tmp_path)
