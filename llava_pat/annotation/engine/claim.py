"""Whose the output folder is: this run's, which goes on, or another's, which is refused."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from llava_pat.annotation.engine.shards import LEFT_OUT, REGIONS, write_whole
from llava_pat.annotation.engine.summary import SUMMARY
from llava_pat.types import DataError

SETTINGS, RUN = "annotation.yaml", "run.json"
_LOCK = ".lock"
REPORT = "report"
"""A folder: what llava_pat.annotation.report says about the run."""
_OURS = (SETTINGS, RUN, SUMMARY, REGIONS, LEFT_OUT, REPORT)


@contextmanager
def claimed(out: Path, settings: dict[str, Any], run: dict[str, Any], overwrite: bool = False) -> Iterator[None]:
    """Makes `out` the folder of this run, and nobody else's as long as it lasts.

    settings, run: what makes it this run; of them the device may change, and the records' place. DataError names what
    differs, and says it if the folder is in use or no folder of a run.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    foreign = sorted(path.name for path in out.iterdir() if path.name not in _OURS and not path.name.startswith("."))
    if foreign and not (out / RUN).is_file():
        raise DataError(f"{out} holds {foreign[0]!r} and no {RUN}: not one of our runs; give another folder")
    with (out / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{out}: another run is writing it; wait for it, or give another folder") from error
        if (out / RUN).is_file() and not overwrite:
            _compare(out, settings, run)
        else:
            _clear(out)
            write_whole(out / SETTINGS, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
            write_whole(out / RUN, json.dumps(run, indent=2, ensure_ascii=False) + "\n")
        yield


def _compare(out: Path, settings: dict[str, Any], run: dict[str, Any]) -> None:
    old_settings = yaml.safe_load((out / SETTINGS).read_text(encoding="utf-8"))
    old_run = json.loads((out / RUN).read_text(encoding="utf-8"))
    differ = []
    for free, old, new in (("device", old_settings, settings), ("records", old_run, run)):
        for key in sorted((old.keys() | new.keys()) - {free}):
            if old.get(key) != new.get(key):
                differ.append(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now")
    if differ:
        raise DataError(f"{out} holds another run ({'; '.join(differ)}); give another folder, or --overwrite")


def _clear(out: Path) -> None:
    """Also when there is no run.json: then a kill came between this and that, and what is left is the old run's."""
    for name in (RUN, SETTINGS, SUMMARY):
        (out / name).unlink(missing_ok=True)
    for name in (REGIONS, LEFT_OUT, REPORT):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
