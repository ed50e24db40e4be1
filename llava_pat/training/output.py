"""The output folder of a run: refused when another run's, resumed when this one's, written at the end."""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llava_pat.data.check.manifest import SeenImages
from llava_pat.data.kept_folder import read_json, write_json
from llava_pat.data.yaml_file import BadYaml, read_yaml_file
from llava_pat.models.checkpoint import PROJECTOR_BIN
from llava_pat.training.arguments import PretrainArguments
from llava_pat.training.finetune_arguments import FinetuneArguments
from llava_pat.training.flags import ConfigError
from llava_pat.training.run_config import write_config
from llava_pat.types import DataError

METRICS = "metrics.json"
INITIAL = "metrics_init.json"
DATA = "data_manifest.json"
IMAGES = "data_images.json"
CONFIG = "config.yaml"

# What a folder has that must not be written over.
_OF_A_MODEL = (PROJECTOR_BIN, "config.json", "adapter_config.json")

_PROBE = 1 << 16  # bytes

# May change between the start of a run and its resumption without making it another run.
_FREE = {
    "report_to", "run_name", "logging_steps", "logging_strategy", "save_total_limit", "save_steps", "save_strategy",
    "ddp_timeout", "dataloader_num_workers", "eval_steps", "eval_strategy", "per_device_eval_batch_size", "output_dir",
    "skip_bad_steps", "max_loss_spike", "dump_bad_steps",
}  # fmt: skip

# Settings that came after runs had been written, and what those runs did: they stay resumable.
_SINCE = {"missing": "error", "max_missing": 0.01, "feature_cache_dtype": "bfloat16", "padding_free": False}


def claim(arguments: PretrainArguments | FinetuneArguments, folder: Path) -> bool:
    """Whether `folder` holds this run already; every rank looks.

    ConfigError when the folder holds a run with other settings (the differing ones are named) or files that are no run.
    """
    theirs = folder / CONFIG
    held = [name for name in _OF_A_MODEL if (folder / name).is_file()]
    if held and not theirs.is_file():
        raise ConfigError(
            f"{folder} holds a {held[0]} but no {CONFIG}: not one of our runs. Choose another --output_dir"
        )
    if not theirs.is_file():
        return False
    with tempfile.TemporaryDirectory() as scratch:  # every rank comes here: not into the folder that they share
        ours = Path(scratch) / CONFIG
        write_config(arguments, ours)
        old, new = _settings(theirs), _settings(ours)
    old = {**_SINCE, **old}
    differ = sorted(key for key in (old.keys() | new.keys()) - _FREE if old.get(key) != new.get(key))
    if differ:
        shown = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differ[:5])
        raise ConfigError(f"{folder} holds another run ({shown}). Delete the folder or choose another --output_dir")
    return True


def refuse_unwritable(folder: Path) -> None:
    """ConfigError if nothing can be written into `folder`, or into what will hold it; leaves nothing behind.

    A read-only or full disk is found before models are loaded and every record is looked at.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(_PROBE))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise ConfigError(
            f"--output_dir {folder}: nothing can be written into {there} ({error.strerror}). Mend its rights, make "
            "room, or choose another --output_dir"
        ) from error


def _settings(config: Path) -> dict[str, Any]:
    try:
        settings = read_yaml_file(config)
    except BadYaml as error:
        raise ConfigError(f"{config}: {error}. Is it a run of ours? Choose another --output_dir") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{config}: holds no settings of a run. Choose another --output_dir")
    return settings


def step_of(checkpoint: str) -> int:
    """The optimizer steps that a `.../checkpoint-N` has behind it."""
    return int(Path(checkpoint).name.rpartition("-")[2])


def finished(folder: Path) -> dict[str, Any] | None:
    """The metrics of a run that is complete, else None."""
    metrics = folder / METRICS
    return json.loads(metrics.read_text()) if metrics.is_file() and (folder / PROJECTOR_BIN).is_file() else None


def remember_initial(folder: Path, measured: Mapping[str, float]) -> None:
    """Keep the measures at initialisation for a resumed run, which no longer has that projector."""
    write_json(folder / INITIAL, measured, indent=2)


def recall_initial(folder: Path) -> dict[str, float] | None:
    path = folder / INITIAL
    return json.loads(path.read_text()) if path.is_file() else None


def remember_data(folder: Path, manifests: Mapping[str, str | None]) -> None:
    """Keep which data a run begins with. manifests: by data set (data/check/manifest.py)."""
    write_json(folder / DATA, manifests, indent=2)


def remember_images(folder: Path, seen: SeenImages) -> None:
    """Keep which image files a run begins with, for one that may lose some of them (--missing skip or blank)."""
    write_json(folder / IMAGES, {"bytes": seen.bytes, "renamed": seen.renamed})


def recall_images(folder: Path) -> SeenImages | None:
    """The images that a run began with; None where it does not go on without those that it lost."""
    path = folder / IMAGES
    if not path.is_file():
        return None
    way_out = f"without it {folder} cannot go on: choose another --output_dir"
    seen = read_json(path, way_out)
    if not isinstance(seen, dict) or [type(seen.get(key)) for key in ("bytes", "renamed")] != [dict, dict]:
        raise DataError(f"{path}: holds no images of a run; {way_out}")
    return SeenImages(seen["bytes"], seen["renamed"])


def refuse_other_data(
    folder: Path, manifests: Mapping[str, str | None], lost: Mapping[str, Sequence[str]] | None = None
) -> None:
    """ConfigError when a run would go on with other data than it began with; the files' names may be the same.

    lost: by data set, images that the records name and that are missing or broken now.
    """
    path = folder / DATA
    then = json.loads(path.read_text()) if path.is_file() else dict(manifests)
    for name, now in manifests.items():
        if then[name] != now:
            gone = (lost or {}).get(name)
            raise ConfigError(
                f"{folder}: the {name} data are not those that this run began with: manifest {then[name]} then, {now} "
                "now. Records, regions or images (their number or their bytes) have changed: put them back, and the "
                "same command goes on, or choose another --output_dir"
                + (f". Images that are missing or broken now: {', '.join(gone)}" if gone else "")
            )


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    write_json(folder / METRICS, metrics, indent=2)


def peak_memory_bytes() -> int:
    """Of this process: the accelerator's peak allocation where there is one, else the peak resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
