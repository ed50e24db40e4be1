"""docs/study.md: its generated parts follow from the committed JSON, and say what the numbers say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from llava_pat.types import DataError
from playground.study import publish, report
from playground.study.files import read_json, write_json
from playground.study.hypotheses import HYPOTHESES
from playground.study.overview import overview
from playground.study.plots import write_figures
from playground.study.results import SHARED, Results
from playground.study.rows import ROWS
from playground.study.tallies import TURN_TYPES, figures
from playground.text import QUESTION_TYPES

SEEDS, SCENES = (0, 1, 2, 3, 4), 60
PAGE = "# Title\n\nBy hand.\n\n<!-- generated: {} -->\nold\n<!-- end -->\n\nMore by hand.\n"


def tallies(rng: np.random.Generator, rate: float) -> dict[str, np.ndarray]:
    names = ["rec", *(f"qa_{kind}" for kind in QUESTION_TYPES), *(f"instruct_{kind}" for kind in TURN_TYPES)]
    made = {name: np.stack([rng.binomial(4, rate, SCENES), np.full(SCENES, 4)], -1) for name in names}
    made["objects"] = np.stack([rng.binomial(3, rate, SCENES), *rng.binomial(2, 1 - rate, (2, SCENES))], -1)
    made["cider"] = np.stack([np.round(3 * rate + rng.normal(0, 0.2, SCENES), 4), np.ones(SCENES)], -1)
    return made


def result(objective: str, seed: int, rate: float, setting=(), split="test") -> dict:
    rng = np.random.default_rng([seed, len(objective), int(1000 * rate)])
    table = tallies(rng, rate)
    metrics = {
        "stage1_entropy_patches": 2.0 - 0.1 * rng.random(),  # the same for all, but for noise
        "stage1_patch_cosine": (0.8 if objective != "none" else 0.3) + 0.01 * rng.random(),
        "stage1_caption_loss": 0.5,
        "meteor": 40 * rate,
        **figures({name: values.astype(float) for name, values in table.items()}),
    }
    return {
        "objective": objective, "seed": seed, "split": split, "setting": list(setting), "scenes": SCENES, "whole": True,
        "questions": {"rec": 4 * SCENES}, "metrics": metrics, "initial": {"caption_loss_init": 2.0 + seed},
        "tallies": {name: values.T.tolist() for name, values in table.items()},
        "commands": {"stage1": f"python train/pretrain.py --seed {seed}"}, "configs": {"stage1": "/tmp/x/config.yaml"},
        "finished": "2026-11-21 12:00", "git": {"commit": "a" * 40, "changed": False},
        "versions": {"torch": "2.13.0"}, "machine": "x86_64",
        "inputs": {"data": {"a.json": "1"}, "models": {"playground/models/llama": "b" * 64}},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """docs/study of a study in which `good` helps, `idle` does nothing; and of a sweep."""
    source = tmp_path / "out" / "results"
    for objective, gain in (("none", 0.0), ("good", 0.15), ("idle", 0.0)):
        for seed in SEEDS:
            made = result(objective, seed, 0.5 + gain + 0.005 * seed)
            write_json(source / "test" / f"{objective}-seed{seed}.json", made)
    for seed in (0, 1):
        write_json(source / "val" / f"none-seed{seed}.json", result("none", seed, 0.5, split="val"))
        for weight in (1, 5):
            made = result("good", seed, 0.5 + 0.02 * weight, [f"stage1.alignment_weight={weight}"], "val")
            write_json(source / "val" / f"good-seed{seed}-{weight}.json", made)
    out = tmp_path / "study"
    assert publish.publish(source / "test", out / "results" / "test", light=False) == 15
    assert publish.publish(source / "val", out / "results" / "sweep-weight", light=True) == 6
    return out


def render(folder: Path, part: str) -> str:
    page = folder.parent / "study.md"
    page.write_text(PAGE.format(part))
    assert report.write(page, folder) == [part]
    text = page.read_text()
    assert text.startswith("# Title\n\nBy hand.\n\n") and text.endswith("\n\nMore by hand.\n") and "old" not in text
    assert report.write(page, folder) == [part] and page.read_text() == text, "a second time changes nothing"
    return text


def rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {line[0]: line[1:] for line in cells}


def test_claims_say_what_is_so(folder):
    text = render(folder, "claims")
    good, idle = text.split("**`idle`")
    shown = {claim: cells[-1] for claim, cells in rows(good).items()}
    for hypothesis in HYPOTHESES:
        expected = "not shown" if hypothesis.metric == "stage1_entropy_patches" else "yes"
        assert shown[hypothesis.claim] == expected, hypothesis
    assert rows(idle)["better patch alignment"][-1] == "yes" and rows(idle)["better captions"][-1] == "not shown"
    results = Results.read(folder / "results" / "test")
    title, before, after, gain, *_, relative, _, _ = rows(good)["grounding (the paper: +16 %)"]
    means = [np.mean(results.values((name, ()), "rec")) for name in ("none", "good")]
    assert (before.split()[0], after.split()[0]) == (f"{means[0]:.1f}", f"{means[1]:.1f}")
    assert gain == f"{means[1] - means[0]:+.1f}" and relative == f"{100 * (means[1] / means[0] - 1):+.1f} %"


def test_intervals_hold_the_difference_and_stars_mark_those_of_seeds(folder):
    text = render(folder, "differences")
    found = rows(text)
    number = r"([+-][\d.]+)"
    for title, cells in found.items():
        for cell in cells:
            match = re.fullmatch(rf"{number} \[{number}, {number}\](\*?)", cell)
            if match:
                mean, low, high = map(float, match.groups()[:3])
                assert low <= mean <= high, (title, cell)
    assert found["caption METEOR"][0].endswith("*") and not found["REC accuracy at IoU 0.5"][0].endswith("*")
    assert "`good` - `none` | `idle` - `none` | `idle` - `good` |" in text


def test_what_was_run_is_told(folder):
    text = render(folder, "setup")
    assert "15 runs: `none`, `good`, `idle`; seeds 0, 1, 2, 3, 4" in text and "60 scenes; 240 rec" in text
    assert "aaaaaaaaaaaa; torch 2.13.0" in text and "python train/pretrain.py --seed 0" in text
    assert "playground/models/llama: sha256 bbbbbbbbbbbbbbbb." in text


def test_sweeps(folder):
    write_figures(folder)
    text = render(folder, "sweeps")
    assert "**sweep-weight** (split `val`, 60 scenes)" in text and "![sweep-weight](study/sweep-weight.svg)" in text
    lines = [line for line in text.splitlines() if line.startswith("| stage1.alignment_weight=5")]
    assert len(lines) == 1 and "`good` | 2 |" in lines[0] and re.search(r"\(\+\d", lines[0]), "against none"


def test_figures_are_drawings_and_stay_as_they_are(folder):
    files = write_figures(folder)
    assert [file.name for file in files] == ["differences.svg", "sweep-weight.svg"]
    before = {file: file.read_bytes() for file in files}
    for content in before.values():
        assert ElementTree.fromstring(content).tag.endswith("svg") and len(content) < 400_000
    assert {file: file.read_bytes() for file in write_figures(folder)} == before


def test_published_results_name_no_machine(folder):
    text = "".join(file.read_text() for file in (folder / "results").rglob("*.json"))
    assert "/tmp/x" not in text and "config.yaml" not in text
    light = read_json(folder / "results" / "sweep-weight" / "none-seed0.json")
    assert light["tallies"] == {} and "inputs" not in light
    assert read_json(folder / "results" / "test" / SHARED)["git"] == {"commits": ["a" * 40], "changed": False}


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"scenes": 7, "whole": True}, "7 scenes"),
        ({"scenes": 7, "whole": False}, "the first 7 scenes"),
        ({"scenes": None, "whole": True}, "stage 1 alone"),
    ],
)
def test_how_many_scenes_is_said(counts, words):
    assert report.scenes(counts) == words


def test_the_order_of_overrides_means_nothing():
    one, other = ["stage2.a=1", "stage2.b=2"], ["stage2.b=2", "stage1.alignment_weight=2", "stage2.a=1"]
    results = Results([result("none", 0, 0.5, one), result("good", 0, 0.6, other)])
    (treated,) = (column for column in results.columns if column[0] == "good")
    assert results.compare(treated, results.baseline_of(treated), "qa") is not None


def test_other_regions_are_compared_with_none_and_with_the_exact_ones():
    regions = "stage1.regions_path=playground/data/predicted/regions"
    made = [("none", 0.5, []), ("pat", 0.6, []), ("pat", 0.7, [regions]), ("pat", 0.7, ["stage2.a=1"])]
    results = Results([result(*one[:1], seed, *one[1:]) for one in made for seed in (0, 1)])
    exact, predicted = ("pat", ()), ("pat", (regions,))
    assert results.baseline_of(predicted) == ("none", ()), "no regions are read there"
    assert results.plainer(predicted) == [exact] and results.plainer(exact) == []
    assert results.plainer(("pat", ("stage2.a=1",))) == [], "another stage 2 is no setting of the objective"
    pairs = report.contrasts(results)
    assert pairs == [(exact, ("none", ())), (predicted, ("none", ())), (predicted, exact)]
    text = report.differences(results)
    assert f"`pat {regions}` - `pat`" in text


def test_predicted_regions_stand_beside_the_study(folder, tmp_path):
    assert "*Not run yet.*" in render(folder, "predicted")
    regions = "stage1.regions_path=playground/data/predicted/regions"
    source = tmp_path / "again" / "results" / "test"
    for seed in SEEDS:
        write_json(source / f"good-seed{seed}.json", result("good", seed, 0.6))
        write_json(source / f"good-seed{seed}-predicted.json", result("good", seed, 0.55, [regions]))
    target = folder / "results" / "predicted"
    assert publish.publish(source, target, light=False, having=["stage1.regions_path"]) == len(SEEDS)
    text = render(folder, "predicted")
    assert f"| `none` | `good` | `good {regions}` |" in text, "idle has nothing to do with it"
    assert f"`good` - `none` | `good {regions}` - `none` | `good {regions}` - `good` |" in text
    assert regions not in render(folder, "sweeps") and regions not in render(folder, "claims")
    shared = read_json(target / SHARED)
    write_json(target / SHARED, shared | {"inputs": {"data": {"a.json": "2"}, "models": {}}})
    with pytest.raises(DataError, match="different inputs"):
        render(folder, "predicted")


def test_runs_of_some_settings_are_published(folder, tmp_path):
    source, flag = tmp_path / "out" / "results" / "val", "stage1.alignment_weight"

    def published(**chosen) -> int:
        return publish.publish(source, tmp_path / "some", light=True, **chosen)

    assert published(having=[f"{flag}=5"]) == 2
    assert len(list((tmp_path / "some").glob("*-seed*.json"))) == 2
    assert published(having=[flag], lacking=[f"{flag}=5"]) == 2
    assert published(lacking=[flag]) == 2 and (tmp_path / "some" / "none-seed0.json").is_file()
    with pytest.raises(DataError, match=rf"none of the 6 results .* there are: {flag}=1, {flag}=5"):
        published(having=["stage1.align"])


def test_what_cannot_be_compared_is_refused(folder, tmp_path):
    source = tmp_path / "out" / "results" / "test"
    with pytest.raises(DataError, match="no result to publish"):
        publish.publish(tmp_path / "nothing", tmp_path / "x", light=False)
    entry = read_json(source / "none-seed0.json")
    for change, words in (
        ({"scenes": SCENES - 1, "whole": False}, "different numbers of scenes"),
        ({"inputs": {}}, "different inputs"),
        ({"initial": {"caption_loss_init": 9.0}}, "did not start alike"),
    ):
        write_json(source / "none-seed0.json", entry | change)
        with pytest.raises(DataError, match=words):
            publish.publish(source, tmp_path / "x", light=False)
    write_json(source / "none-seed0.json", entry)
    write_json(source / "twice.json", entry)
    with pytest.raises(DataError, match="two results of none, seed 0"):
        publish.publish(source, tmp_path / "x", light=False)


def test_what_all_runs_have_is_said_once():
    slow, quick = ["stage2.learning_rate=1e-5"], ["stage2.learning_rate=1e-5", "stage1.alignment_weight=2"]
    results = Results([result("none", 0, 0.5, slow), result("good", 0, 0.6, quick)])
    assert results.common == ("stage2.learning_rate=1e-5",)
    assert [results.name(column) for column in results.columns] == ["none", "good stage1.alignment_weight=2"]


def test_an_unknown_part_is_named(folder):
    page = folder.parent / "study.md"
    page.write_text(PAGE.format("nonsense"))
    with pytest.raises(DataError, match="nothing makes the part 'nonsense'; there are: setup, claims"):
        report.write(page, folder)


def test_the_committed_page_is_what_the_committed_results_give(tmp_path):
    page = tmp_path / "study.md"
    shutil.copy(report.PAGE, page)
    shutil.copytree(report.FOLDER, tmp_path / "study") if report.FOLDER.is_dir() else (tmp_path / "study").mkdir()
    parts = report.write(page, tmp_path / "study")
    assert page.read_text() == report.PAGE.read_text(), "python -m playground.study report, and commit"
    assert set(parts) == {"setup", "claims", "alignment", "tasks", "differences", "predicted", "sweeps"}


def test_every_row_has_a_metric():
    assert all(title and digits >= 0 for title, digits in ROWS.values())
    assert {hypothesis.metric for hypothesis in HYPOTHESES} <= set(ROWS)


def test_json_is_laid_out_a_key_a_line(tmp_path):
    content = {"a": [1, 2.5, [3]], "b": {"c": "é", "d": {}}, "e": None}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == content and text.count("\n") == 8 and '"a": [1,2.5,[3]],' in text


def test_the_overview_has_the_start_on_val_and_is_written_down(tmp_path):
    for seed in (0, 1):
        write_json(tmp_path / f"results/val/none-{seed}.json", result("none", seed, 0.5, split="val"))
        write_json(tmp_path / f"results/test/none-{seed}.json", result("none", seed, 0.5))
    text = overview(tmp_path, "val")
    assert rows(text)[""] == ["at the start", "`none`"] and rows(text)["seeds"] == ["", "0 1"]
    assert rows(text)["caption loss after stage 1, nats a token"] == ["2.500 ± 0.707", "0.500 ± 0.000"]
    assert (tmp_path / "table-val.md").read_text() == text + "\n"
    assert rows(overview(tmp_path, "test"))[""] == ["`none`"], "training has measured its start on val"
    assert overview(tmp_path / "nothing", "val").startswith("no result in")
