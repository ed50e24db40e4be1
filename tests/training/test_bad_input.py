"""What a user can get wrong ends the command with status 2 and one message that names it and the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_pat.training.launch import run
from llava_pat.training.stages import pretrain


@pytest.fixture
def refused(world, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs the command and returns the message it ended with."""

    def attempt(*words: str, **flags: object) -> str:
        out = tmp_path / "llava-run"
        with pytest.raises(SystemExit) as exit_:
            run(lambda: pretrain([*world.argv(out, **flags), *words]))
        assert exit_.value.code == 2
        message = capsys.readouterr().err.split("error: ", 1)[1]
        assert "Traceback" not in message
        assert not list(out.glob("*projector*")) and not list(out.glob("checkpoint-*"))
        return message

    return attempt


def records(world, tmp_path: Path, **changes: object) -> Path:
    """The training file with another record 3."""
    content = json.loads((world.folder / "train.json").read_text())
    content[3] |= changes
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(content))
    return file


def regions(world, tmp_path: Path, change: Callable[[dict], object]) -> Path:
    """The regions file with its first line changed."""
    first, *rest = (world.folder / "regions.jsonl").read_text().splitlines()
    entry = json.loads(first)
    change(entry)
    file = tmp_path / "changed.jsonl"
    file.write_text("\n".join([json.dumps(entry), *rest]) + "\n")
    return file


def images(world, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.folder / "images", tmp_path / "images"))


def copied(world, tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(world.folder / name, tmp_path / name))


