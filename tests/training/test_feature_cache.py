"""A frozen tower's features from a folder: whole runs are those without it, and what does not fit is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llava_pat.data import feature_meta, feature_store, kept_folder
from llava_pat.models.towers import VisionTower
from llava_pat.training import feature_cache
from llava_pat.training.flags import ConfigError
from llava_pat.training.launch import run
from llava_pat.training.stages import finetune, pretrain
from tests.training.world import ROOT

POSITIONS, WIDTH = 16, 16


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Five images a shard: 12 training images in three, 5 held-out ones in one."""
    monkeypatch.setattr(feature_meta, "_SHARD_ROWS", 5)


@pytest.fixture
def counted(monkeypatch):
    """How many images the tower, and PIL for training, have seen."""
    from llava_pat.data.geometry import Geometry

    seen = {"tower": 0, "decoded": 0}
    forward, pixels = VisionTower.forward, Geometry.pixels

    def count_tower(self, images, *rest):
        seen["tower"] += len(images)
        return forward(self, images, *rest)

    def count_pixels(self, image):
        seen["decoded"] += 1
        return pixels(self, image)

    monkeypatch.setattr(VisionTower, "forward", count_tower)
    monkeypatch.setattr(Geometry, "pixels", count_pixels)
    return seen


@pytest.fixture
def refused(world, tmp_path, capsys):
    """The message of a stage-1 run on this cache that ends with status 2 before the first step."""

    def attempt(cache: Path, **flags):
        out = tmp_path / "llava-refused"
        shutil.rmtree(out, ignore_errors=True)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run(lambda: pretrain(world.argv(out, feature_cache=cache, **flags)))
        printed = capsys.readouterr()
        assert exit_.value.code == 2 and "step 1/" not in printed.out
        return printed.err.split("error: ", 1)[1]

    return attempt


