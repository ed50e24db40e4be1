"""What a run leaves that must not depend on how often it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path

_CLOCKS = ("samples_per_second", "runtime", "steps_per_second", "seconds", "peak_memory_bytes", "resumed_from_step")


def outcome(out: Path) -> dict[str, object]:
    """Weights to the byte; log lines and measures without clocks. Held-out lines are in the log as well."""
    weights = [*out.glob("*.safetensors"), *out.glob("*.bin")]
    state = json.loads((out / "trainer_state.json").read_text())
    history = [_timeless(line) for line in state["log_history"]]
    lines = [line for line in history if any(name.endswith("caption_loss") for name in line)]
    return {
        "steps": state["global_step"],
        "log": lines,
        "metrics": _timeless(json.loads((out / "metrics.json").read_text())),
    } | {file.name: file.read_bytes() for file in weights}


def assert_same(ours: dict[str, object], theirs: dict[str, object]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value == theirs[name], (
            f"{name} differs" if isinstance(value, bytes) else f"{value} is not {theirs[name]}"
        )


def _timeless(entries: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in entries.items() if not name.endswith(_CLOCKS)}