def assert_names(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


# ---- the command line


def test_unknown_flag(refused) -> None:
    assert_names(refused("--alignment_wieght", "3"), "alignment_wieght", "did you mean", "--alignment_weight")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kernels_of_a_gpu_without_one(refused) -> None:
    assert_names(refused(use_liger_kernel=True), "--use_liger_kernel True", "need a GPU", "leave out")


def test_unknown_yaml_key(refused, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rat: 1.0e-3\n")
    assert_names(refused("--config", str(file)), str(file), "learning_rat", "--learning_rate")


def test_pat_without_regions(refused) -> None:
    assert_names(refused(regions_path=None), "--alignment pat", "--regions_path")


def test_unknown_objective_and_keyword(refused) -> None:
    assert_names(refused(alignment="patt"), "patt", "none", "pat")
    assert_names(refused(alignment_args='{"unitt": "patch"}'), "unitt", "unit='region'")
    assert_names(refused(alignment_args='{"unit": "pixel"}'), "unit", "pixel", "region")


def test_several_objectives(refused) -> None:
    assert_names(refused(alignment="pat+pat"), "--alignment pat+pat", "twice")
    assert_names(refused(alignment="pat+sae"), "'sae'", "none, pat, sea")
    assert_names(refused(alignment="pat+sea", alignment_args='{"unit": "patch"}'), "unit", "pat and sea")
    assert_names(refused(alignment="pat+sea", alignment_args='{"sea": {"windows": 2}}'), "sea", "windows", "window=2")
    assert_names(refused(alignment="pat+sea", alignment_args='{"sea": {"weight": -2}}'), "sea", "weight", "-2")
    chosen = '{"pat": {"schedule": "cosine"}, "sea": {"labels": "regions"}}'
    assert_names(refused(alignment="pat+sea", alignment_args=chosen), "schedule", "cosine", "linear")


# ---- models


def test_no_such_folders(refused, tmp_path: Path) -> None:
    for flag in ("vision_tower", "model_name_or_path", "pretrain_mm_mlp_adapter"):
        assert_names(refused(**{flag: tmp_path / "absent"}), f"--{flag}", str(tmp_path / "absent"))


def test_tower_and_processor_with_different_grids(refused, world, tmp_path: Path) -> None:
    tower = copied(world, tmp_path, "clip")
    file = tower / "preprocessor_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"crop_size": {"height": 48, "width": 48}, "size": {"shortest_edge": 48}}))
    assert_names(refused(vision_tower=tower), str(tower), "48 x 48", "32 x 32")


def test_tokenizer_larger_than_the_model(refused, world, tmp_path: Path) -> None:
    llm = copied(world, tmp_path, "llm")
    file = llm / "tokenizer_config.json"
    added = {str(520 + i): {"content": f"<new{i}>", "special": True, "lstrip": False, "rstrip": False, "normalized":
             False, "single_word": False} for i in range(2)}  # fmt: skip
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": added}))
    assert_names(refused(model_name_or_path=llm), str(llm), "522", "520")


def test_template_that_does_not_fit_the_tokenizer(refused) -> None:
    assert_names(refused(version="mpt"), "mpt", "<|im_start|>")
    assert_names(refused(version="v2"), "v2", "plain")


def test_projector_of_another_model(refused, tmp_path: Path) -> None:
    file = tmp_path / "mm_projector.bin"
    names = [f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    torch.save({name: torch.zeros(3, 3) for name in names}, file)
    assert_names(refused(pretrain_mm_mlp_adapter=file), str(file), "[3, 3]", "[24, 16]")


# ---- data


def test_no_such_data(refused, tmp_path: Path) -> None:
    for flag in ("data_path", "regions_path", "eval_data_path", "eval_regions_path", "vocabulary_path"):
        assert_names(refused(**{flag: tmp_path / "absent.json"}), str(tmp_path / "absent.json"))


def test_missing_image(refused, world, tmp_path: Path) -> None:
    file = records(world, tmp_path, image="absent.png")
    assert_names(refused(data_path=file), f"{file}: record 3 (id 'train-3')", "absent.png", "does not exist")


def test_truncated_image(refused, world, tmp_path: Path) -> None:
    folder = images(world, tmp_path)
    file = folder / "train-3.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    message = refused(image_folder=folder)
    assert_names(message, "record 3 (id 'train-3')", str(file), f"{len(whole) // 2} bytes")


def test_image_markers_and_images_differ(refused, world, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\n<image>\nWhat?"}, {"from": "gpt", "value": "a ring"}]
    file = records(world, tmp_path, conversations=turns)
    assert_names(refused(data_path=file), "record 3 (id 'train-3')", "2", "1", "<image>")


def test_broken_json(refused, tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    file.write_text('[\n{"id": "1",\n')
    assert_names(refused(data_path=file), str(file), "3")


def test_region_of_another_size(refused, world, tmp_path: Path) -> None:
    def widen(entry: dict) -> None:
        entry["width"] += 5

    file = regions(world, tmp_path, widen)
    with Image.open(world.folder / "images" / "train-0.png") as image:
        width, height = image.size
    message = refused(regions_path=file)
    assert_names(message, f"{file}:1", "train-0", f"{height}x{width + 5}", f"{height}x{width}")


def test_mask_of_another_size(refused, world, tmp_path: Path) -> None:
    def mask(entry: dict) -> None:
        entry["regions"][0]["segmentation"] = {"size": [7, 9], "counts": [0, 63]}

    assert_names(refused(regions_path=regions(world, tmp_path, mask)), "changed.jsonl:1", "7", "9")


def test_empty_label(refused, world, tmp_path: Path) -> None:
    def empty(entry: dict) -> None:
        entry["regions"][0]["label"] = "  "

    assert_names(refused(regions_path=regions(world, tmp_path, empty)), "changed.jsonl:1", "label")


def test_regions_of_other_images(refused, world) -> None:
    assert_names(refused(regions_path=world.folder / "regions_val.jsonl"), "val-0.png", "train-0.png")


def test_an_image_that_does_not_fit_the_sequence(refused) -> None:
    assert_names(refused(model_max_length=10), "record 0", "model_max_length is 10")


def test_vocabulary_that_no_label_uses(refused, tmp_path: Path) -> None:
    file = tmp_path / "vocabulary.json"
    file.write_text(json.dumps({"animal": ["cat", "dog"]}))
    assert_names(refused(vocabulary_path=file), "--vocabulary_path", "'cat'", "label")


def test_a_folder_that_is_no_run(refused, world, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "llava-other"
    out.mkdir()
    (out / "mm_projector.bin").write_bytes(b"precious")
    with pytest.raises(SystemExit):
        run(lambda: pretrain(world.argv(out)))
    assert_names(capsys.readouterr().err, str(out), "not one of our runs", "--output_dir")
    assert (out / "mm_projector.bin").read_bytes() == b"precious"
