"""The measuring run from its command line, its numbers against the trainer's probe, NumPy and hand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_pat.analysis.vocabulary import load_vocabulary
from llava_pat.data.collate import Collator
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.geometry import geometry_for
from llava_pat.data.records import load_records
from llava_pat.data.regions import load_regions
from llava_pat.data.templates import get_template
from llava_pat.data.tokenize import load_tokenizer
from llava_pat.evaluation.alignment import controls
from llava_pat.evaluation.alignment.command import main, parser
from llava_pat.models.checkpoint import save_projector
from llava_pat.models.from_folder import load_model
from llava_pat.models.llava_config import finetune_config
from llava_pat.models.llava_layout import save_llava
from llava_pat.models.projectors import build_projector
from llava_pat.training.measure import LABELLED_COVERAGE, Probe

WRITTEN = Path(__file__).parents[2] / "assets" / "llava_written"
CONTROLS = {"random_projector", "mean_word", "linear_ridge", "linear_procrustes"}


@pytest.fixture(scope="module")
def finished(scene, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("finished")
    assert main(scene.argv(out=out)) == 0
    return out, json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def held_out(scene):
    """The first checkpoint and its data, opened by other means than the run's."""
    loaded = load_model(scene.checkpoints[0], dtype=torch.float32)
    tokenizer = load_tokenizer(loaded.tokenizer_source)
    geometry = geometry_for("square", loaded.image_processor)
    records, regions = load_records(scene.folder / "val.json"), load_regions(scene.folder / "regions_val.jsonl")
    model = loaded.model
    dataset = LlavaDataset(
        records, scene.folder / "images", get_template("plain"), tokenizer, geometry, model.patch_size, regions
    )
    batch = Collator(model.num_patches, 0, 2048)([dataset[i] for i in range(len(dataset))])
    return model, tokenizer, regions, batch


def test_layout_of_what_is_written(finished, scene) -> None:
    out, content = finished
    assert set(content) == {"checkpoints", "baselines", "settings"}
    assert list(content["checkpoints"]) == ["one", "two"]
    assert set(content["baselines"]) == CONTROLS | {"mean_vector-of-one", "mean_vector-of-two"}
    settings = content["settings"]
    assert set(settings["rows"]) == set(content["checkpoints"]) | set(content["baselines"])
    assert settings["images"] == 8 and settings["grid"] == [8, 8] and settings["vocabulary_size"] == 6
    assert settings["command"][0] == "eval/alignment.py" and str(out) in settings["command"][-1]
    assert len(settings["hashes"]["data_path"]) == 64
    assert settings["rows"]["one"]["tokenizer_size"] == settings["rows"]["one"]["embeddings"] == 520
    for row, metrics in (content["checkpoints"] | content["baselines"]).items():
        assert all(isinstance(value, float) for value in metrics.values())
        with np.load(out / "data" / f"{row}.npz", allow_pickle=False) as arrays:
            assert arrays["rank_counts"].sum() == metrics["labelled_patches"] == settings["labelled_patches"]
            assert arrays["cosine_right"].sum() + arrays["cosine_wrong"].sum() == 6 * metrics["labelled_patches"]
            assert arrays["entropy_patches_image"].shape == (8,)
            assert arrays["spectrum_patches"].sum() == pytest.approx(1 if metrics["entropy_patches"] >= 0 else 0)
            assert arrays["ima"].shape == (3,)
    assert not list(out.rglob(".*")), "files written aside are left"


def test_same_numbers_as_the_trainers_probe(finished, held_out, scene) -> None:
    model, tokenizer, regions, batch = held_out
    probe = Probe.build(regions, load_vocabulary(scene.folder / "vocabulary.json"), tokenizer)
    expected = probe.measure(model, [batch])
    found = finished[1]["checkpoints"]["one"]
    shared = expected.keys() & found.keys()
    assert {"caption_loss", "patch_cosine", "hit_at_1", "hit_kind", "hit_label_at_1", "entropy_features"} <= shared
    assert {name: found[name] for name in shared} == pytest.approx({name: expected[name] for name in shared}, rel=1e-4)


def test_default_coverage_is_the_trainers() -> None:
    assert parser().parse_args(["x"]).min_coverage == LABELLED_COVERAGE