@pytest.fixture(scope="module")
def made_once(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    flags = {"feature_cache": folder / "cache", "feature_cache_dtype": "float32", "max_steps": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_meta, "_SHARD_ROWS", 5)
        pretrain(world.argv(folder / "llava-filled", **flags))
    return folder / "cache"


@pytest.fixture(scope="module")
def without(world, tmp_path_factory):
    """The metrics of a run that has no cache."""
    return pretrain(world.argv(tmp_path_factory.mktemp("without") / "llava-run"))


@pytest.fixture
def filled(made_once, tmp_path):
    """A cache as float32 of the stage-1 world, to be spoilt."""
    return Path(shutil.copytree(made_once, tmp_path / "cache"))


def result(out: Path) -> tuple[list[dict], dict, bytes]:
    """Log lines and measures without clocks, and the projector's bytes."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    timed = ("samples_per_second", "runtime", "steps_per_second")
    lines = [{k: v for k, v in line.items() if not k.endswith(timed)} for line in history]
    metrics = json.loads((out / "metrics.json").read_text())
    measures = {k: v for k, v in metrics.items() if k.endswith(("_init", "_final"))}
    return lines, measures, (out / "mm_projector.safetensors").read_bytes()


def files(cache: Path) -> dict[str, int]:
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}


# ---- equal to a run without it


@pytest.mark.parametrize("batch", [1, 4])
def test_float32_changes_nothing(world, tmp_path, counted, batch: int) -> None:
    """Loss, gradient norms, measures and projector to the bit, with the batches of the tower being others."""
    flags = {
        "per_device_train_batch_size": batch, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2,
        "num_train_epochs": 2,
    }  # fmt: skip
    cached = flags | {"feature_cache": tmp_path / "cache", "feature_cache_dtype": "float32"}
    pretrain(world.argv(tmp_path / "llava-without", **flags))
    counted |= {"tower": 0, "decoded": 0}
    pretrain(world.argv(tmp_path / "llava-filling", **cached))
    assert counted["tower"] == 12 + 5 + 1, "each image once, and an empty one that tells the shape"
    made = files(tmp_path / "cache")
    counted |= {"tower": 0, "decoded": 0}
    metrics = pretrain(world.argv(tmp_path / "llava-reading", **cached, dataloader_num_workers=1))
    assert counted == {"tower": 1, "decoded": 1}
    assert files(tmp_path / "cache") == made and len(made) == 4
    expected = result(tmp_path / "llava-without")
    assert result(tmp_path / "llava-filling") == expected and result(tmp_path / "llava-reading") == expected
    assert metrics["feature_cache_error_max"] == metrics["feature_cache_error_mean"] == 0
    assert metrics["feature_cache_bytes"] == 17 * POSITIONS * WIDTH * 4


def test_five_objectives_pay_for_the_tower_once(world, tmp_path, counted) -> None:
    """Other objectives, captions, regions, seeds and orders of the records read the same features."""
    cache = tmp_path / "cache"
    pretrain(world.argv(tmp_path / "llava-0", feature_cache=cache, max_steps=1))
    records = json.loads((world.folder / "train.json").read_text())
    for record in records:
        record["conversations"][1]["value"] = "something else"
    (tmp_path / "other.json").write_text(json.dumps(records[::-1][:7]))
    counted |= {"tower": 0}
    sea = {"alignment": "sea", "alignment_args": '{"labels": "regions"}'}
    for number, flags in enumerate(
        ({"alignment": "none", "regions_path": None}, sea, {"data_path": tmp_path / "other.json"}, {"seed": 5}), 1
    ):
        pretrain(world.argv(tmp_path / f"llava-{number}", feature_cache=cache, **flags, max_steps=1))
    assert counted["tower"] == 4, "an empty image a run"


def test_half_precision_changes_nothing_where_the_tower_computes_in_it(world, tmp_path) -> None:
    """bf16 features of a bf16 tower are stored as they are."""
    flags = {"bf16": True, "per_device_train_batch_size": 2}
    metrics = pretrain(world.argv(tmp_path / "llava-cached", feature_cache=tmp_path / "cache", **flags))
    pretrain(world.argv(tmp_path / "llava-without", **flags))
    assert metrics["feature_cache_dtype"] == "bfloat16" and metrics["feature_cache_error_max"] == 0
    assert result(tmp_path / "llava-cached") == result(tmp_path / "llava-without")


@pytest.mark.parametrize(
    ("dtype", "unit", "bytes_of_image"),
    [
        ("bfloat16", 2**-8, POSITIONS * WIDTH * 2),
        ("float16", 2**-11, POSITIONS * WIDTH * 2),
        ("int8", 0.5 / 127 * WIDTH**0.5, POSITIONS * (WIDTH + 4)),  # half a step in every value, at worst
    ],
)
def test_the_error_is_what_is_said(world, tmp_path, make_trainer, without, dtype, unit, bytes_of_image) -> None:
    """Reported errors against errors computed here, image by image; they bound the change of the run."""
    cache = tmp_path / "cache"
    flags = {"feature_cache": cache, "feature_cache_dtype": dtype}
    metrics = pretrain(world.argv(tmp_path / "llava-cached", **flags))
    assert metrics["feature_cache_bytes"] == 17 * bytes_of_image
    made = make_trainer()
    model, errors = made.parts.model, []
    for name, dataset in (("train", made.parts.train), ("held_out", made.parts.held_out)):
        store = feature_store.FeatureStore.open(cache / name)
        for sample, record in zip(dataset, dataset.records, strict=True):
            given = model.encode_images(sample["pixel_values"][0][None])[0]
            stored = store.features(record.images, torch.float32, "")[0]
            errors.append((stored - given).norm(dim=-1) / given.norm(dim=-1))
    errors = torch.stack(errors)
    assert metrics["feature_cache_error_mean"] == pytest.approx(errors.mean().item(), rel=1e-4)
    assert metrics["feature_cache_error_max"] == pytest.approx(errors.max().item(), rel=1e-4)
    assert 0.05 * unit < metrics["feature_cache_error_mean"] < metrics["feature_cache_error_max"] < unit
    assert metrics["caption_loss_final"] != without["caption_loss_final"]
    assert metrics["caption_loss_final"] == pytest.approx(without["caption_loss_final"], rel=5 * unit)


def test_stage_2_with_text_and_several_images(world, tmp_path, counted) -> None:
    """Records of one image, two, and none; grouped by modality; LoRA over a frozen tower. To the bit."""
    flags = {"lora_enable": True, "lora_r": 4, "per_device_train_batch_size": 2, "logging_steps": 1}
    cached = flags | {"feature_cache": tmp_path / "cache", "feature_cache_dtype": "float32"}
    names = {name for r in json.loads((world.folder / "instruct.json").read_text()) if (images := r.get("image"))
             for name in ([images] if isinstance(images, str) else images)}  # fmt: skip
    finetune(world.finetune_argv(tmp_path / "llava-lora-filling", **cached))
    counted |= {"tower": 0, "decoded": 0}
    finetune(world.finetune_argv(tmp_path / "llava-lora-cached", **cached))
    assert counted == {"tower": 1, "decoded": 1}
    finetune(world.finetune_argv(tmp_path / "llava-lora-without", **flags))
    stored = json.loads((tmp_path / "cache" / "train" / "images.json").read_text())
    assert set(stored) == names and len(stored) == len(names)
    for name in ("adapter_model.safetensors", "mm_projector.safetensors"):
        same = [(tmp_path / f"llava-lora-{run_}" / name).read_bytes() for run_ in ("filling", "cached", "without")]
        assert same[0] == same[1] == same[2]


def test_empty_images_in_the_place_of_missing_ones(world, tmp_path, refused) -> None:
    """--missing blank: cached as well, and stale when the file comes back."""
    images = tmp_path / "images"
    shutil.copytree(world.folder / "images", images)
    gone = images / "train-3.png"
    gone.rename(tmp_path / "aside.png")
    flags = {"image_folder": images, "missing": "blank", "max_missing": 1}
    cached = flags | {"feature_cache_dtype": "float32"}
    pretrain(world.argv(tmp_path / "llava-cached", feature_cache=tmp_path / "cache", **cached))
    pretrain(world.argv(tmp_path / "llava-without", **flags))
    assert result(tmp_path / "llava-cached") == result(tmp_path / "llava-without")
    (tmp_path / "aside.png").rename(gone)
    message = refused(tmp_path / "cache", **cached)
    assert f"{gone} (missing (an empty image took its place) then, a file now)" in message
    assert "features-00000.safetensors" in message


# ---- refused


def test_another_tower(world, filled, refused, tmp_path) -> None:
    """Weights count, not the folder's name."""
    other = tmp_path / "clip"
    shutil.copytree(world.folder / "clip", other)
    flags = {"feature_cache_dtype": "float32", "vision_tower": other}
    pretrain(world.argv(tmp_path / "llava-copy", feature_cache=filled, **flags, max_steps=1))
    state = load_file(other / "model.safetensors")
    name = next(name for name in state if "layers.0" in name and "weight" in name)
    state[name] += 1e-3
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    message = refused(filled, **flags)
    assert "features of something else (tower_sha256: " in message
    assert message.count("there, ") == 1 and "Delete it, or give another --feature_cache" in message


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"image_aspect_ratio": "pad"}, "geometry.kind: 'CenterCrop' there, 'Pad' now"),
        ({"mm_vision_select_layer": -1}, "layer: 1 there, 2 now"),
        ({"feature_cache_dtype": "int8"}, "dtype: 'float32' there, 'int8' now"),
        ({"bf16": True}, "precision: 'float32' there, 'bfloat16' now"),
    ],
)
def test_another_geometry_layer_or_dtype(filled, refused, flags, named) -> None:
    assert named in refused(filled, **({"feature_cache_dtype": "float32"} | flags))


