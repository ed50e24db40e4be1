"""Steps as processes of their own: one command, one log, killed with the study; several cells at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from playground.study.cells import ROOT, shown

CHILD = Path(__file__).with_name("child.py")
_NOISE = ("Loading weights", "warnings.warn", "Traceback")


class StepError(Exception):
    """A step that ended with an error: its last words, and where the rest is."""


class Workers:
    """Runs commands; `threads` each. Stopping kills what runs."""

    def __init__(self, logs: Path, threads: int) -> None:
        self.logs, self.threads = logs, threads
        self._running: set[subprocess.Popen] = set()
        self._locks: dict[Path, threading.Lock] = {}
        self._guard = threading.Lock()
        self._stopped = False

    def run(self, command: Sequence[str], log: str) -> float:
        """Run to the end, from the repository's root; what it says is appended to logs/LOG. Returns seconds.

        Raises StepError when it fails or the study was stopped.
        """
        file = self.logs / f"{log}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with file.open("a", encoding="utf-8") as out:
            out.write(f"$ {' '.join(command)}\n")
            out.flush()
            wrapped = [sys.executable, str(CHILD), str(os.getpid()), *command]
            with self._guard:
                if self._stopped:
                    raise StepError("stopped")
                process = subprocess.Popen(
                    wrapped, cwd=ROOT, env=self._environment(), stdout=out, stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
            status = process.wait()
            with self._guard:
                self._running.discard(process)
        if status:
            raise StepError(f"{_last_words(file, status)} (log: {shown(file)})")
        return time.perf_counter() - started

    @contextmanager
    def alone_in(self, folder: Path):
        """Only one cell at a time in a folder: cells of several settings may share a stage 1."""
        with self._guard:
            lock = self._locks.setdefault(folder, threading.Lock())
        with lock:
            yield

    def stop(self) -> None:
        """Kill what runs (the processes of each step with it); nothing starts any more."""
        with self._guard:
            self._stopped = True
            for process in self._running:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return os.environ | threads | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}


def share_cores(jobs: int) -> tuple[int, int]:
    """(jobs, threads each): never more jobs than cores, and the cores divided among them.

    Two processes of two threads on two cores take several times as long as one after the other; of one thread each they
    do not.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = max(1, min(jobs, cores))
    return jobs, max(1, cores // jobs)


def _last_words(file: Path, status: int) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line and not any(noise in line for noise in _NOISE)]
    return f"exit status {status}: {said[-1][-400:] if said else 'no output'}"
