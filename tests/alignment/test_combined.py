"""Several objectives in one run: what the flags mean, what is built, and errors that help."""

from __future__ import annotations

import sys

import pytest

from llava_pat.alignment import CombinedObjective, Part, build_planned, plan_objectives, requirements
from llava_pat.alignment.pat import PatchAlignedTraining

THEIRS = """
from __future__ import annotations
from llava_pat.alignment.base import AlignmentObjective


class Pull(AlignmentObjective):
    pass


class Old(AlignmentObjective):
    def count(self, regions):
        return None
"""


def plan(alignment, arguments=None, weight=5.0, schedule=None):
    return plan_objectives(alignment, arguments or {}, weight, schedule)


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    (tmp_path / "their_pull.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "their_pull:Pull"
    sys.modules.pop("their_pull", None)


def test_one_objective_has_no_name():
    assert plan("pat", {"unit": "patch"}) == {"": Part("pat", {"unit": "patch"}, 5.0)}
    built = build_planned(plan("pat", schedule="constant"), hidden_size=4, vision_width=3)
    assert type(built) is PatchAlignedTraining and built.schedule == "constant" and built.parts == {"": built}


def test_each_has_its_own_weight_schedule_and_keywords(theirs):
    arguments = {"sea": {"weight": 1, "schedule": "linear", "window": 4}, "Pull": {"weight": 0.0}}
    planned = plan(f"pat+sea+{theirs}", arguments, schedule="constant")
    assert planned == {
        "pat": Part("pat", {"schedule": "constant"}, 5.0),
        "sea": Part("sea", {"window": 4, "schedule": "linear"}, 1.0),
        "Pull": Part(theirs, {"schedule": "constant"}, 0.0),
    }


def test_without_a_flag_each_keeps_its_own_schedule():
    built = build_planned(plan("pat+sea"), hidden_size=4, vision_width=3)
    assert type(built) is CombinedObjective
    assert {name: part.schedule for name, part in built.parts.items()} == {"pat": "linear", "sea": "constant"}
    assert set(built.state_dict()) == {"parts.sea.log_scale"}


def test_requirements_are_all_of_theirs():
    assert requirements(plan("pat+sea")) == {"regions", "patch_words"}
    assert requirements(plan("pat+sea", {"sea": {"labels": "regions"}})) == {"regions"}
    assert requirements(plan("none")) == frozenset()
    built = build_planned(plan("pat+sea"), hidden_size=4, vision_width=3)
    assert built.requires == {"regions", "patch_words"}
    built.check_requirements({"regions", "patch_words"})
    with pytest.raises(ValueError, match="objective sea needs patch_words, and the run provides regions"):
        built.check_requirements({"regions"})


@pytest.mark.parametrize(
    "alignment, arguments, message",
    [
        ("pat+", {}, "nothing on one side of a"),
        ("+", {}, "nothing on one side of a"),
        ("pat+pat", {}, "names pat twice"),
        ("pat+none", {}, "none in 'pat.none' adds nothing; leave it out"),
        ("pat+see", {}, "no alignment objective 'see'; there are none, pat, sea"),
        ("pat+sea", {"unit": "patch"}, "alignment_args has unit; .* keys are their names, pat and sea"),
        ("pat+sea", {"pat": "patch"}, "alignment_args: pat is 'patch'; expected a mapping of keywords"),
        ("pat+sea", {"sea": {"unit": "patch"}}, "alignment_args: sea: sea has no keyword 'unit'; .* window=2"),
        ("pat+sea", {"sea": {"weight": -1}}, "alignment_args: sea: weight is -1; expected a finite number >= 0"),
        ("pat+sea", {"sea": {"weight": "1"}}, "weight is '1'"),
        ("pat+sea", {"sea": {"weight": True}}, "weight is True"),
        ("pat", {"weight": 2.0}, "pat has no keyword 'weight'"),
        ("pat", {"schedule": "linear"}, "give it as --alignment_schedule"),
    ],
)
def test_what_makes_no_sense_is_refused(alignment, arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(alignment, arguments)


def test_values_are_checked_when_built():
    with pytest.raises(ValueError, match="schedule of alignment objective 'sea' is 'cosine'"):
        build_planned(plan("pat+sea", {"sea": {"schedule": "cosine"}}), hidden_size=4, vision_width=3)
    with pytest.raises(ValueError, match="labels is 'boxes'; choose one of 'regions', 'clip'"):
        requirements(plan("sea", {"labels": "boxes"}))


def test_a_count_of_another_signature_is_refused(theirs):
    with pytest.raises(TypeError, match=r"count\(self, regions, patch_words\) is what is called"):
        plan("their_pull:Old")