def test_other_colours(world, filled, refused, tmp_path) -> None:
    other = tmp_path / "clip"
    shutil.copytree(world.folder / "clip", other)
    processor = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(processor | {"image_mean": [0.1, 0.2, 0.3]}))
    message = refused(filled, feature_cache_dtype="float32", vision_tower=other)
    assert "(geometry.mean: [" in message and "[0.1, 0.2, 0.3] now)" in message


def test_other_images(world, filled, refused, tmp_path) -> None:
    flags = {"feature_cache_dtype": "float32"}
    message = refused(filled, data_path=world.folder / "val.json", regions_path=None, alignment="none", **flags)
    assert "of this run's 5 images 5 are not among them, such as 'val-0.png'" in message
    images = tmp_path / "images"
    shutil.copytree(world.folder / "images", images)  # the same bytes at another time: read, and found equal
    for path in images.iterdir():
        os.utime(path, ns=(1, 1))
    pretrain(world.argv(tmp_path / "llava-copy", feature_cache=filled, image_folder=images, **flags, max_steps=1))
    changed = images / "train-7.png"
    old = changed.read_bytes()
    with Image.open(changed) as image:
        size = image.size
    Image.new("RGB", size, (1, 2, 3)).save(changed)
    message = refused(filled, image_folder=images, **flags)
    assert "1 of 12 images are not the files" in message and f"{changed} ({len(old)} bytes then" in message
    assert "(features-00001.safetensors)" in message
    changed.write_bytes(changed.read_bytes().ljust(len(old), b"\0"))  # another image of as many bytes
    os.utime(changed, ns=(2, 2))
    assert "(sha256 " in refused(filled, image_folder=images, **flags)


