"""Objectives by name and by import path, and errors that say what would have been right."""

from __future__ import annotations

import sys

import pytest

from llava_pat.alignment import accepted_keywords, available, build_objective, find_objective
from llava_pat.alignment.none import NoAlignment
from llava_pat.alignment.pat import PatchAlignedTraining

MODULE = '''
from __future__ import annotations
import torch
from torch import nn
from llava_pat.alignment.base import AlignmentObjective
from llava_pat.alignment.pat import PatchAlignedTraining
from llava_pat.types import AlignmentLoss

class Pull(AlignmentObjective):
    def __init__(self, *, hidden_size: int, heads: int = 2, rate: float = 0.5, note: str | None = None) -> None:
        super().__init__()
        self.{attribute} = nn.Linear(hidden_size, heads)
        self.rate, self.note = rate, note

    def forward(self, inputs):
        return AlignmentLoss(self.anchor(inputs), torch.zeros(()))
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write_module(name: str, text: str) -> None:
        path = tmp_path / (name.replace(".", "/") + ".py")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)

    yield write_module
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_names_are_the_files_that_define_an_objective():
    assert {"none", "pat"} <= set(available())
    assert not {"base", "pooling", "registry"} & set(available())


def test_built_by_name_with_keywords():
    built = build_objective("pat", unit="patch", min_coverage=1, schedule="constant")
    assert type(built) is PatchAlignedTraining and (built.unit, built.min_coverage) == ("patch", 1)
    assert type(build_objective("none")) is NoAlignment


def test_widths_reach_only_a_constructor_that_names_them(write):
    write("their_package.pull", MODULE.format(attribute="head"))
    built = build_objective("their_package.pull", hidden_size=5, vision_width=3, heads=4)
    assert built.head.weight.shape == (4, 5)
    build_objective("pat", hidden_size=5, vision_width=3)
    with pytest.raises(ValueError, match="'their_package.pull' needs hidden_size"):
        build_objective("their_package.pull")


def test_dotted_path_with_a_class(write):
    write("lone", MODULE.format(attribute="head"))
    assert find_objective("lone:Pull").__name__ == "Pull"
    assert find_objective("llava_pat.alignment.pat:PatchAlignedTraining") is PatchAlignedTraining
    with pytest.raises(ValueError, match="lone defines no AlignmentObjective 'Push'; it defines Pull"):
        find_objective("lone:Push")


def test_two_objectives_in_one_module_need_a_class(write):
    write("pair.both", MODULE.format(attribute="head") + "\nclass Push(Pull):\n    pass\n")
    with pytest.raises(ValueError, match="it defines Pull, Push; say pair.both:Class"):
        find_objective("pair.both")
    assert find_objective("pair.both:Push").__name__ == "Push"


def test_unknown_name_lists_what_exists():
    with pytest.raises(ValueError, match=r"no alignment objective 'patt'; there are .*none, pat"):
        build_objective("patt")


def test_helper_files_are_not_objectives():
    with pytest.raises(ValueError, match="no alignment objective 'base'"):
        build_objective("base")


def test_missing_module_and_broken_module_are_told_apart(write):
    with pytest.raises(ValueError, match="no module 'no_such_package'.*PYTHONPATH"):
        find_objective("no_such_package.thing")
    write("broken.thing", "import a_library_that_is_not_here\n")
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_here"):
        find_objective("broken.thing")


def test_unknown_keyword_lists_the_accepted_ones_with_defaults():
    with pytest.raises(ValueError, match="know min_cover; its keywords: unit='region', .*min_coverage=0.0"):
        build_objective("pat", min_cover=0.5)
    assert accepted_keywords(NoAlignment) == {"schedule": "linear"}


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"rate": "1e-3"}, "rate of .* is '1e-3'; it must be float .YAML reads 1e-3 as text"),
        ({"heads": 2.0}, "heads of .* is 2.0; it must be int"),
        ({"heads": True}, "heads of .* is True; it must be int"),
        ({"note": 3}, r"note of .* is 3; it must be str \| None"),
    ],
)
def test_values_of_another_type_are_refused(write, keywords, message):
    write("typed", MODULE.format(attribute="head"))
    with pytest.raises(ValueError, match=message):
        build_objective("typed:Pull", hidden_size=2, **keywords)


def test_fitting_values_pass(write):
    write("typed", MODULE.format(attribute="head"))
    built = build_objective("typed:Pull", hidden_size=2, rate=1, note="x")
    assert (built.rate, built.note) == (1, "x")
    assert build_objective("typed:Pull", hidden_size=2, note=None).note is None


def test_literal_is_checked_before_the_constructor():
    with pytest.raises(ValueError, match=r"unit of .*'pat' is 'pixel'; it must be Literal\['region', 'patch'\]"):
        build_objective("pat", unit="pixel")


def test_a_parameter_without_a_dimension_is_refused(write):
    """DeepSpeed cannot broadcast one (tests/training/test_distributed.py would show it)."""
    text = MODULE.format(attribute="head").replace("nn.Linear(hidden_size, heads)", "nn.Parameter(torch.tensor(1.0))")
    write("scalar", text)
    with pytest.raises(ValueError, match=r"'scalar:Pull' has head without a dimension.*\(1,\)"):
        build_objective("scalar:Pull", hidden_size=2)


def test_a_parameter_named_like_the_projector_is_refused(write):
    write("clash", MODULE.format(attribute="mm_projector"))
    with pytest.raises(ValueError, match="has mm_projector.weight, mm_projector.bias: .*rename it"):
        build_objective("clash:Pull", hidden_size=2)


@pytest.mark.parametrize(
    "signature, message",
    [("self, **rest", r"takes \*\*rest"), ("self, rate=1.0", "'rate'"), ("self, *, rate: float", "'rate'")],
)
def test_constructors_that_break_the_signature_rule_are_refused(write, signature, message):
    write(
        "loose",
        "from llava_pat.alignment.base import AlignmentObjective\n"
        f"class Loose(AlignmentObjective):\n    def __init__({signature}):\n        super().__init__()\n",
    )
    with pytest.raises(TypeError, match=message):
        build_objective("loose:Loose")
