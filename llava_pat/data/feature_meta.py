"""What the features of a folder were made from: a run reads them only where all of it is the run's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from llava_pat.data.feature_dtypes import bytes_of_image

FORMAT = 1
_SHARD_BYTES, _SHARD_ROWS = 256 << 20, 512
"""A shard has at most so many of either: it is in memory while it is made, and lost when the run is killed."""


@dataclass(frozen=True)
class FeatureAccount:
    """How features come from images, and how they are stored."""

    tower: str  # as it was named
    tower_sha256: str  # of the weights and settings that are used (models/fingerprint.py)
    layer: int  # how many layers were run
    select_feature: str
    geometry: Mapping[str, Any]  # how an image became pixels
    patch_size: int
    positions: int  # N
    width: int  # Dv
    precision: str  # that the tower computed in
    dtype: str  # that features are stored in

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to read features that another one made, each thing by its own name."""
        values = asdict(self)
        del values["tower"]  # may be spelt in several ways; its hash is compared
        geometry = values.pop("geometry")
        return values | {f"geometry.{key}": value for key, value in geometry.items()}

    @property
    def bytes_of_image(self) -> int:
        return bytes_of_image(self.positions, self.width, self.dtype)


@dataclass(frozen=True)
class FeatureMeta:
    """A folder: how its features come from images, and from which."""

    account: FeatureAccount
    image_folder: str
    images: int
    names_sha256: str
    rows_per_shard: int
    format: int = FORMAT

    @classmethod
    def of(cls, account: FeatureAccount, image_folder: str, names: Sequence[str]) -> FeatureMeta:
        rows = max(1, min(_SHARD_ROWS, _SHARD_BYTES // account.bytes_of_image))
        return cls(account, image_folder, len(names), names_sha256(names), rows)

    @classmethod
    def from_json(cls, raw: Any) -> FeatureMeta:
        """ValueError for what is no account of this format."""
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}, which this version reads")
        for kind, values in ((cls, raw), (FeatureAccount, raw.get("account"))):
            expected = {field.name for field in fields(kind)}
            if not isinstance(values, dict) or values.keys() != expected:
                raise ValueError(f"expected {sorted(expected)} in it, got {values}")
        return cls(**{**raw, "account": FeatureAccount(**raw["account"])})

    @property
    def shards(self) -> int:
        return -(-self.images // self.rows_per_shard)

    @property
    def sha256(self) -> str:
        """Says which shards belong to this folder."""
        what = [self.account.identity(), self.images, self.names_sha256, self.rows_per_shard, self.format]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def names_sha256(names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()