def test_measures_by_numpy(finished, held_out) -> None:
    out, content = finished
    model, tokenizer, _, batch = held_out
    with torch.inference_mode():
        features = model.encode_images(batch["pixel_values"])
        patches = model.project(features).double().numpy()
        table = model.embed_words(torch.arange(520)).double().numpy()
    found = content["checkpoints"]["one"]
    # TACS: the ten patches nearest to a token of the caption, the newline at its end left out
    units = patches / np.linalg.norm(patches, axis=-1, keepdims=True)
    scores = []
    for image, labels in enumerate(batch["labels"]):
        ids = [i for i in labels.tolist() if i >= 0 and tokenizer.decode([i]).strip()]
        words = table[ids] / np.linalg.norm(table[ids], axis=-1, keepdims=True)
        scores.append(np.sort((units[image] @ words.T).max(-1))[-10:].mean())
    assert found["tacs"] == pytest.approx(np.mean(scores), rel=1e-4)
    # every patch is sampled here: the distance is over all of them
    pieces = [
        i for i, piece in enumerate(tokenizer.convert_ids_to_tokens(range(520)))
        if re.fullmatch("▁[a-z]{2,}|▁[ai]", piece)
    ]  # fmt: skip
    assert content["settings"]["word_pieces"] >= len(pieces) > 20
    flat = patches.reshape(-1, 128)
    assert found["visual_norm"] == pytest.approx(np.linalg.norm(flat, axis=-1).mean(), rel=1e-4)
    if content["settings"]["word_pieces"] == len(pieces):
        distance = np.linalg.norm(flat[:, None] - table[pieces], axis=-1).min(-1).mean()
        assert found["modality_distance"] == pytest.approx(distance, rel=1e-4)
    # IMA of the input: the mean patch of each image against the mean of its caption's embeddings
    texts = [table[[i for i in labels.tolist() if i >= 0]].mean(0) for labels in batch["labels"]]
    visual, text = patches.mean((0, 1)), np.mean(texts, axis=0)
    assert found["ima_first"] == pytest.approx(visual @ text / np.linalg.norm(visual) / np.linalg.norm(text), abs=1e-4)
    with np.load(out / "data" / "one.npz") as arrays:
        gram = units[0].T @ units[0] / 64
        values = np.linalg.eigvalsh(gram).clip(1e-300)
        assert arrays["entropy_patches_image"][0] == pytest.approx(-(values * np.log(values)).sum(), rel=1e-4)


def test_controls_are_what_they_say(finished, held_out) -> None:
    content = finished[1]
    rows = content["baselines"]
    for row in ("mean_word", "mean_vector-of-one", "mean_vector-of-two"):
        assert rows[row]["entropy_patches"] == pytest.approx(0, abs=1e-6)
        assert rows[row]["hit_at_1"] < 1
    one = content["checkpoints"]["one"]
    assert {rows[row]["entropy_features"] for row in rows} == {one["entropy_features"]}
    assert rows["linear_ridge"]["patch_cosine"] > max(one["patch_cosine"], rows["random_projector"]["patch_cosine"])
    assert content["settings"]["fit_patches"] > 20 and content["settings"]["fit_images"] == 6
    model = held_out[0]
    renewed = controls.renew_projector(model.projector, seed=3)
    assert [tensor.shape for tensor in renewed.state_dict().values()] == [
        tensor.shape for tensor in model.projector.state_dict().values()
    ]
    again, other = controls.renew_projector(model.projector, 3), controls.renew_projector(model.projector, 4)
    assert torch.equal(renewed[0].weight, again[0].weight) and not torch.equal(renewed[0].weight, other[0].weight)
    assert not torch.equal(renewed[0].weight, model.projector[0].weight)


def test_batches_and_order_do_not_matter(finished, scene, tmp_path: Path) -> None:
    assert main(scene.argv(*scene.checkpoints[::-1], out=tmp_path, batch_size=8)) == 0
    again = json.loads((tmp_path / "metrics.json").read_text())["checkpoints"]
    for row, metrics in finished[1]["checkpoints"].items():
        assert again[row] == pytest.approx(metrics, rel=1e-4, abs=1e-6), row


def test_pictures(finished) -> None:
    out, _ = finished
    pages = [json.loads((out / "data" / f"{row}-pictures.json").read_text()) for row in ("one", "two")]
    first, second = (page["images"] for page in pages)
    assert [entry["image"] for entry in first] == [entry["image"] for entry in second] and len(first) == 2
    words, size = pages[0]["words"], pages[0]["vocabulary_size"]
    assert words[:size] == ["square", "circle", "ring", "red", "green", "blue"] and len(set(words)) == len(words)
    with np.load(out / "data" / "one-pictures.npz", allow_pickle=False) as arrays:
        for number, entry in enumerate(first):
            pixels, masks = arrays[f"pixels_{number}"], arrays[f"masks_{number}"]
            assert pixels.shape == (112, 112, 3) and masks.shape[1:] == (112, 112)
            assert masks.shape[0] == len(entry["regions"]) > 0
            for mask, region in zip(masks, entry["regions"], strict=True):
                # the boxes are painted in their colour, so mask and pixels agree where none lies over another
                colour = {"red": 0, "green": 1, "blue": 2}[region["label"].split()[0]]
                if mask.sum() and not (masks.sum(0)[mask] > 1).any():
                    assert pixels[mask].mean(0).argmax() == colour
            assert arrays[f"cosine_{number}"].shape == (64, len(words))
            nearest = arrays[f"cosine_{number}"][:, :size].astype(float)
            picked = nearest[np.arange(64), arrays[f"nearest_entry_{number}"]]
            assert (picked >= nearest.max(-1) - 1e-2).all()
            assert arrays[f"nearest_words_{number}"].shape == arrays[f"nearest_cosine_{number}"].shape == (64, 5)
            for decomposition in entry["decompositions"]:
                assert len(decomposition["atoms"]) == len(decomposition["explained"]) >= 1
                assert all(atom["coefficient"] >= 0 for atom in decomposition["atoms"])
                assert {label for label in decomposition["labels"]} <= {r["label"] for r in entry["regions"]}


