"""Kills an annotation run by SIGKILL at random moments, lets it go on each time, and compares it with one that ran
through.

    python -m tests.annotation.engine.killing --engine ray --kills 20        # OMP_NUM_THREADS=1; minutes
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from llava_pat.annotation import annotate
from tests.annotation.engine.world import SETTINGS, read_tree, write_world

_IMAGES, _SHARD = 240, 6


def kill_and_resume(folder: Path, engine: str, kills: int, seed: int = 0) -> dict[str, int]:
    """Kills as often as told: most up to a tenth of a second after some more shards, some right after the start.

    A run that comes to its end before is begun anew. Returns how many kills met a run, how many of those left some
    shards and lacked some, and how many runs ended. AssertionError if what is there after a kill, or in the end, is not
    what an unhurt run leaves.
    """
    records, images = write_world(folder / "world", _IMAGES)
    out, rng = folder / "out", random.Random(seed)
    start = [str(records), str(images)]
    settings = ["--shard_size", str(_SHARD), "--set", *SETTINGS, "batch_size=4", "detector.seconds=0.01"]
    assert _run([*start, str(folder / "whole"), *settings]) == 0
    whole = read_tree(folder / "whole")
    command = [*start, str(out), *settings, "--engine", engine]
    counts = {"kills": 0, "in the middle": 0, "ends": 0}
    while counts["kills"] < kills:
        before = _shards(out)
        more = rng.randrange(6)  # 0: at once
        status = _run(command, lambda: _shards(out) >= before + more, rng.uniform(0, 0.1 if more else 1))  # noqa: B023
        if status == 0:
            counts["ends"] += 1
            assert read_tree(out) == whole
            shutil.rmtree(out)
            continue
        assert status == -signal.SIGKILL
        counts["kills"] += 1
        counts["in the middle"] += 0 < _shards(out) < _IMAGES // _SHARD
        left = {name: text for name, text in read_tree(out).items() if name.startswith("regions/")}
        assert all(whole[name] == text for name, text in left.items()), "a shard that is there is whole"
    assert _run(command) == 0
    assert read_tree(out) == whole
    return counts


def _shards(out: Path) -> int:
    return len(list(out.glob("regions/part-*")))


def _run(command: list[str], ripe: Callable[[], bool] = lambda: False, delay: float = 0) -> int:
    """Exit status of the command in a process of its own, which is killed `delay` seconds after `ripe` is true."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(command,))
    process.start()
    while process.is_alive() and not ripe():
        process.join(0.01)
    process.join(delay)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode


def _child(command: list[str]) -> None:
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
        sys.exit(annotate.main(command))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(kill_and_resume(Path(scratch), options.engine, options.kills, options.seed))
