"""Labels of patches in whole runs: from files, computed in the run, and refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_pat.data.collate import patch_words
from llava_pat.labelling.command import main as label
from llava_pat.training.data_check import check_data
from llava_pat.training.launch import run
from llava_pat.training.stages import pretrain
from tests.models.clip_folder import write_clip

SWITCHES = {"n": 3, "sign": 1, "centring": "both", "source": "surgery", "min_count": 1}


def labelled(world, clip, out, **flags):
    settings = {
        "data_path": world.folder / "train.json", "image_folder": world.folder / "images", "vision_tower": clip,
        "patch_words_path": out, "num_workers": 0, "patch_words_args": json.dumps(SWITCHES),
    } | flags  # fmt: skip
    assert label([word for name, value in settings.items() for word in (f"--{name}", str(value))]) == 0
    return out


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("whole") / "clip")


@pytest.fixture(scope="module")
def labels(world, clip, tmp_path_factory):
    return labelled(world, clip, tmp_path_factory.mktemp("labels") / "labels")


@pytest.fixture
def flags(clip, labels):
    return {
        "vision_tower": clip, "patch_words_path": labels, "alignment": "sea", "alignment_weight": 1, "max_steps": 3,
        "alignment_args": '{"sampling": "best", "window": 0}',
    }  # fmt: skip


@pytest.fixture
def refused(world, tmp_path, capsys):
    def attempt(**flags) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run(lambda: pretrain(world.argv(tmp_path / "llava-refused", **flags)))
        assert exit_.value.code == 2
        printed = capsys.readouterr()
        assert "step 1/" not in printed.out and "Traceback" not in printed.err
        return printed.err.split("error: ", 1)[1]

    return attempt


def test_online_labels_are_the_files(make_trainer, flags):
    """To float16's rounding: the same words for every patch, as tokens."""
    file, online = make_trainer(**flags), make_trainer(**flags, patch_words="online")
    assert online.parts.train.patch_words is None and file.parts.words.online is None
    for start in range(0, 12, 4):
        batch = file.parts.collator([file.parts.train[number] for number in range(start, start + 4)])
        stored = patch_words(batch)
        computed = patch_words(online.parts.words.online(batch["pixel_values"], torch.device("cpu")))
        assert stored.words.shape == (4, 16, 3) and bool((stored.words >= 0).any())
        assert torch.equal(stored.words, computed.words)
        assert torch.equal(stored.word_ids, computed.word_ids)
        assert torch.equal(stored.word_mask, computed.word_mask)
        torch.testing.assert_close(stored.scores, computed.scores, atol=1e-3, rtol=1e-3)


def test_a_lost_image_is_not_labelled(make_trainer, flags, tmp_path, world):
    """--missing skip with labels computed in the run: nothing of the record is trained on."""
    shutil.copytree(world.folder / "images", tmp_path / "images")
    lenient = {"missing": "skip", "max_missing": 2, "image_folder": tmp_path / "images"}
    made = make_trainer(**flags, **lenient, patch_words="online")
    check_data(made.parts, made.arguments.data, main=True)
    (tmp_path / "images" / "train-3.png").unlink()
    made.trainer.lost_images.allowed = 1
    batch = made.parts.collator([made.parts.train[number] for number in (2, 3)])
    made.trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    words = patch_words(batch).words
    assert bool((words[0] >= 0).any()) and bool((words[1] == -1).all())
    assert made.trainer.lost_images.names == {"train-3.png"}


def test_a_run_from_files_and_one_that_labels_itself(world, flags, tmp_path, capsys):
    """The best word of every patch: the same projector, bit for bit; and not the one of a run without labels."""
    trained = {}
    for name, more in {
        "file": {}, "online": {"patch_words": "online"}, "none": {"alignment": "none", "alignment_args": None},
    }.items():  # fmt: skip
        out = tmp_path / f"llava-{name}"
        metrics = pretrain(world.argv(out, **(flags | more)))
        assert metrics["steps"] == 3
        trained[name] = load_file(out / "mm_projector.safetensors")
    printed = capsys.readouterr().out
    assert f"patch labels by {flags['vision_tower']}: " in printed and "patch labels computed by" in printed
    assert all(torch.equal(trained["file"][key], trained["online"][key]) for key in trained["file"])
    assert not all(torch.equal(trained["file"][key], trained["none"][key]) for key in trained["file"])


def test_without_the_objective_no_labels_are_opened(make_trainer, flags):
    made = make_trainer(**(flags | {"alignment": "none", "alignment_args": None, "patch_words_path": "/not/there"}))
    assert made.parts.words is None and made.parts.train[0]["patch_words"] is None


def test_what_is_missing(refused, flags, tmp_path):
    assert "--alignment sea needs labels of patches" in refused(**(flags | {"patch_words_path": None}))
    message = refused(**(flags | {"patch_words_path": tmp_path}))
    assert "holds no meta.json" in message and "bash scripts/label_patches.sh" in message


