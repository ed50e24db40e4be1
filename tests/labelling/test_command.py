"""The command as a person types it, on a tiny corpus."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llava_pat.data.geometry import geometry_for
from llava_pat.data.patch_words import PatchWordsFolder, load_meta
from llava_pat.labelling.command import main, read_arguments
from llava_pat.models.loading import load_image_processor
from llava_pat.models.patch_labels import CENTRINGS
from llava_pat.models.patch_text import load_patch_text
from tests.models.clip_folder import write_clip

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["ring", "above", "circle", "red", "blue", "green", "square"]


def similarities(corpus, names, words, source="last"):
    """float64 [I, N, W], image by image."""
    clip = load_patch_text(str(corpus.folder / "clip"))
    geometry = geometry_for("square", load_image_processor(corpus.folder / "clip", 32))
    vectors = clip.words(words).double().numpy()
    found = []
    for name in names:
        pixels = geometry.pixels(Image.open(corpus.folder / "images" / name))
        found.append(clip.patches(pixels[None], source)[0].double().numpy() @ vectors.T)
    return np.stack(found)


def test_labels_are_the_best_words(corpus, tmp_path, capsys):
    """With double centring over all seven images: the means are those of the report's sample."""
    out = tmp_path / "labels"
    assert main(corpus.argv(out, centring="both", n=3, report_images=7, source="surgery")) == 0
    labels = PatchWordsFolder(out)
    names = [f"{number}.png" for number in range(7)]
    words = list(labels.word_list.words)
    # of equal counts by the alphabet; rings -> ring, as "green ring" is in the corpus
    assert words == WORDS
    scores = similarities(corpus, names, words, "surgery")
    scores = scores - scores.mean(-1, keepdims=True) - scores.mean((0, 1)) + scores.mean()
    for image, name in enumerate(names):
        ids, values = labels.row(name, "here")
        for patch in range(16):
            best = [word for word in np.argsort(-scores[image, patch])[:3] if scores[image, patch, word] > 0]
            assert ids[patch].tolist() == best + [-1] * (3 - len(best))
            np.testing.assert_allclose(values[patch, : len(best)], scores[image, patch, best], atol=1e-3)
    report = json.loads((out / "report.json").read_text())
    assert len(report["settings"]) == 2 * 2 * len(CENTRINGS) and sum(row["chosen"] for row in report["settings"]) == 1
    assert report["sample"] == {"images": 7, "of": 7, "with_regions": 5}
    chosen = next(row for row in report["settings"] if row["chosen"])
    assert (chosen["source"], chosen["sign"], chosen["centring"]) == ("surgery", 1, "both")
    # the sample is all images: what the report said is what the files hold
    for name in ("with_label", "labels_per_patch", "best_words", "top_share"):
        assert report["all_images"][name] == pytest.approx(chosen[name])
    assert report["all_images"]["words"] == chosen["words"]
    printed = capsys.readouterr().out
    assert "->  surgery" in printed and "7 images are labelled" in printed
    assert (out / "report.txt").read_text() in printed


def test_the_report_by_hand(corpus, tmp_path):
    """right_best of one setting from similarities and regions; report_only writes no labels."""
    out = tmp_path / "labels"
    assert main(corpus.argv(out, report_only=True, centring="words", n=1, min_score=0.1)) == 0
    assert {path.name for path in out.iterdir()} == {"report.json", "report.txt"}
    report = json.loads((out / "report.json").read_text())
    assert len(report["settings"]) == 17  # the min_score is of the chosen one alone
    words = WORDS
    scores = similarities(corpus, [f"{number}.png" for number in range(5)], words)
    scores = scores - scores.mean(-1, keepdims=True)
    hits, total = 0, 0
    for image in range(5):
        label = ("red circle", "blue square", "green ring")[image % 3].split()
        mask = np.zeros((32, 40))
        mask[0:16, 4 + image : 16 + image] = 1
        coverage = mask[:, 4:36].reshape(4, 8, 4, 8).mean((1, 3)).reshape(-1)
        for patch in range(16):
            best = int(np.argmax(scores[image, patch]))
            if coverage[patch] >= 0.25:
                total += 1
                hits += words[best] in label and scores[image, patch, best] > 0.1
    chosen = next(row for row in report["settings"] if row["chosen"])
    assert chosen["region_patches"] == total and chosen["right_best"] == pytest.approx(hits / total)
    assert main(corpus.argv(out)) == 0, "a folder with a report alone may be filled"


