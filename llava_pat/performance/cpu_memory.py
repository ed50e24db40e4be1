"""Bytes that tensors take on a CPU, phase by phase: every call of torch's allocator, as torch.profiler records them.

What oneDNN allocates for itself inside an operator is not torch's and is not here.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function

_MARK = "llava_pat phase: "
_MEMORY = "[memory]"  # the name that torch gives to an allocation in its trace
_CPU = 0


class TraceMarks:
    """Puts the phases into the trace of torch.profiler."""

    def __init__(self) -> None:
        self._open: record_function | None = None

    def switch(self, phase: str | None) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = None if phase is None else record_function(_MARK + phase).__enter__()


def cpu_peaks(step: Callable[[], None]) -> tuple[int, dict[str, int]]:
    """Runs `step`, which tells a TraceMarks its phases -> (peak, peaks by phase), in bytes above the start of the step.

    Raises RuntimeError when the trace holds no allocation: torch.profiler is then built without them.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    return peaks_of_trace(events)


def peaks_of_trace(events: list[dict]) -> tuple[int, dict[str, int]]:
    """As `cpu_peaks`, from the events of a trace in Chrome's format (`ts` and `dur` in microseconds)."""
    begins = [
        (event["ts"], event["name"].removeprefix(_MARK))
        for event in events
        if event.get("ph") == "X" and event["name"].startswith(_MARK)
    ]
    allocations = [
        (event["ts"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == _MEMORY and event["args"]["Device Type"] == _CPU
    ]
    if not allocations:
        raise RuntimeError("torch.profiler recorded no allocation; peak memory cannot be measured with this torch")
    live = peak = 0
    phase: str | None = None
    by_phase: dict[str, int] = defaultdict(int)
    # A boundary that coincides with an allocation comes first.
    timeline = [(time, 0, name, 0) for time, name in begins] + [(time, 1, "", size) for time, size in allocations]
    for _, kind, name, size in sorted(timeline):
        if kind == 0:
            phase = name
        live += size
        peak = max(peak, live)
        if phase is not None:
            by_phase[phase] = max(by_phase[phase], live)
    return peak, dict(by_phase)