def test_the_report_is_drawn(scene, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    assert main(scene.argv(scene.checkpoints[0], out=tmp_path, no_report=None)) == 0
    assert (tmp_path / "report.html").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "linear_ridge" in printed and str(tmp_path / "report.html") in printed


def test_without_regions(scene, tmp_path: Path) -> None:
    flags = {"regions_path": "none", "fit_regions_path": "none", "language_images": 0}
    assert main(scene.argv(scene.checkpoints[0], out=tmp_path, **flags)) == 0
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert set(content["baselines"]) == {"random_projector", "mean_vector"}
    found = content["checkpoints"]["one"]
    assert "patch_cosine" not in found and "caption_loss" not in found and found["tacs"] and found["entropy_patches"]


def test_every_layout(scene, tmp_path: Path) -> None:
    """The same weights as stage-1, LLaVA and llava-hf folders: the same numbers, and one set of controls."""
    from llava_pat.convert.command import main as convert

    loaded = load_model(scene.checkpoints[0], dtype=torch.float32)
    config = finetune_config(loaded.model.llm.config, vision_tower=str(WRITTEN / "clip"), vision_width=64,
                             image_aspect_ratio="square")  # fmt: skip
    whole = tmp_path / "llava-whole"
    save_llava(loaded.model, whole, config, tokenizer_source=WRITTEN / "llm", dtype=None)
    assert convert([str(whole), str(tmp_path / "hf")]) in (0, None)
    folders = [scene.checkpoints[0], whole, tmp_path / "hf"]
    assert main(scene.argv(*folders, out=tmp_path / "out")) == 0
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    one, llava, hf = content["checkpoints"].values()
    assert set(content["baselines"]) == CONTROLS | {f"mean_vector-of-{row}" for row in content["checkpoints"]}
    assert llava == pytest.approx(one, rel=1e-4, abs=1e-6)
    for metrics in (one, hf):
        metrics.pop("caption_loss")  # llava-hf has rows behind the vocabulary, which take their share of the softmax
    assert hf == pytest.approx(one, rel=1e-3, abs=1e-5)


def test_controls_are_of_their_own_language_model(scene, tmp_path: Path) -> None:
    """Fine-tuning that leaves the words' vectors alone (as LoRA does) still changes the controls' caption loss."""
    loaded = load_model(scene.checkpoints[0], dtype=torch.float32)
    loaded.model.llm.get_decoder().layers[0].mlp.down_proj.weight.data.mul_(-3)
    config = finetune_config(loaded.model.llm.config, vision_tower=str(WRITTEN / "clip"), vision_width=64,
                             image_aspect_ratio="square")  # fmt: skip
    save_llava(loaded.model, tmp_path / "llava-tuned", config, tokenizer_source=WRITTEN / "llm", dtype=None)
    assert main(scene.argv(scene.checkpoints[0], tmp_path / "llava-tuned", out=tmp_path / "out", pictures=0)) == 0
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["baselines"]
    before, after = (rows[row] for row in ("random_projector", "random_projector-of-llava-tuned"))
    assert after["patch_cosine"] == pytest.approx(before["patch_cosine"], abs=1e-6)
    assert after["caption_loss"] != pytest.approx(before["caption_loss"], abs=1e-3)


def test_one_data_file_is_shared_out(scene, tmp_path: Path) -> None:
    """Without --fit_data_path the controls are fitted on what --limit leaves."""
    flags = dict.fromkeys(("fit_data_path", "fit_image_folder", "fit_regions_path", "vocabulary_path"))
    assert main(scene.argv(scene.checkpoints[0], out=tmp_path, limit=5, language_images=0, **flags)) == 0
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["settings"]["images"] == 5 and content["settings"]["fit_images"] == 3
    assert "linear_ridge" in content["baselines"] and content["settings"]["vocabulary_size"] < 10


def test_patches_that_are_not_finite_are_named(scene, tmp_path: Path, capsys, make_stage1) -> None:
    folder = tmp_path / "diverged"
    make_stage1(folder, seed=0)
    projector = build_projector("mlp2x_gelu", 64, 128)
    projector[2].bias.data[5] = float("nan")
    save_projector(projector, folder)
    message = refused(scene, tmp_path / "out", capsys, folder)
    assert "diverged" in message and "NaN" in message


@pytest.mark.parametrize(
    ("words", "flags", "expected"),
    [
        ([WRITTEN / "llm"], {}, r"no checkpoint with a projector: .*llm.*no mm_\* keys"),
        (["/nowhere/at/all"], {}, r"/nowhere/at/all"),
        ([], {"limit": 0}, r"--limit 0: must be at least 1"),
        ([], {"device": "quantum"}, r"--device quantum: "),
        ([], {"fit_data_path": None, "fit_regions_path": None}, r"val.json: all its images are measured.*--limit"),
        ([], {"min_coverage": 2}, r"--min_coverage 2.0"),
        ([], {"data_path": "/nowhere.json"}, r"/nowhere.json: no such file"),
        ([], {"template": "v1_nonsense"}, r"v1_nonsense"),
        ([], {"base": WRITTEN / "clip"}, r"one cannot be loaded: .*CLIPVisionConfig"),
    ],
)
def test_refusals(scene, tmp_path: Path, capsys, words, flags, expected) -> None:
    assert main(scene.argv(*words, out=tmp_path / "out", **flags)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and re.search(expected, message), message
    assert not (tmp_path / "out" / "metrics.json").exists()


def refused(scene, out: Path, capsys, *words: object, **flags: object) -> str:
    capsys.readouterr()
    assert main(scene.argv(*words, out=out, **flags)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_a_checkpoint_given_twice(scene, tmp_path: Path, capsys) -> None:
    assert "given twice" in refused(scene, tmp_path, capsys, scene.checkpoints[0], f"{scene.checkpoints[0]}/")


def test_a_vocabulary_of_other_things(scene, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"animal": ["dog", "cat"]}))
    message = refused(scene, tmp_path / "out", capsys, vocabulary_path=other)
    assert "none of its 2 words" in message and "take the vocabulary of these labels" in message


def test_a_word_that_tokenises_to_nothing(scene, tmp_path: Path, capsys, monkeypatch) -> None:
    from llava_pat.data import words

    file = tmp_path / "words.json"
    file.write_text(json.dumps({"kind": ["square", "circle", "mute"]}))
    real = words.label_tokens

    def deaf(label, tokenizer, where):  # a byte-fallback tokenizer has tokens for everything
        return real(" " if label == "mute" else label, tokenizer, where)

    monkeypatch.setattr(words, "label_tokens", deaf)
    message = refused(scene, tmp_path / "out", capsys, vocabulary_path=file)
    assert "words.json" in message and "no tokens" in message


def test_a_tokenizer_of_another_size(scene, tmp_path: Path, capsys) -> None:
    """More ids than the language model has embeddings."""
    base = tmp_path / "llm"
    shutil.copytree(WRITTEN / "llm", base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    added = {str(520 + i): {"content": f"<extra{i}>", "special": True, "lstrip": False, "rstrip": False,
             "normalized": False, "single_word": False} for i in range(3)}  # fmt: skip
    settings["added_tokens_decoder"] = settings.get("added_tokens_decoder", {}) | added
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    message = refused(scene, tmp_path / "out", capsys, scene.checkpoints[0], base=base)
    assert "523 ids" in message and "520 embeddings" in message


def test_a_projector_that_is_missing(scene, tmp_path: Path, capsys, make_stage1) -> None:
    folder = tmp_path / "bare"
    make_stage1(folder, seed=0)
    for file in folder.glob("mm_projector*"):
        file.unlink()
    assert "no checkpoint with a projector" in refused(scene, tmp_path / "out", capsys, folder)


def test_an_image_that_is_missing_is_named_with_its_record(scene, tmp_path: Path, capsys) -> None:
    records = json.loads((scene.folder / "val.json").read_text())
    records[2]["image"] = "gone.png"
    (tmp_path / "val.json").write_text(json.dumps(records))
    message = refused(scene, tmp_path / "out", capsys, data_path=tmp_path / "val.json")
    assert "record 2" in message and "gone.png" in message


def test_regions_of_other_images(scene, tmp_path: Path, capsys) -> None:
    message = refused(scene, tmp_path / "out", capsys, regions_path=scene.folder / "regions_train.jsonl")
    assert "annotates 5 images" in message and "none of the 8" in message
