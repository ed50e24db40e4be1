"""Records that cannot be trained on: refused, or left out with a count and a cap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_pat.training.arguments import parse_pretrain
from llava_pat.training.data_check import check_data
from llava_pat.training.finetune_arguments import parse_finetune
from llava_pat.training.flags import ConfigError
from llava_pat.training.output import CONFIG, claim
from llava_pat.training.parts import Parts, build_parts
from llava_pat.training.run_config import write_config
from llava_pat.types import DataError


@pytest.fixture
def bad_file(world, tmp_path: Path) -> Path:
    """Twelve usable records, one with an empty answer, one of whose image truncation leaves only a part."""
    records = json.loads((world.folder / "mixed.json").read_text())
    with_image = next(record for record in records if "image" in record)
    empty = [{"from": "human", "value": "Say it."}, {"from": "gpt", "value": ""}]
    long = [{"from": "human", "value": "Say it. " * 60}, {"from": "gpt", "value": "no"}]
    long += [{"from": "human", "value": "<image>\nWhat is here?"}, {"from": "gpt", "value": "nothing"}]
    records[3:3] = [{"id": "empty", "conversations": empty}]
    records += [{**with_image, "id": "cut", "conversations": long}]
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(records))
    return file


def checked(world, tmp_path: Path, file: Path, **flags: object) -> Parts:
    flags |= {"version": "v1", "pretrain_mm_mlp_adapter": "none", "data_path": file, "model_max_length": 140}
    arguments = parse_finetune(world.argv(tmp_path / "llava-run", **flags))
    return check_data(build_parts(arguments), arguments.data, main=True)


def test_left_out_and_said(world, tmp_path: Path, bad_file: Path, capsys) -> None:
    parts = checked(world, tmp_path, bad_file, max_bad_records=0.2)  # stage 2's default is to skip
    ids = [record.id for record in parts.train.records]
    assert len(parts.train) == 12 and not {"empty", "cut"} & set(ids)
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("12 records", "2 records are left out", "'empty'", "'cut'"))


def test_more_than_the_cap_is_refused(world, tmp_path: Path, bad_file: Path) -> None:
    with pytest.raises(ConfigError, match="2 of 14 records cannot be trained on, more than --max_bad_records 0.1"):
        checked(world, tmp_path, bad_file, max_bad_records=0.1)


def test_refused_where_asked(world, tmp_path: Path, bad_file: Path) -> None:
    with pytest.raises(DataError, match="'empty'"):
        checked(world, tmp_path, bad_file, bad_records="error")


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_the_cap_is_a_share(world, tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigError, match=f"--max_bad_records {share}: expected a share"):
        checked(world, tmp_path, world.folder / "mixed.json", max_bad_records=share)


def test_a_folder_from_before_the_flag_goes_on(world, tmp_path: Path) -> None:
    out = tmp_path / "llava-run"
    arguments = parse_finetune(world.argv(out, version="v1", pretrain_mm_mlp_adapter="none"))
    write_config(arguments, out / CONFIG)
    lines = (out / CONFIG).read_text().splitlines()
    older = [line for line in lines if not line.startswith(("missing:", "max_missing:"))]
    assert len(older) == len(lines) - 2
    (out / CONFIG).write_text("\n".join(older) + "\n")
    assert claim(arguments, out)
    arguments.data.missing = "skip"
    with pytest.raises(ConfigError, match="missing: 'error' there, 'skip' now"):
        claim(arguments, out)


def test_an_empty_image_has_no_words_to_learn(world, tmp_path: Path) -> None:
    """--missing blank with labels computed in the run would label the empty image."""
    flags = {"alignment": "sea", "patch_words_path": tmp_path, "patch_words": "online", "missing": "blank"}
    with pytest.raises(ConfigError, match="--missing blank with --patch_words online"):
        parse_pretrain(world.argv(tmp_path / "llava-run", **flags))


@pytest.mark.parametrize("value", [-1, float("inf")])
def test_the_cap_of_missing_images_is_a_number(world, tmp_path: Path, value: float) -> None:
    with pytest.raises(ConfigError, match="--max_missing"):
        parse_pretrain(world.argv(tmp_path / "llava-run", max_missing=value))
