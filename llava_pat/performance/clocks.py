"""Listeners of a step's phases: seconds and bytes of each. On a GPU by its events and its allocator."""

from __future__ import annotations

import time
from collections import defaultdict

import torch


class PhaseClock:
    """Seconds of each phase, of all steps since `reset`.

    On a CUDA device the boundaries are events in its queue: nothing waits until `seconds` is asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str | None, float | torch.cuda.Event]] = []

    def reset(self) -> None:
        self._marks.clear()

    def switch(self, phase: str | None) -> None:
        if self._on_gpu:
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record()
        else:
            stamp = time.perf_counter()
        self._marks.append((phase, stamp))

    def seconds(self) -> dict[str, float]:
        """By phase; they sum to the time between the first mark and the last, less what lay between steps."""
        if self._on_gpu:
            torch.cuda.synchronize()
        totals: dict[str, float] = defaultdict(float)
        for (phase, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if phase is not None:
                totals[phase] += begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
        return dict(totals)


class GpuMemory:
    """Peak bytes that tensors took in each phase of one step, by CUDA's allocator."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = defaultdict(int)
        self._current: str | None = None

    def switch(self, phase: str | None) -> None:
        if self._current is not None:
            self.peaks[self._current] = max(self.peaks[self._current], torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        self._current = phase
