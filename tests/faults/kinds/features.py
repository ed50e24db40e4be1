"""Feature caches with something wrong in them."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import torch

from llava_pat.data.feature_dtypes import pack
from llava_pat.data.feature_meta import FORMAT, FeatureAccount, FeatureMeta, names_sha256
from llava_pat.data.feature_store import FeatureStore
from llava_pat.data.file_facts import FileFacts
from llava_pat.types import DataError
from tests.faults.examples import generated
from tests.faults.harmful import changed_bytes
from tests.faults.registry import Outcome, Run, fault_kind

_NAMES = tuple(f"{number}.png" for number in range(6))
_POSITIONS, _WIDTH, _ROWS = 4, 8, 2  # a shard has two images


def _written(folder: Path) -> torch.Tensor:
    """A whole cache. Returns its features, image by image."""
    account = FeatureAccount(
        tower="a/clip", tower_sha256="0" * 64, layer=2, select_feature="patch", geometry={"kind": "Pad", "size": 8},
        patch_size=4, positions=_POSITIONS, width=_WIDTH, precision="float32", dtype="float32",
    )  # fmt: skip
    meta = FeatureMeta(account, "images", len(_NAMES), names_sha256(_NAMES), _ROWS, FORMAT)
    store = FeatureStore.create(folder, meta, _NAMES)
    features = torch.randn(len(_NAMES), _POSITIONS, _WIDTH, generator=torch.Generator().manual_seed(0))
    for shard in range(meta.shards):
        rows = list(store.rows_of(shard))
        facts = [FileFacts(row, row, f"{row:064x}") for row in rows]
        store.write(shard, pack(features[rows], "float32"), facts, torch.zeros(_POSITIONS * len(rows)))
    return features


@fault_kind(
    "feature caches with accounts or headers changed, or cut off", "refused by file; no other features are read"
)
def caches(run: Run) -> Iterator[Outcome]:
    """Not the numbers themselves: a shard has no hash of them."""
    folder = run.folder / "train"
    features = _written(folder)
    whole = {file: file.read_bytes() for file in sorted(folder.iterdir())}

    def one(rng: random.Random) -> Iterator[Outcome]:
        file = rng.choice(list(whole))
        content = whole[file]
        if file.suffix == ".safetensors":
            end = 8 + struct.unpack("<Q", content[:8])[0]
            choice = rng.random()
            if choice < 0.2:
                changed = content[: rng.randrange(len(content))]
            elif choice < 0.3:
                changed = whole[rng.choice([other for other in whole if other.suffix == ".safetensors"])]
            else:
                changed = changed_bytes(rng, content[:end]) + content[end:]
        else:
            changed = changed_bytes(rng, content)
        file.write_bytes(changed)
        yield _read(folder, features, f"{file.name}")
        file.write_bytes(content)

    yield from generated(run, 2000, one)


def _read(folder: Path, features: torch.Tensor, fault: str) -> Outcome:
    try:
        store = FeatureStore.open(folder)
        store.facts(range(store.meta.shards))
        found = store.features(_NAMES, torch.float32, "here")
    except DataError as error:
        return Outcome(str(folder) in str(error), fault, str(error)[:300])
    except Exception as error:
        return Outcome(False, fault, f"{type(error).__name__}: {error}"[:300])
    return Outcome(torch.equal(found, features), fault, "other features were read")
