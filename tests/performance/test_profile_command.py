"""The command, on shapes that run in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_pat import profile
from llava_pat.performance.phases import PHASES


def test_a_step_that_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "profile.json"
    flags = ["--shape", "playground", "--batch_size", "2", "--steps", "2", "--alignment", "pat+sea"]
    assert profile.main([*flags, "--device", "cpu", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    measured = found["measured"]
    assert set(measured["seconds"]) == set(PHASES)
    assert sum(measured["seconds"].values()) == pytest.approx(sum(measured["step_seconds"]) / 2)
    assert sum(found["flops"]["by_phase"].values()) == found["flops"]["total"]
    assert max(measured["peak_by_phase"].values()) == measured["peak_bytes"]
    assert measured["utilisation"] > 0 and measured["loading"]["images"] == 2
    text = capsys.readouterr().out
    assert "pat+sea" in text and all(phase in text for phase in PHASES)


def test_7b_on_a_cpu_is_counted_and_not_run(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert profile.main(["--shape", "llava-v1.5-7b", "--batch_size", "1", "--checkpointing"]) == 0
    text = capsys.readouterr().out
    assert "language model, backward" in text and "seconds" not in text


def test_an_unknown_objective_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main(["--shape", "playground", "--alignment", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
