"""The example of docs/analysis.md runs as it stands."""

from __future__ import annotations

from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "analysis.md"


def test_example_runs(capsys):
    torch.manual_seed(0)
    text = PAGE.read_text(encoding="utf-8")
    exec(text.split("```python\n")[1].split("```")[0], {})
    alignment, entropies, explained = capsys.readouterr().out.splitlines()
    assert alignment == "1.0 1.0" and entropies.count("tensor") == 2 and explained.startswith("tensor(0.9")