def test_a_killed_run_goes_on(corpus, tmp_path, monkeypatch):
    """Killed after the second batch: rows on disk stay, the rest is added, all as in one go."""
    from llava_pat.labelling import command, store

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(corpus.argv(whole, centring="patches", n=2)) == 0
    monkeypatch.setattr(store, "_ROWS_BETWEEN_FLUSHES", 1)
    labelled = command._labels

    def interrupted(*arguments):
        for number, batch in enumerate(labelled(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(command, "_labels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(corpus.argv(cut, centring="patches", n=2))
    assert json.loads((cut / "progress.json").read_text()) == {"rows": 4}
    asked = []
    monkeypatch.setattr(command, "_labels", lambda *arguments: asked.append(arguments[-1]) or labelled(*arguments))
    assert main(corpus.argv(cut, centring="patches", n=2)) == 0
    assert asked == [range(4, 7)]
    for name in ("words.npy", "scores.npy", "word_means.npy", "image_bytes.npy"):
        assert np.array_equal(np.load(cut / name), np.load(whole / name)), name


def test_sigkill_leaves_a_folder_to_go_on_from(corpus, tmp_path):
    """A real kill -9, right after the first flush."""
    out = tmp_path / "labels"
    killer = (
        "import os, signal\n"
        "from llava_pat.labelling import store\n"
        "store._ROWS_BETWEEN_FLUSHES = 1\n"
        "remember = store._remember\n"
        "def kill(*a):\n    remember(*a)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "store._remember = kill\n"
        "import sys\nfrom llava_pat.labelling.command import main\nmain(sys.argv[1:])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", killer, *corpus.argv(out)], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert json.loads((out / "progress.json").read_text()) == {"rows": 2}
    assert main(corpus.argv(out)) == 0
    other = tmp_path / "other"
    assert main(corpus.argv(other)) == 0
    assert np.array_equal(np.load(out / "words.npy"), np.load(other / "words.npy"))


def test_done_is_said_and_other_labels_are_refused(corpus, tmp_path, capsys):
    out = tmp_path / "labels"
    assert main(corpus.argv(out)) == 0
    before = (out / "words.npy").stat().st_mtime_ns
    assert main(corpus.argv(out)) == 0
    assert "holds these labels already" in capsys.readouterr().out
    assert main(corpus.argv(out, sign=-1)) == 2
    assert "holds other labels (sign: 1 there, -1 now). Delete it" in capsys.readouterr().err
    copy = write_clip(tmp_path / "clip")
    state = load_file(copy / "model.safetensors")
    state["vision_model.post_layernorm.bias"] += 1
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    assert main(corpus.argv(out, vision_tower=copy)) == 2
    assert "tower_sha256" in capsys.readouterr().err
    assert (out / "words.npy").stat().st_mtime_ns == before


def test_online_folder_has_no_label_files(corpus, tmp_path):
    out = tmp_path / "labels"
    assert main(corpus.argv(out, patch_words="online", centring="both")) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"meta.json", "word_list.json", "images.json", "word_means.npy", "report.json", "report.txt"}
    assert main(corpus.argv(out, patch_words="file", centring="both")) == 0, "and may be filled later"
    assert len(PatchWordsFolder(out)) == 7


def test_an_online_folder_that_was_cut_off_is_filled(corpus, tmp_path, monkeypatch):
    """Killed before its word means were there, with the report of an earlier --report_only beside it."""
    from llava_pat.labelling import command

    out, report = tmp_path / "labels", command._report
    assert main(corpus.argv(out, report_only=True)) == 0

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(corpus.argv(out, patch_words="online", centring="both"))
    monkeypatch.setattr(command, "_report", report)
    assert main(corpus.argv(out, patch_words="online", centring="both")) == 0
    assert (out / "word_means.npy").is_file()


def test_yaml_and_training_flags(corpus, tmp_path):
    """A training YAML is read for what concerns labels; so are training flags; a flag of the command itself wins."""
    config = tmp_path / "run.yaml"
    config.write_text(
        f"data_path: {corpus.folder / 'train.json'}\nimage_folder: {corpus.folder / 'images'}\n"
        f"vision_tower: {corpus.folder / 'clip'}\nlearning_rate: 1.0e-3\npatch_words_path: {tmp_path / 'elsewhere'}\n"
        "patch_words_args: {n: 4, sign: 1, min_count: 1}\n"
    )
    argv = ["--config", str(config), "--num_workers", "0", "--n", "2", "--for_training", "--alignment", "sea",
            "--patch_words_path", str(tmp_path / "labels"), "--learning_rate=3"]  # fmt: skip
    assert main(argv) == 0
    meta = load_meta(tmp_path / "labels")
    assert (meta.switches["n"], meta.switches["sign"], meta.switches["min_count"]) == (2, 1, 1)
    assert not (tmp_path / "elsewhere").exists()


def test_a_yaml_with_a_wrong_choice(corpus, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("patch_words: offline\n")
    assert main(["--config", str(tmp_path / "run.yaml"), *corpus.argv(tmp_path / "labels")]) == 2
    assert "patch_words is 'offline'; choose one of file, online" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("patch_words_args: 3", "patch_words_args is 3, expected a mapping of switches"),
        ("patch_words_args: [n]", "patch_words_args is ['n'], expected a mapping of switches"),
        ("image_folder: 3", "image_folder is 3, expected text"),
        ("report_images: 1.5", "report_images is 1.5, expected a whole number"),
        ("min_score: [1]", "min_score is [1], expected a number"),
        ("report_only: 3", "report_only is 3, expected true or false"),
    ],
)
def test_a_yaml_with_a_wrong_type(tmp_path, capsys, line, message):
    (tmp_path / "run.yaml").write_text(f"{line}\n")
    assert main(["--config", str(tmp_path / "run.yaml")]) == 2
    assert capsys.readouterr().err == f"error: --config {tmp_path / 'run.yaml'}: {message}\n"


def test_null_in_a_yaml_is_not_given(corpus, tmp_path):
    (tmp_path / "run.yaml").write_text("patch_words_args: null\nreport_images: null\nimage_aspect_ratio: null\n")
    argv = ["--config", str(tmp_path / "run.yaml"), *corpus.argv(tmp_path / "labels")]
    arguments = read_arguments(argv)
    assert (arguments.patch_words_args, arguments.report_images, arguments.image_aspect_ratio) == ({}, 500, "square")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_switches_that_are_no_mapping(corpus, tmp_path, capsys, text):
    with pytest.raises(SystemExit):
        main(corpus.argv(tmp_path / "labels", patch_words_args=text))
    assert "argument --patch_words_args" in capsys.readouterr().err


def test_words_without_tokens_are_reported(corpus, tmp_path, capsys):
    (tmp_path / "more.txt").write_text("\u200b\n")
    llm = ROOT / "tests" / "assets" / "llava_written" / "llm"
    argv = corpus.argv(tmp_path / "labels", report_only=True, extra_words=tmp_path / "more.txt", model_name_or_path=llm)
    assert main(argv) == 0
    assert "1 words have no tokens in the language model and are left out in training" in capsys.readouterr().out


def test_settings_of_a_given_list_are_no_switches(corpus, tmp_path):
    (tmp_path / "list.json").write_text('{"words": {"red": 1, "blue": 1}, "settings": {"n": 7, "by": "hand"}}')
    argv = corpus.argv(tmp_path / "labels", word_list=tmp_path / "list.json", min_count=None, n=2)
    assert main(argv) == 0
    switches = load_meta(tmp_path / "labels").switches
    assert (switches["n"], switches["by"]) == (2, "hand")


def test_extra_words_that_are_no_text(corpus, tmp_path, capsys):
    (tmp_path / "more.txt").write_bytes(b"red\xff")
    assert main(corpus.argv(tmp_path / "labels", extra_words=tmp_path / "more.txt")) == 2
    assert f"error: {tmp_path / 'more.txt'}: not UTF-8 text at byte 3" in capsys.readouterr().err


def test_labels_for_another_tower_of_the_same_grid(corpus, tmp_path, capsys):
    """DINOv2's crop, in the CLIP's pixels; another grid is refused."""
    from tests.models.tower_folders import write_tower

    dinov2 = write_tower("dinov2", tmp_path / "dinov2")  # 28 pixels in patches of 14: 2 x 2
    flags = {"vision_tower": dinov2, "patch_words_tower": corpus.folder / "clip"}
    assert main(corpus.argv(tmp_path / "labels", **flags)) == 2
    assert "sees 4 x 4 patches but" in capsys.readouterr().err
    small = write_clip(tmp_path / "small", side=32, patch=16)
    assert main(corpus.argv(tmp_path / "labels", **(flags | {"patch_words_tower": small}))) == 0
    assert load_meta(tmp_path / "labels").patches == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data_path": None}, "missing --data_path"),
        ({"sign": 0}, "sign of the labels is 0"),
        ({"patch_words_args": '{"colour": 1}'}, "patch_words_args has colour; its switches are n, sign"),
        ({"patch_words_args": '{"min_score": "high"}'}, "min_score of the labels is 'high'"),
        ({"min_count": None, "patch_words_args": '{"min_count": "5"}'}, "min_count is '5', expected at least 1"),
        ({"min_count": 99}, "0 words are left after"),
        ({"word_list": "nowhere.json", "min_count": None}, "nowhere.json: no such file"),
        ({"word_list": "nowhere.json"}, "--word_list nowhere.json and min_count: a list that is given is taken"),
        ({"vision_tower": "nowhere/at/all"}, "nowhere/at/all"),
        ({"image_folder": "nowhere"}, "image '0.png': nowhere/0.png cannot be read"),
        ({"regions_path": "nowhere"}, "nowhere: no such file"),
        ({"report_images": 0}, "--report_images and --batch_size must be at least 1"),
    ],
)
def test_bad_input_is_one_line(corpus, tmp_path, capsys, flags, message):
    assert main(corpus.argv(tmp_path / "labels", **flags)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "labels" / "words.npy").exists()


def test_a_folder_of_something_else(corpus, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(corpus.argv(tmp_path)) == 2
    assert "is not empty and holds no labels" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_full_disk(corpus, tmp_path, capsys, monkeypatch):
    from llava_pat.data import kept_folder

    monkeypatch.setattr(kept_folder.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 100))
    assert main(corpus.argv(tmp_path / "labels")) == 2
    assert "labels take 0.0 GB (7 images x 16 patches x 10 words) and the disk has 0.0 GB" in capsys.readouterr().err
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image(corpus, tmp_path, capsys, workers):
    """One line, also where another process read it."""
    folder = tmp_path / "images"
    shutil.copytree(corpus.folder / "images", folder)
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])
    assert main(corpus.argv(tmp_path / "labels", image_folder=folder, num_workers=workers)) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: image '3.png'") and "Traceback" not in error


def test_random_state_is_left_alone(corpus, tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert main(corpus.argv(tmp_path / "labels")) == 0
    assert torch.equal(torch.random.get_rng_state(), before)
