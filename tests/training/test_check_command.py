"""The check before training: every kind of broken file is found where it is, and what is odd but whole is accepted."""

from __future__ import annotations

import ast
import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_pat.data.check.findings import KINDS
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.geometry import CenterCrop, Pad
from llava_pat.data.records import load_records
from llava_pat.data.templates import get_template
from llava_pat.training.check_command import main
from llava_pat.training.consistency import check
from llava_pat.training.data_check import check_data
from llava_pat.training.finetune_arguments import parse_finetune
from llava_pat.training.flags import ConfigError
from llava_pat.training.parts import build_parts

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE = 112  # 64 patches of 14


def say(*turns: tuple[str, str]) -> list[dict]:
    return [{"from": role, "value": value} for role, value in turns]


CAPTION = say(("human", "<image>\nWhat is here?"), ("gpt", "a red circle"))


class Folder:
    """Images, records (one a line of the JSON list, the first on line 2) and regions that a test breaks."""

    def __init__(self, root: Path, tokenizer: Path) -> None:
        self.root, self.images, self.tokenizer = root, root / "images", tokenizer
        self.images.mkdir()
        self.records: list[object] = []
        self.regions: list[object] = []
        self.noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)

    def image(self, name: str, image: Image.Image | None = None, **save: object) -> Path:
        path = self.images / name
        (image or Image.fromarray(self.noise)).save(path, **save)
        return path

    def record(self, name: str | None, conversations: object = CAPTION, **more: object) -> int:
        """Adds a record; returns its line."""
        self.records.append({"id": f"r{len(self.records)}", "image": name, "conversations": conversations} | more)
        return len(self.records) + 1

    def region(self, image: str, label: str = "red circle", width: int = 60, height: int = 40, **region: object) -> int:
        region = region or {"bbox": [0, 0, 20, 40]}
        self.regions.append({"id": image, "image": image, "width": width, "height": height,
                             "regions": [{"label": label, **region}]})  # fmt: skip
        return len(self.regions)

    def write(self) -> Path:
        file = self.root / "records.json"
        file.write_text("[\n" + ",\n".join(map(json.dumps, self.records)) + "\n]\n")
        (self.root / "regions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.regions))
        return file

    def check(self, *flags: object, tokens: bool = True, status: int = 1, data: Path | None = None) -> dict:
        """Runs the command; returns its report."""
        words = ["--data_path", data or self.write(), "--image_folder", self.images, "--version", "v1"]
        words += ["--image_size", SIDE, "--report", self.root / "report.json"]
        words += ["--regions_path", self.root / "regions.jsonl"] if self.regions else []
        words += ["--model_name_or_path", self.tokenizer] if tokens else []
        assert main([str(word) for word in [*words, *flags]]) == status
        return json.loads((self.root / "report.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, Path(__file__).parents[1] / "assets" / "llava_written" / "llm")


def bomb() -> bytes:
    """A PNG whose header says 60,000 x 60,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def break_everything(folder: Folder) -> set[tuple[str, str, int]]:
    """One file of each kind of fault; returns what must be found: (kind, file, line)."""
    expected: set[tuple[str, str, int]] = set()

    def wrong(kind: str, line: int, file: str = "records.json") -> None:
        expected.add((kind, file, line))

    folder.image("good.png")
    folder.record("good.png")
    # images
    cut(folder.image("cut.jpg", quality=95))
    wrong("image_broken", folder.record("cut.jpg"))
    cut(folder.image("cut.png"))
    wrong("image_broken", folder.record("cut.png"))
    cut(folder.image("cut.gif", Image.fromarray(folder.noise).quantize()))
    wrong("image_broken", folder.record("cut.gif"))
    (folder.images / "empty.jpg").write_bytes(b"")
    wrong("image_broken", folder.record("empty.jpg"))
    (folder.images / "text.jpg").write_text("404 not found")
    wrong("image_broken", folder.record("text.jpg"))
    wrong("image_missing", folder.record("gone.jpg"))
    wrong("image_missing", folder.record("x" * 300 + ".jpg"))
    (folder.images / "bomb.png").write_bytes(bomb())
    wrong("image_too_large", folder.record("bomb.png"))
    outside = folder.root / "outside.png"
    shutil.copy(folder.images / "good.png", outside)
    wrong("path_leaves_folder", folder.record("../outside.png"))
    wrong("path_leaves_folder", folder.record(str(outside)))
    (folder.images / "link.png").symlink_to(outside)
    wrong("path_leaves_folder", folder.record("link.png"))
    wrong("path_leaves_folder", folder.record("nul\0.png"))
    # accepted, with a word
    buffer = io.BytesIO()
    Image.fromarray(folder.noise).save(buffer, "PNG")
    (folder.images / "png.jpg").write_bytes(buffer.getvalue())
    wrong("format_differs", folder.record("png.jpg"))
    folder.image("other.gif", Image.fromarray(folder.noise).quantize())
    wrong("other_extension", folder.record("other.jpg"))
    # records
    wrong("duplicate_id", folder.record("good.png", id="r0"))
    wrong("image_count", folder.record("good.png", say(("human", "<image><image>"), ("gpt", "two"))))
    wrong("unknown_role", folder.record("good.png", say(("user", "<image>"), ("gpt", "one"))))
    wrong("empty_conversation", folder.record("good.png", []))
    wrong("empty_answer", folder.record("good.png", say(("human", "<image>"), ("gpt", " "))))
    wrong("not_in_turn", folder.record("good.png", say(("human", "<image>"), ("human", "And?"), ("gpt", "one"))))
    wrong("unanswered", folder.record("good.png", say(("human", "<image>"), ("gpt", "one"), ("human", "And?"))))
    folder.records.append(["good.png"])
    wrong("no_object", len(folder.records) + 1)
    # tokens, at 512 positions
    wrong("nothing_to_learn", folder.record(None, say(("human", "red " * 600), ("gpt", "yes"))))
    late = say(("human", "red " * 600), ("gpt", "yes"), ("human", "<image>"), ("gpt", "no"))
    wrong("image_cut", folder.record("good.png", late))
    wrong("too_long", folder.record("good.png", say(("human", "<image>"), ("gpt", "red " * 600))))
    # regions; every image that is named below is whole
    full, none = [0, 60 * 40], [60 * 40]
    for name in ("a", "b", "c", "d", "e", "f", "g"):
        folder.image(f"{name}.png")
        folder.record(f"{name}.png")
    wrong("region_size", folder.region("a.png", width=61), "regions.jsonl")
    wrong("mask_empty", folder.region("b.png", segmentation={"size": [40, 60], "counts": none}), "regions.jsonl")
    wrong("mask_full", folder.region("c.png", segmentation={"size": [40, 60], "counts": full}), "regions.jsonl")
    wrong("empty_label", folder.region("d.png", label=" "), "regions.jsonl")
    wrong("label_without_tokens", folder.region("e.png", label="\u200b"), "regions.jsonl")
    wrong("bad_mask", folder.region("f.png", segmentation={"size": [40, 60], "counts": [1, 2]}), "regions.jsonl")
    wrong("mask_size", folder.region("g.png", segmentation={"size": [4, 6], "counts": [24]}), "regions.jsonl")
    wrong("region_unused", folder.region("nobody.png"), "regions.jsonl")
    return expected


def found(report: dict) -> list[tuple[str, str, int]]:
    return [(entry["kind"], Path(entry["file"]).name, entry["line"]) for entry in report["findings"]]


def test_every_fault_is_found_once_where_it_is(
    folder: Folder, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = break_everything(folder)
    report = folder.check("--model_max_length", 512)
    assert sorted(found(report)) == sorted(expected)
    assert len({kind for kind, _, _ in expected}) >= 15
    assert report["counts"]["image_broken"] == 5 and not report["training_starts"]
    printed = capsys.readouterr().out
    assert "training would stop" in printed and "image_too_large" in printed and "images/s" in printed
    alone = (folder.root / "report.json").read_bytes()
    for file in ("scan", "region_scan"):
        monkeypatch.setattr(f"llava_pat.data.check.{file}._BLOCK", 2)
    folder.check("--model_max_length", 512, "--num_workers", 2)
    assert (folder.root / "report.json").read_bytes() == alone


def test_odd_images_are_decoded_as_training_decodes_them(folder: Folder) -> None:
    noise = folder.noise
    grey = noise[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    odd = {
        "sixteen.png": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "cmyk.jpg": (Image.fromarray(noise).convert("CMYK"), {}),
        "turned.jpg": (Image.fromarray(noise), {"exif": exif}),
        "alpha.png": (Image.fromarray(np.dstack([grey, 255 - grey])), {}),
        "palette.gif": (Image.fromarray(noise).quantize(), {}),
        "rgba.webp": (Image.fromarray(noise).convert("RGBA"), {}),
    }
    for name, (image, save) in odd.items():
        folder.image(name, image, **save)
        folder.record(name)
        folder.region(name)
    report = folder.check(status=0)
    # nothing but two warnings: clipped at 255, and not turned
    assert sorted(report["counts"]) == ["exif_rotated", "sixteen_bit"]
    geometry = CenterCrop(SIDE, mean=MEAN, std=STD)
    dataset = LlavaDataset(load_records(folder.write()), folder.images, get_template("v1"), None, geometry, 14)
    for record in dataset.records:
        with Image.open(folder.images / record.images[0]) as image:
            as_llava = np.asarray(image.convert("RGB").resize((168, 112), Image.Resampling.BICUBIC)) / 255
        pixels, size = dataset._pixels(record, record.images[0])
        expected = (as_llava[:, 28:140] - MEAN) / STD
        assert np.allclose(pixels.permute(1, 2, 0).numpy(), expected, atol=1e-5) and size == (40, 60)


@pytest.mark.parametrize("end", ["", "]", '\n{"id": 3, "conv'])
def test_a_file_that_is_cut_off(folder: Folder, end: str) -> None:
    folder.image("good.png")
    folder.record("good.png")
    folder.record("gone.png")
    text = folder.write().read_text()
    file = folder.root / "cut.json"
    file.write_text(text.rstrip()[:-1].rstrip() + "," + end)
    report = folder.check(data=file, tokens=False)
    assert report["counts"] == {"bad_json": 1, "image_missing": 1}, "what stands before it is checked all the same"
    last = 4 if end.startswith("\n") else 3
    assert ("bad_json", "cut.json", last) in found(report)


def test_a_broken_line_of_jsonl_is_one_finding_among_others(folder: Folder) -> None:
    folder.image("good.png")
    for name in ("good.png", "gone.png"):
        folder.record(name)
    first, last = map(json.dumps, folder.records)
    file = folder.root / "lines.jsonl"
    file.write_text(f"{first}\n{{oops\n\n{last}\n")
    report = folder.check(data=file, tokens=False)
    assert found(report) == [("bad_json", "lines.jsonl", 2), ("image_missing", "lines.jsonl", 4)]


def test_lines_of_a_pretty_printed_list(folder: Folder) -> None:
    folder.image("good.png")
    folder.record("good.png")
    folder.record("gone.png")
    file = folder.root / "pretty.json"
    file.write_text(json.dumps(folder.records, indent=4))
    line = 1 + next(n for n, text in enumerate(file.read_text().splitlines()) if '"r1"' in text)
    assert found(folder.check(data=file, tokens=False)) == [("image_missing", "pretty.json", line - 1)]


def test_quick_reads_headers_alone(folder: Folder) -> None:
    cut(folder.image("cut.jpg", quality=95))
    folder.record("cut.jpg")
    folder.record("gone.jpg")
    assert folder.check("--quick", tokens=False)["counts"] == {"image_missing": 1}
    assert folder.check(tokens=False)["counts"] == {"image_missing": 1, "image_broken": 1}


def test_the_manifest_is_of_what_is_trained_on(folder: Folder) -> None:
    for name in ("a.png", "b.png"):
        folder.image(name)
        folder.record(name)
    folder.region("a.png")
    manifest = folder.check(status=0)["manifest"]
    folder.records.append({"id": "x", "conversations": say(("human", "Hi"), ("gpt", ""))})
    skip = ("--bad_records", "skip", "--max_bad_records", 0.5)
    assert folder.check(*skip, status=0)["manifest"] == manifest, "a record that is left out does not count"
    lines = folder.root / "lines.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in folder.records))
    assert folder.check(*skip, data=lines, status=0)["manifest"] == manifest, "JSONL or a list: the same data"
    pixels = folder.check(*skip, "--hash_images", status=0)["manifest"]
    changed = (folder.images / "b.png").read_bytes()[:-1] + b"!"  # of the end chunk's checksum: the same size
    (folder.images / "b.png").write_bytes(changed)
    assert folder.check(*skip, "--quick", status=0)["manifest"] == manifest
    assert folder.check(*skip, "--quick", "--hash_images", status=0)["manifest"] != pixels
    folder.regions[0]["regions"][0]["label"] = "blue circle"
    other = folder.check(*skip, "--quick", status=0)["manifest"]
    folder.records[0]["conversations"] = say(("human", "<image>"), ("gpt", "blue"))
    assert len({manifest, pixels, other, folder.check(*skip, "--quick", status=0)["manifest"]}) == 4


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "missing --data_path, --image_folder"),
        (("--data_path", "no.json", "--image_folder", "."), "no.json: no such file"),
        (("--data_path", "no.json", "--image_folder", "absent"), "--image_folder absent: no such folder"),
        (("--missing", "ignore"), "--missing"),
        (("--data_path", "a", "--image_folder", ".", "--max_missing", "-1"), "--max_missing -1.0"),
        (("--data_path", "a", "--image_folder", ".", "--num_workers", "0"), "--num_workers 0"),
        (("--config", "no.yaml"), "no.yaml: no such file"),
    ],
)
def test_a_command_that_cannot_be_done_has_status_2(capsys: pytest.CaptureFixture, flags: tuple, words: str) -> None:
    assert main(list(flags)) == 2
    assert words in capsys.readouterr().err


# ---- with training


def with_holes(world, tmp_path: Path) -> Path:
    """The world's images: one gone, one cut off in the middle, one under another extension."""
    images = Path(shutil.copytree(world.folder / "images", tmp_path / "images"))
    (images / "train-1.png").unlink()
    cut(images / "train-4.png")
    with Image.open(images / "train-7.png") as image:
        image.save(images / "train-7.webp", lossless=True)
    (images / "train-7.png").unlink()
    return images


def trained(world, tmp_path: Path, images: Path, **flags: object):
    flags |= {"version": "v1", "pretrain_mm_mlp_adapter": "none", "data_path": world.folder / "instruct.json"}
    flags |= {"image_folder": images, "eval_data_path": None, "eval_regions_path": None, "vocabulary_path": None}
    arguments = parse_finetune(world.argv(tmp_path / "llava-run", **flags))
    check(arguments)
    parts = build_parts(arguments)
    return parts, check_data(parts, arguments.data, main=True)


@pytest.mark.parametrize("missing", ["skip", "blank"])
def test_the_command_keeps_what_training_keeps(world, tmp_path: Path, missing: str) -> None:
    images = with_holes(world, tmp_path)
    parts, kept = trained(world, tmp_path, images, missing=missing, max_missing=2)
    report = tmp_path / "report.json"
    flags = {
        "stage": 2, "data_path": world.folder / "instruct.json", "image_folder": images, "missing": missing,
        "max_missing": 2, "regions_path": world.folder / "regions.jsonl", "model_name_or_path": world.folder / "llm",
        "vision_tower": world.folder / "clip", "report": report, "image_aspect_ratio": "square",
    }  # fmt: skip
    assert main([f"--{name}={value}" for name, value in flags.items()]) == 0
    content = json.loads(report.read_text())
    raw = json.loads((world.folder / "instruct.json").read_text())
    expected = [entry["id"] for place, entry in enumerate(raw) if place not in content["left_out"]]
    assert [record.id for record in kept.train.records] == expected
    assert content["manifest"] == kept.manifest
    lost = {"train-1.png", "train-4.png"}
    users = {entry["id"] for entry in raw if lost & set(np.atleast_1d(entry.get("image", [])))}
    assert users, "the world uses them"
    if missing == "skip":
        assert {entry["id"] for entry in raw} - set(expected) == users and not kept.train.blank
    else:
        assert len(expected) == len(raw) and set(content["blank"]) == kept.train.blank == lost
    samples = [kept.train[place] for place in range(len(kept.train))]  # nothing is missing any more
    for record, sample in zip(kept.train.records, samples, strict=True):
        for name, pixels, regions in zip(
            record.images, sample["pixel_values"], sample["regions"] or [None] * 9, strict=False
        ):
            if name in lost:
                assert regions is None and float(pixels.std((1, 2)).max()) < 1e-6
                assert float(pixels.abs().max()) < 0.02, "the mean colour is zero after normalisation"
    assert any("train-7.png" in record.images for record in kept.train.records)


def test_too_many_missing_stop_training_and_the_command(world, tmp_path: Path, capsys) -> None:
    images = with_holes(world, tmp_path)
    with pytest.raises(ConfigError, match=r"2 of 1\d images are missing or broken, more than --max_missing 0.1 allows: "
                       r"train-1\.png, train-4\.png\. Fetch"):  # fmt: skip
        trained(world, tmp_path, images, missing="skip", max_missing=0.1)
    words = ["--data_path", world.folder / "instruct.json", "--image_folder", images, "--missing", "blank"]
    capsys.readouterr()
    assert main([*map(str, words), "--max_missing", "1"]) == 1
    assert "2 of 1" in capsys.readouterr().out


def test_defaults_are_those_of_training(world, tmp_path: Path) -> None:
    from llava_pat.training.arguments import parse_pretrain
    from llava_pat.training.check_command import read_arguments

    for stage, parse in ((1, parse_pretrain), (2, parse_finetune)):
        words = ["--data_path", "x.json", "--image_folder", str(tmp_path), "--model_name_or_path", "m"]
        options = vars(read_arguments([*words, "--stage", str(stage)]))
        training = parse([*words, "--vision_tower", "v", "--output_dir", "llava-x", "--report_to", "none"])
        theirs = {name: value for part in training for name, value in vars(part).items()}
        for name in ("version", "image_aspect_ratio", "model_max_length", "bad_records", "max_bad_records", "missing",
                     "max_missing"):  # fmt: skip
            assert options[name] == theirs[name], (stage, name)


def test_every_kind_of_error_has_a_consequence() -> None:
    used = set()
    for source in (Path(__file__).parents[2] / "llava_pat" / "data").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "DataError":
                used |= {word.value for word in node.args[1:] if isinstance(word, ast.Constant)}
    assert used and used <= set(KINDS)


def test_pad_has_the_same_blank() -> None:
    square, pad = (kind(SIDE, mean=MEAN, std=STD).blank() for kind in (CenterCrop, Pad))
    assert square.shape == (3, SIDE, SIDE) and bool((square == pad).all()) and float(square.abs().max()) < 0.02
