"""Runs kinds of faults, each in a process of its own: one that kills its process was not survived, others go on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from tests.faults.registry import FaultKind, Outcome, Run

_SHOWN = 10
_LAST = 2000  # characters of what a kind printed


@dataclass
class Result:
    """What became of a kind."""

    kind: FaultKind
    injected: int = 0
    survived: int = 0
    seconds: float = 0.0
    lost: list[Outcome] = field(default_factory=list)  # the first that were not survived

    def add(self, outcome: Outcome) -> None:
        self.injected += outcome.count
        self.survived += outcome.count * outcome.survived
        if not outcome.survived and len(self.lost) < _SHOWN:
            self.lost.append(outcome)


def run_kind(kind: FaultKind, seed: int = 0, share: float = 1.0, limit: float = 1200.0) -> Result:
    """limit: seconds without an outcome after which a kind counts as hanging. Forks: what is imported stays so."""
    context = multiprocessing.get_context("fork")
    theirs, ours = context.Pipe(duplex=False)
    result, started = Result(kind), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        empty = Path(folder) / "kind"
        empty.mkdir()
        process = context.Process(target=_inject, args=(kind, Run(empty, seed, share), ours))
        process.start()
        ours.close()
        try:
            while theirs.poll(limit):
                result.add(theirs.recv())
            result.add(Outcome(False, "the last fault", f"hangs for more than {limit:.0f} seconds"))
            os.killpg(process.pid, signal.SIGKILL)  # with the runs that it started
        except EOFError:  # it is done, or dead
            pass
        process.join()
        if process.exitcode and not result.lost:
            name = signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"status {process.exitcode}"
            result.add(Outcome(False, "the last fault", f"ended the process: {name}"))
    result.seconds = time.perf_counter() - started
    return result


def _inject(kind: FaultKind, run: Run, pipe: Connection) -> None:
    """In the kind's process. What it prints goes to a file."""
    os.setsid()
    printed = run.folder.with_name("log")
    _print_to(printed)
    try:
        for outcome in kind.inject(run):
            pipe.send(outcome)
    except Exception as error:  # of the kind itself: the suite goes on and says so
        sys.stdout.flush()
        said = printed.read_text(encoding="utf-8", errors="replace")[-_LAST:]
        pipe.send(Outcome(False, "the kind itself", f"{type(error).__name__}: {error}"[:_LAST] + f"\n{said}"))
    finally:
        pipe.close()


def _print_to(file: Path) -> None:
    stream = file.open("w", buffering=1, encoding="utf-8", errors="replace")
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    sys.stdout = sys.stderr = stream
