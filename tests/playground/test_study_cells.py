"""Cells: overrides, folders and command lines; pairs that are pairs."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llava_pat.data.dataset import LlavaDataset
from llava_pat.training.arguments import parse_pretrain
from llava_pat.training.finetune_arguments import parse_finetune
from llava_pat.types import DataError
from playground.study import pairing
from playground.study.cells import (
    CONFIGS,
    OBJECTIVES,
    ROOT,
    Cell,
    Override,
    Study,
    cells_of,
    read_override,
    settings_over,
)
from playground.study.steps import report_command
from playground.study.subset import write_subset


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path / "study", ROOT / "playground" / "data")


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OUTPUT_DIR", raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alignment_weight=10", Override("stage1", "alignment_weight", "10")),
        ("stage2.alignment=pat", Override("stage2", "alignment", "pat")),
        ("sft_share=0.25", Override("stage2", "sft_share", "0.25")),
        ("freeze_backbone=True", Override("stage2", "freeze_backbone", "True")),
        ("stage2.learning_rate=1e-4", Override("stage2", "learning_rate", "1e-4")),
        ("pat+sea:alignment_weight=2", Override("stage1", "alignment_weight", "2", "pat+sea")),
        ("pat:regions_path=a/regions", Override("stage1", "regions_path", "a/regions", "pat")),
        ('alignment_args={"unit": "a=b"}', Override("stage1", "alignment_args", '{"unit": "a=b"}')),
    ],
)
def test_overrides(text, expected):
    assert read_override(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate=1e-4", "both stages have --learning_rate: write stage1.learning_rate or stage2.learning_rate"),
        ("no_such_flag=1", "neither stage has a flag --no_such_flag"),
        ("stage1.freeze_backbone=True", "stage1 or stage2 and one of its flags"),
        ("stage3.seed=1", "stage1 or stage2 and one of its flags"),
        ("alignment_weight", "expected FLAG=VALUE"),
        ("alignment_weight=", "expected FLAG=VALUE"),
    ],
)
def test_overrides_that_mean_nothing(text, words):
    with pytest.raises(DataError, match=words):
        read_override(text)


def test_settings_are_all_combinations():
    settings = settings_over(["stage2.max_steps=5"], ["alignment_weight=1,5", 'alignment_args={"a": 1};{"b": [1, 2]}'])
    found = [(s.of("pat", "stage1")["alignment_weight"], s.of("pat", "stage1")["alignment_args"]) for s in settings]
    assert found == [("1", '{"a": 1}'), ("1", '{"b": [1, 2]}'), ("5", '{"a": 1}'), ("5", '{"b": [1, 2]}')]
    assert all(setting.of("pat", "stage2") == {"max_steps": "5"} for setting in settings)
    assert settings_over([], [])[0].of("pat", "stage1") == {}


def test_runs_that_would_be_equal_are_there_once(study):
    settings = settings_over([], ["alignment_weight=1,5", "sft_share=0.5,1"])
    cells = cells_of(study, ["none", "pat"], [3, 4], settings)
    assert len(cells) == 2 * (2 + 4), "the baseline does not feel the weight"
    assert len({cell.stage2 for cell in cells}) == len({cell.name for cell in cells}) == len(cells)
    assert len({cell.stage1 for cell in cells}) == 2 * (1 + 2), "stage 1 does not feel stage 2's settings"
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells), "seed by seed"
    one = Cell(study, "pat", 3, settings_over(["none:stage1.max_steps=3"], [])[0])
    assert one.name == "pat-seed3" and one.overrides == [], "an override of another objective"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_command_lines_are_the_configs_with_seed_and_folder(study, objective):
    cell = Cell(study, objective, 7, settings_over(["stage2.learning_rate=1e-4", "alignment_weight=3"], [])[0])
    first = parse_pretrain(cell.stage1_command()[2:])
    assert (first.alignment.alignment, first.training.seed) == (objective, 7)
    assert Path(first.training.output_dir) == cell.stage1 and first.training.eval_strategy.value == "no"
    second = parse_finetune(cell.stage2_command()[2:])
    assert Path(second.model.pretrain_mm_mlp_adapter) == cell.stage1 / "mm_projector.bin"
    assert (second.training.learning_rate, second.training.seed, second.alignment.alignment) == (1e-4, 7, "none")
    if objective in ("pat", "sea"):
        configured = parse_pretrain(["--config", str(CONFIGS / f"playground_{objective}.yaml")])
        assert first.alignment.alignment_weight == 3
        assert first.alignment.alignment_args == configured.alignment.alignment_args, "the YAML's keywords stand"
    labels = objective in ("sea", "pat+sea")
    assert (cell.labels == ROOT / "playground" / "data" / "patch_words") == labels
    assert (first.data.patch_words_path == "playground/data/patch_words") == labels


def test_other_regions_are_other_runs_of_those_who_read_them(study):
    cells = cells_of(study, ["none", "pat"], [0], settings_over([], ["regions_path=a,b"]))
    assert len(cells) == 3, "none reads no regions"
    none, *pats = cells
    for cell, regions in zip(pats, "ab", strict=True):
        command = cell.stage1_command()
        assert command[command.index("--regions_path") + 1] == regions
        assert command[command.index("--eval_regions_path") + 1].endswith("regions_val.jsonl"), "measured on the exact"
    assert none.stage1_command()[none.stage1_command().index("--regions_path") + 1].endswith("regions_train.jsonl")


def test_other_switches_of_labels_have_a_folder_of_their_own(study):
    switched = Cell(study, "sea", 0, settings_over(['patch_words_args={"n": 3}'], [])[0])
    assert switched.labels.parent == study.out / "labels"
    assert switched.labels != Cell(study, "sea", 0, settings_over(['patch_words_args={"n": 4}'], [])[0]).labels
    command = switched.labels_command()
    assert command[1:3] == ["-m", "llava_pat.labelling"] and '{"n": 3}' in command and str(switched.labels) in command


def test_anybodys_objective_takes_pats_config(study):
    cell = Cell(study, "my_package.my_objective", 0)
    command = cell.stage1_command()
    assert command[command.index("--alignment") + 1] == "my_package.my_objective"
    assert command[command.index("--config") + 1] == "scripts/configs/playground_pat.yaml"
    assert cell.name == "my_package-my_objective-seed0"


def test_long_settings_have_short_names(study):
    setting = settings_over(['alignment_args={"unit": "patch", "label_weights": "coverage", "other": [1, 2, 3]}'], [])[
        0
    ]
    name = Cell(study, "pat", 0, setting).name
    assert len(name) < 100 and "/" not in name and name == Cell(study, "pat", 0, setting).name


@pytest.mark.parametrize("share", ["0", "1.5", "-1", "half"])
def test_shares_that_are_none(study, share):
    with pytest.raises(DataError, match=f"sft_share={share}: a share"):
        _ = Cell(study, "pat", 0, settings_over([f"sft_share={share}"], [])[0]).sft_share


def test_subsets_lie_inside_each_other(tmp_path):
    source = tmp_path / "instruct_train.json"
    source.write_text(json.dumps([{"id": number} for number in range(200)]))
    ids = {}
    for share in (0.1, 0.25, 0.5):
        kept = json.loads(write_subset(source, share, tmp_path / "subsets").read_text())
        ids[share] = [record["id"] for record in kept]
        assert len(kept) == 200 * share and ids[share] == sorted(ids[share]), "in the file's order"
    assert set(ids[0.1]) < set(ids[0.25]) < set(ids[0.5])
    file = write_subset(source, 0.1, tmp_path / "subsets")
    before = file.stat().st_mtime_ns
    assert write_subset(source, 0.1, tmp_path / "subsets").stat().st_mtime_ns == before, "written once"


# ---- pairs


def test_the_configs_differ_in_the_alignment_alone(study):
    pairing.check_configs(cells_of(study, OBJECTIVES, [0], settings_over([], [])))


def test_configs_that_differ_in_more_are_refused(study, tmp_path, monkeypatch):
    for name in ("pat", "sea"):
        text = (CONFIGS / f"playground_{name}.yaml").read_text()
        text = text.replace("learning_rate: 1.0e-3", "learning_rate: 2.0e-3") if name == "sea" else text
        (tmp_path / f"playground_{name}.yaml").write_text(text)
    monkeypatch.setattr("playground.study.cells.CONFIGS", tmp_path)
    with pytest.raises(DataError, match="differ in learning_rate"):
        pairing.check_configs(cells_of(study, ["pat", "sea"], [0], settings_over([], [])))


def result(objective: str, seed: int, start: float, setting=()) -> dict:
    return {"objective": objective, "seed": seed, "setting": list(setting), "initial": {"patch_cosine_init": start}}


def test_starts_are_compared_by_seed():
    same = [result("none", 0, 0.25), result("pat", 0, 0.25), result("none", 1, 0.5)]
    assert pairing.check_starts(same) == []
    assert pairing.check_starts([*same, result("sea", 0, 0.25, ["stage1.alignment_weight=2"])]) == []
    assert pairing.check_starts([*same, result("sea", 0, 0.3, ["stage1.mm_projector_type=linear"])]) == []
    assert pairing.check_starts([*same, result("pat", 0, 0.3, ["stage1.regions_path=other"])]), "regions start nothing"
    (line,) = pairing.check_starts([*same, result("sea", 1, 0.6)])
    assert line == "seed 1: patch_cosine_init is 0.6 for sea, 0.5 for none"


def test_objectives_see_the_same_data_in_the_same_order(made, tmp_path, monkeypatch):
    """Of a real run: the projector at the start, and which samples the steps take."""
    from llava_pat.training.stages import pretrain

    seen: list[int] = []
    original = LlavaDataset.__getitem__
    monkeypatch.setattr(LlavaDataset, "__getitem__", lambda self, i: seen.append(i) or original(self, i))
    study, orders, starts = Study(tmp_path / "study", made), {}, {}
    quick = ["stage1.max_steps=4", "stage1.global_batch_size=4", "stage1.per_device_train_batch_size=4",
             "stage1.dataloader_num_workers=0", "stage1.logging_steps=1"]  # fmt: skip
    for objective, seed in (("none", 0), ("pat", 0), ("none", 1)):
        seen.clear()
        metrics = pretrain(Cell(study, objective, seed, settings_over(quick, [])[0]).stage1_command()[2:])
        orders[objective, seed] = list(seen)
        starts[objective, seed] = {name: value for name, value in metrics.items() if name.endswith("_init")}
    assert orders["none", 0] == orders["pat", 0] and starts["none", 0] == starts["pat", 0]
    assert orders["none", 1] != orders["none", 0] and starts["none", 1] != starts["none", 0], (
        "another seed, another run"
    )


def test_the_reports_command_line_is_one(tmp_path, made):
    from llava_pat.evaluation.alignment.command import parser

    command = report_command([tmp_path / "a", tmp_path / "b"], made, "test", tmp_path / "out")
    arguments = parser().parse_args(command[2:])
    assert command[1] == "eval/alignment.py" and len(arguments.checkpoints) == 2
    assert Path(arguments.regions_path) == made / "regions_test.jsonl" and Path(arguments.out) == tmp_path / "out"


def test_cells_that_want_one_subset_at_once_all_get_it(tmp_path):
    source = tmp_path / "instruct.json"
    source.write_text(json.dumps([{"id": str(index), "text": "x" * 200} for index in range(20_000)]))
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda _: write_subset(source, 0.9, tmp_path / "subsets"), range(8)))
    assert len(json.loads(files[0].read_text())) == 18_000 and set(files) == {files[0]}
    assert list((tmp_path / "subsets").iterdir()) == [files[0]], "nothing is left aside"
