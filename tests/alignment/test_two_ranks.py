"""Two processes are one: contrastive losses over the pairs of both ranks, value and gradient (two_ranks.py)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava_pat.alignment import sea

SCRIPT = Path(__file__).with_name("two_ranks.py")
ROOT = SCRIPT.parents[2]


def load_script():
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


here = load_script()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    out = tmp_path_factory.mktemp("two") / "results.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, str(SCRIPT), str(out)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(autouse=True)
def undo_draws(monkeypatch):
    monkeypatch.setattr(sea, "_draws", sea._draws)  # run_objective replaces it


@pytest.mark.parametrize("loss, sizes", here.CORE)
def test_core_is_one_process_in_fp64(two, loss, sizes):
    """Unequal numbers of pairs, and a rank without any."""
    one = here.run_core(loss, sizes, None)
    assert one["matrix"].abs().max() > 1e-2 and one["scale"].abs() > 1e-3
    for name, value in two[f"{loss} {sizes}"].items():
        torch.testing.assert_close(value, one[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", here.OBJECTIVES)
def test_sea_under_ddp_is_one_process(two, name):
    """Same words under other numbers and paddings; random choices fixed; fp32 sums in another order."""
    one = here.run_objective(name, None)
    assert one.keys() == two[name].keys()
    for key, value in two[name].items():
        assert torch.isfinite(value).all()
        torch.testing.assert_close(value, one[key], rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_counts_over_ranks(two):
    assert two["one"]["sum of count"] == here.WORDS < two["one"]["sum of candidates"] == 30
    assert two["mask"]["sum of count"] == two["mask"]["sum of candidates"] == 30
    assert two["across"]["sum of count"] == 30 and two["across"]["loss"] > 0.1
    for name, candidates in (("nothing", 30), ("empty", 0)):
        found = two[name]
        assert found["sum of count"] == found["loss"] == 0 and found["sum of candidates"] == candidates
        assert found["sum of skipped"] == 1
        assert not any(value.any() for key, value in found.items() if key.startswith(("projector", "objective")))
    assert two["one"]["sum of skipped"] == 0
