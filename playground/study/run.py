"""Objectives x seeds (x settings) through both stages and their evaluation; what is finished is not done again.

    bash scripts/compare.sh --split test                    # none, pat, sea, pat+sea; seeds 0 to 4: the study itself
    bash scripts/compare.sh --objectives none pat --seeds 0 --jobs 2                # a trial, on the split val
    python -m playground.study sweep --over alignment_weight=1,5,20 --objectives pat --seeds 0

Overrides are `[OBJECTIVE:][stage1.|stage2.]FLAG=VALUE`; `sft_share=0.25` trains stage 2 on a quarter of its data.
A cell that fails is named, and the others go on; the same command again goes on where it stopped, kill -9 included.
"""

from __future__ import annotations

import argparse
import fcntl
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from llava_pat.types import DataError
from playground.study.cells import OBJECTIVES, ROOT, SFT_SHARE, Cell, Study, cells_of, settings_over, shown
from playground.study.files import read_json, write_json
from playground.study.inputs import claim
from playground.study.overview import overview
from playground.study.pairing import check_configs
from playground.study.steps import Steps, report_command
from playground.study.work import StepError, Workers, share_cores
from playground.world import SPLITS

OUT = ROOT / "checkpoints" / "study"


def parser(sweep: bool) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        f"study {'sweep' if sweep else 'run'}", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = result.add_argument
    add("--objectives", nargs="+", default=list(OBJECTIVES), help=f"default: {' '.join(OBJECTIVES)}; or dotted paths")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    add("--split", choices=[name for name in SPLITS if name != "train"], default="val",
        help="what finished runs are measured on (default: val, on which settings are chosen)")  # fmt: skip
    add("--stages", type=int, choices=(1, 2), default=2, help="1: stage 1 alone, and its measures")
    add("--jobs", type=int, default=2, help="cells at a time (default: 2); the cores are divided among them")
    add("--out", type=Path, default=OUT, help=f"default: {shown(OUT)}")
    add("--data", type=Path, default=ROOT / "playground" / "data")
    add("--family", default="playground", help="configs: scripts/configs/FAMILY_*.yaml")
    add("--scenes", type=int, help="ask about the first N scenes only (quick looks; default: all)")
    add("--set", dest="fixed", nargs="+", action="extend", default=[], metavar="FLAG=VALUE",
        help=f"overrides of every run; also {SFT_SHARE}=SHARE")  # fmt: skip
    add("--over", nargs="+", action="extend", default=[], metavar="FLAG=V1,V2", required=sweep,
        help="every combination of these values is a setting of its own")  # fmt: skip
    add("--no_alignment", action="store_true", help="without the alignment report's metrics of each cell")
    return result


def main(argv: Sequence[str], sweep: bool = False) -> int:
    """0: every cell is finished; 1: some failed; 2: wrong command line or inputs."""
    arguments = parser(sweep).parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(arguments)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def run(arguments: argparse.Namespace) -> int:
    """Plan, check, work, compare."""
    jobs, threads = share_cores(arguments.jobs)
    study = Study(arguments.out.resolve(), arguments.data.resolve(), arguments.family)
    settings = settings_over(arguments.fixed, arguments.over)
    cells = cells_of(study, arguments.objectives, arguments.seeds, settings)
    check_configs(cells)
    study.out.mkdir(parents=True, exist_ok=True)
    with _only_study(study.out):
        found = claim(study)
        workers = Workers(study.out / "logs", threads)
        steps = Steps(arguments.split, arguments.scenes, arguments.stages, not arguments.no_alignment, workers, found)
        say(f"{len(cells)} cells, {jobs} at a time with {threads} threads each; split {arguments.split}; "
            f"results and logs in {shown(study.out)}")  # fmt: skip
        failed = work(cells, steps, workers, jobs)
        if not arguments.no_alignment:
            failed |= illustrate([cell for cell in cells if cell.name not in failed], steps, jobs * threads)
    print(f"\n{overview(study.out, arguments.split)}", flush=True)
    for name, words in failed.items():
        say(f"FAILED {name}: {words}")
    return 1 if failed else 0


def work(cells: Sequence[Cell], steps: Steps, workers: Workers, jobs: int) -> dict[str, str]:
    """All cells; returns what failed, and how. A stop from outside ends the running steps too."""
    failed: dict[str, str] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        coming = {pool.submit(steps.finish, cell, say): cell for cell in cells}
        for number, done in enumerate(as_completed(coming), start=1):
            name = coming[done].name
            try:
                words = done.result()
            except (StepError, DataError, OSError) as error:
                failed[name] = words = str(error)
                words = f"FAILED {words}"
            say(f"[{number}/{len(cells)}] {name}: {words}")
    finally:
        workers.stop()
        pool.shutdown(wait=True, cancel_futures=True)
    return failed


def illustrate(cells: Sequence[Cell], steps: Steps, threads: int) -> dict[str, str]:
    """The alignment report with pictures and controls: every objective and setting at the first seed, after stage 1."""
    seed = min((cell.seed for cell in cells), default=None)
    folders = list(dict.fromkeys(cell.stage1 for cell in cells if cell.seed == seed))
    if not folders:
        return {}
    out = cells[0].study.out / "alignment" / steps.split / "report"
    file = out / "checkpoints.json"
    page = out / "report.html"
    named = list(map(str, folders))
    if not (page.is_file() and file.is_file() and read_json(file) == named):
        command = report_command(folders, cells[0].study.data, steps.split, out)
        workers = Workers(steps.workers.logs, threads)
        try:
            seconds = workers.run(command, f"alignment-report-{steps.split}")
        except StepError as error:
            return {"alignment report": str(error)}
        finally:
            workers.stop()
        write_json(file, named)
        say(f"alignment report of {len(folders)} runs done in {seconds:.0f} s")
    say(f"alignment report: {shown(page)}")
    return {}


def say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


class _only_study:
    """A second study in the same folder would train the same runs; it is refused."""

    def __init__(self, out: Path) -> None:
        self.file = (out / ".lock").open("w")

    def __enter__(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            place = Path(self.file.name).parent
            raise DataError(f"another study is at work in {place}: wait, or choose another --out") from error

    def __exit__(self, *_: object) -> None:
        self.file.close()