def test_towers_that_train_and_labels_from_pixels(world, refused_finetune, refused, tmp_path) -> None:
    cache = tmp_path / "cache"
    assert "--unfreeze_mm_vision_tower True" in refused_finetune(feature_cache=cache, unfreeze_mm_vision_tower=True)
    message = refused(cache, alignment="sea", alignment_args=None, patch_words="online", patch_words_path=tmp_path)
    assert "labels are computed from pixels" in message
    assert not cache.exists()


# ---- the disk


def test_too_little_space(world, refused, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(kept_folder.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 8703))
    message = refused(tmp_path / "cache")
    assert "features take 8.7e-06 GB and the disk has 8.7e-06 GB free" in message, (
        "17 images x 16 x 16 x 2 bytes = 8704"
    )
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(kept_folder.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 8704))
    pretrain(world.argv(tmp_path / "llava-run", feature_cache=tmp_path / "cache", max_steps=1))


def test_a_disk_that_fills_up(world, refused, tmp_path, monkeypatch) -> None:
    """The second shard does not fit: the first is kept, nothing half is, and the next run goes on."""
    written = []

    def save(tensors, path, metadata):
        if len(written) == 1:
            Path(path).write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        written.append(path)
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(feature_store, "save_file", save)
    message = refused(tmp_path / "cache")
    assert "features-00001.safetensors cannot be written (I/O error: No space left on device" in message
    assert "GB free" in message and "make room and start the run again" in message
    left = sorted(path.name for path in (tmp_path / "cache" / "train").iterdir())
    assert left == ["features-00000.safetensors", "images.json", "meta.json"]
    monkeypatch.undo()
    monkeypatch.setattr(feature_meta, "_SHARD_ROWS", 5)
    pretrain(world.argv(tmp_path / "llava-run", feature_cache=tmp_path / "cache", max_steps=1))
    assert len(files(tmp_path / "cache")) == 4


