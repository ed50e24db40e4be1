"""The worked example of docs/objectives.md runs as it stands there."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch

from llava_pat.alignment import available, build_objective
from llava_pat.types import AlignmentInputs, PatchRegions

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The code block, written where its first line says; yields the dotted path that --alignment gets."""
    block = re.search(r"```python\n(# (\S+)\.py\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / f"{block[2]}.py"
    path.parent.mkdir(parents=True)
    path.write_text(block[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    dotted = block[2].replace("/", ".")
    yield dotted
    for name in (dotted, dotted.partition(".")[0]):
        sys.modules.pop(name, None)


def inputs(regions: PatchRegions | None) -> AlignmentInputs:
    embeds = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]).requires_grad_()
    table = torch.tensor([[0.0, 0.0], [0.0, math.e]])
    ids = torch.ones(1, 1, dtype=torch.int64)
    return AlignmentInputs(embeds.detach(), embeds, lambda ids: table[ids], ids, ids.bool(), regions)


def test_the_example_builds_by_dotted_path_and_computes_what_it_says(example):
    objective = build_objective(example, hidden_size=2, vision_width=2, offset=0.5)
    ids = torch.ones(1, 1, dtype=torch.int64)
    regions = PatchRegions(torch.tensor([[0.7, 0.0]]), torch.tensor([0]), ids, ids.bool())
    loss = objective(inputs(regions))
    loss.total.backward()
    gap = math.log(5) - 1
    assert loss.total.item() == pytest.approx((gap - 0.5) ** 2, abs=1e-6)
    assert objective.count(regions, None) == loss.count == 1
    assert objective.offset.grad.item() == pytest.approx(-2 * (gap - 0.5), abs=1e-6)


def test_the_example_keeps_the_contract_on_an_empty_batch(example):
    objective = build_objective(example)
    batch = inputs(None)
    loss = objective(batch)
    loss.total.backward()
    assert loss.total.item() == 0.0 == loss.count.item()
    assert torch.equal(batch.patch_embeds.grad, torch.zeros(1, 2, 2)) and objective.offset.grad.item() == 0.0


def test_the_page_names_every_objective():
    headings = re.findall(r"^### `(\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(headings) == set(available())