def test_labels_of_another_tower(refused, flags, tmp_path):
    other = write_clip(tmp_path / "clip")
    state = load_file(other / "model.safetensors")
    state["vision_model.encoder.layers.0.mlp.fc1.bias"] += 0.1
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    message = refused(**(flags | {"vision_tower": other}))
    assert "made by the vision tower of" in message and f"but {other} has hash" in message
    state = load_file(flags["vision_tower"] / "model.safetensors")
    state["text_projection.weight"] += 0.1
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    message = refused(**(flags | {"vision_tower": other, "patch_words": "online"}))
    assert "made by the text encoder of" in message


def test_another_tower_on_purpose(world, flags, tmp_path):
    """The tower that is trained on is not the one that labels: as SEA does with CLIP's labels and DINOv2."""
    other = write_clip(tmp_path / "clip", seed=1)
    chosen = flags | {"vision_tower": other, "patch_words_tower": flags["vision_tower"], "max_steps": 1}
    assert pretrain(world.argv(tmp_path / "llava-run", **chosen))["steps"] == 1


def test_labels_of_another_corpus(refused, world, flags, tmp_path):
    message = refused(**(flags | {"data_path": world.folder / "val.json"}))
    assert "image 'val-0.png' is not among the 12 images" in message
    shutil.copytree(world.folder / "images", tmp_path / "images")
    changed = tmp_path / "images" / "train-3.png"
    changed.write_bytes((tmp_path / "images" / "train-4.png").read_bytes())
    message = refused(**(flags | {"image_folder": tmp_path / "images", "regions_path": None}))
    assert "record 3" in message and "labels of another corpus" in message


def test_a_part_of_the_corpus_will_do(make_trainer, world, flags, tmp_path):
    records = json.loads((world.folder / "train.json").read_text())
    (tmp_path / "part.json").write_text(json.dumps(records[3:5]))
    made = make_trainer(**(flags | {"data_path": tmp_path / "part.json"}))
    whole = make_trainer(**flags)
    for number in range(2):
        (ids, _), (expected, _) = (
            made.parts.train[number]["patch_words"][0],
            whole.parts.train[number + 3]["patch_words"][0],
        )
        assert torch.equal(ids, expected)


def test_another_geometry_and_grid(refused, flags, tmp_path):
    message = refused(**(flags | {"image_aspect_ratio": "pad"}))
    assert (
        "'kind': 'CenterCrop'" in message and "'kind': 'Pad'" in message and "label the images for this run" in message
    )
    coarse = write_clip(tmp_path / "clip", patch=16)
    assert "labels are of 16 patches" in refused(**(flags | {"vision_tower": coarse}))


def test_other_switches(refused, flags):
    message = refused(**(flags | {"patch_words_args": '{"sign": -1, "n": 3}'}))
    assert "holds labels with other switches (sign: 1 there, -1 asked for)" in message
    assert "patch_words_args has signs" in refused(**(flags | {"patch_words_args": '{"signs": -1}'}))
    assert "patch_words_args '{' is not JSON" in refused(**(flags | {"patch_words_args": "{"}))


def test_half_a_folder(refused, flags, tmp_path):
    there = tmp_path / "labels"
    shutil.copytree(flags["patch_words_path"], there)
    (there / "progress.json").write_text('{"rows": 5}')
    assert "5 of 12 images are labelled" in refused(**(flags | {"patch_words_path": there}))
    (there / "words.npy").unlink()
    assert "--patch_words online" in refused(**(flags | {"patch_words_path": there}))
    (there / "word_means.npy").unlink()
    assert "holds no word_means.npy" in refused(**(flags | {"patch_words_path": there, "patch_words": "online"}))


def test_words_without_tokens(make_trainer, refused, world, clip, flags, tmp_path):
    """Some: left out, and said. All: refused."""
    more = tmp_path / "more.txt"
    more.write_text("\u200b \u200c")
    some = labelled(world, clip, tmp_path / "some", extra_words=more)
    words = make_trainer(**(flags | {"patch_words_path": some})).parts.words
    assert set(words.tokens.dropped) == {"\u200b", "\u200c"} and "2 of them without tokens and left out" in str(words)
    (tmp_path / "list.json").write_text(json.dumps({"words": {"\u200b": 1, "\u200c": 1}}))
    switches = json.dumps({key: value for key, value in SWITCHES.items() if key != "min_count"})
    none = labelled(world, clip, tmp_path / "none", word_list=tmp_path / "list.json", patch_words_args=switches)
    assert "2 of the word list's 2 words" in refused(**(flags | {"patch_words_path": none}))


def test_online_needs_the_runs_pixels(refused, flags, tmp_path):
    other = write_clip(tmp_path / "clip")
    processor = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(processor | {"image_mean": [0.1, 0.2, 0.3]}))
    chosen = {"vision_tower": other, "patch_words_tower": flags["vision_tower"], "patch_words": "online"}
    assert "wants other pixels" in refused(**(flags | chosen))


def test_siglip_cannot_label(capsys, world, tmp_path):
    from tests.models.tower_folders import write_tower

    siglip = write_tower("whole siglip", tmp_path / "siglip")
    flags = ("--data_path", world.folder / "train.json", "--image_folder", world.folder / "images", "--vision_tower",
             siglip, "--patch_words_path", tmp_path / "labels", "--min_count", 1)  # fmt: skip
    assert label([str(word) for word in flags]) == 2
    assert "pooling head" in capsys.readouterr().err
    assert not Path(tmp_path / "labels").exists()