def test_kill_9_while_filling(world, tmp_path, refused, counted) -> None:
    """Dies while the second shard is being written; the next run makes that one and the rest, and only these."""
    cache, out = tmp_path / "cache", tmp_path / "llava-run"
    flags = {"feature_cache": cache, "feature_cache_dtype": "float32"}
    killer = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from llava_pat.data import feature_meta, feature_store\n"
        "feature_meta._SHARD_ROWS = 5\n"
        "save = feature_store.save_file\n"
        "def die(tensors, path, metadata):\n"
        "    save(tensors, path, metadata=metadata)\n"
        "    if metadata['features'].endswith(' 1'):\n"
        "        os.truncate(path, 100)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "feature_store.save_file = die\n"
        "from llava_pat.training.stages import pretrain\n"
        "pretrain(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", killer, *world.argv(out, **flags)]
    died = subprocess.run(command, env=world.environment(), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    left = sorted(path.name.rpartition(".")[0] for path in (cache / "train").iterdir())
    assert left == [".features-00001.safetensors", "features-00000", "images", "meta"]
    kept = files(cache)
    message = refused(cache, feature_cache_dtype="float32", data_path=_first(world, tmp_path, 6))
    assert "is not finished (1 of 3 shards) and is of 12 images, this run's are 6" in message
    half = next((cache / "train").glob(".features-00001*"))
    os.utime(half, (1, 1))  # long ago: nobody writes it any more
    counted |= {"tower": 0}
    pretrain(world.argv(out, **flags))
    assert counted["tower"] == 7 + 5 + 1 and not half.exists()
    assert kept.items() < files(cache).items() and len(files(cache)) == 4
    pretrain(world.argv(tmp_path / "llava-without"))
    assert result(out) == result(tmp_path / "llava-without")


def _first(world, tmp_path: Path, count: int) -> Path:
    records = json.loads((world.folder / "train.json").read_text())
    (tmp_path / "first.json").write_text(json.dumps(records[:count]))
    return tmp_path / "first.json"


def test_damaged_folders(world, filled, refused, tmp_path) -> None:
    flags = {"feature_cache_dtype": "float32"}
    train = filled / "train"
    shard, other = train / "features-00001.safetensors", train / "features-00000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    message = refused(filled, **flags)
    assert f"{shard}: cannot be read (" in message and "it alone is made anew" in message
    shard.write_bytes(other.read_bytes())
    assert f"{shard}: was not made for the meta.json beside it" in refused(filled, **flags)
    shard.unlink()
    pretrain(world.argv(tmp_path / "llava-run", feature_cache=filled, **flags, max_steps=1))
    assert shard.read_bytes() == whole
    (train / "images.json").write_text('["train-0.png"]')
    assert "is not the list of images that meta.json was written with" in refused(filled, **flags)
    meta = json.loads((train / "meta.json").read_text())
    for text, named in (("{", "cannot be read"), (json.dumps(meta | {"format": 9}), "not of format 1"),
                        (json.dumps(meta | {"rows": 3}), "expected")):  # fmt: skip
        (train / "meta.json").write_text(text)
        assert named in refused(filled, **flags)
    (train / "meta.json").unlink()
    assert "is not empty and holds no meta.json" in refused(filled, **flags)


@pytest.mark.parametrize(
    ("dtype", "value", "named"),
    [("float16", 1e5, "which float16 cannot hold; take bfloat16"), ("int8", float("nan"), "NaN or infinite")],
)
def test_features_that_cannot_be_stored(world, refused, tmp_path, dtype, value, named) -> None:
    tower = tmp_path / "clip"
    shutil.copytree(world.folder / "clip", tower)
    state = load_file(tower / "model.safetensors")
    state[next(name for name in state if name.endswith("pre_layrnorm.bias"))] += value
    save_file(state, tower / "model.safetensors", metadata={"format": "pt"})
    message = refused(tmp_path / "cache", vision_tower=tower, feature_cache_dtype=dtype)
    assert "of images 'train-0.png'" in message and named in message


def test_an_image_that_is_broken_inside(world, refused, tmp_path) -> None:
    """The check looks at a PNG's checksums; filling decodes all, in a worker, before the first step."""
    images = tmp_path / "images"
    shutil.copytree(world.folder / "images", images)
    broken = images / "train-9.png"
    no_pixels = b"IDAT" + bytes(20)  # a whole chunk, by its checksum
    chunk = struct.pack(">I", 20) + no_pixels + struct.pack(">I", zlib.crc32(no_pixels))
    broken.write_bytes(broken.read_bytes()[:33] + chunk + broken.read_bytes()[-12:])  # header, pixels, end
    message = refused(tmp_path / "cache", image_folder=images, dataloader_num_workers=1)
    assert f"image 'train-9.png': image {broken} cannot be read (" in message and "fetch it again" in message


# ---- ranks


def test_two_processes_fill_and_read(world, tmp_path) -> None:
    flags = {
        "feature_cache": tmp_path / "cache", "feature_cache_dtype": "float32", "global_batch_size": 4,
        "gradient_accumulation_steps": None, "per_device_train_batch_size": 2, "max_grad_norm": 0,
    }  # fmt: skip
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    wrapper = tmp_path / "two.py"
    wrapper.write_text(
        "import sys\nfrom llava_pat.data import feature_meta\nfeature_meta._SHARD_ROWS = 5\n"
        "from llava_pat.training.stages import pretrain\npretrain(sys.argv[1:])\n"
    )
    done = world.start(*launcher, wrapper, *world.argv(tmp_path / "llava-two", **flags), timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("are to be computed") == 2 and done.stdout.count("relative error") == 2
    made = files(tmp_path / "cache")
    assert len(made) == 4
    one = pretrain(world.argv(tmp_path / "llava-one", **flags))
    assert files(tmp_path / "cache") == made
    two = json.loads((tmp_path / "llava-two" / "metrics.json").read_text())
    assert one["caption_loss_final"] == pytest.approx(two["caption_loss_final"], rel=1e-4)
    assert two["feature_cache_bytes"] == 17 * POSITIONS * WIDTH * 4


def test_another_cache_on_a_rank_is_named(world, tmp_path, monkeypatch) -> None:
    """A folder of one machine's own disk: here another rank's answer is put beside this one's."""
    monkeypatch.setattr(feature_cache, "from_all", lambda metas: [metas, metas | {"train": "0" * 12}])
    with pytest.raises(ConfigError, match="--feature_cache is not the same folder on all ranks: the features of train"):
        pretrain(world.argv(tmp_path / "llava-run", feature_cache=tmp_path / "cache"))
