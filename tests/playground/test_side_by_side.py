"""The side-by-side table: mean and standard deviation by hand, and the command that it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from playground import side_by_side


def _metrics(cosine: float, seconds: float) -> dict:
    return {"patch_cosine_init": 0.1, "patch_cosine_final": cosine, "seconds": seconds}


def test_a_cell_is_mean_and_sample_deviation() -> None:
    table = side_by_side.table({"none": [_metrics(0.2, 60), _metrics(0.4, 80)], "pat": [_metrics(0.8, 61)]})
    row = next(line for line in table.splitlines() if line.startswith("| patch cosine"))
    assert row == "| patch cosine with its label | 0.100 ± 0.000 | 0.300 ± 0.141 | 0.800 ± 0.000 |"
    assert table.splitlines()[0] == "| | at initialisation | `none` | `pat` |"
    assert table.splitlines()[-1] == "| training, seconds | | 70 ± 14 | 61 ± 0 |"
    assert "hit@5" not in table  # not measured in these runs


def test_every_objective_and_seed_is_run_once_with_further_flags(tmp_path: Path, monkeypatch, capsys) -> None:
    commands = []

    def pretend(command: list[str], check: bool, cwd: Path) -> None:
        commands.append(command)
        folder = Path(command[command.index("--output_dir") + 1])
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(_metrics(0.5, 1)))

    monkeypatch.setattr(side_by_side.subprocess, "run", pretend)
    side_by_side.main(["--seeds", "0", "3", "--out", str(tmp_path), "--max_steps", "5"])
    chosen = {(c[c.index("--alignment") + 1], c[c.index("--seed") + 1]) for c in commands}
    assert chosen == {("none", "0"), ("none", "3"), ("pat", "0"), ("pat", "3")} and len(commands) == 4
    assert all(command[-2:] == ["--max_steps", "5"] for command in commands)
    assert all("llava" in Path(c[c.index("--output_dir") + 1]).name for c in commands)
    assert (tmp_path / "table.md").read_text() == capsys.readouterr().out


def test_a_failed_run_ends_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(side_by_side.subprocess.CalledProcessError):
        side_by_side.run("no_such_objective", 0, "scripts/configs/playground_pat.yaml", tmp_path, [])
