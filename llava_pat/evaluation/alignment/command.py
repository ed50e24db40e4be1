"""`eval/alignment.py CKPT [CKPT ...]`: how near patches and words lie, before and after the projector; one report.

Everything that can be wrong with files and flags is looked for before the first model is loaded, and everything that
can be wrong with records, images and labels before the first measurement.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tqdm import tqdm

import llava_pat
from llava_pat.analysis.baselines import constant_patches
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.hashes import file_sha256
from llava_pat.evaluation.alignment import controls
from llava_pat.evaluation.alignment.files import DATA, METRICS, finite, git_commit, table, write_arrays, write_json
from llava_pat.evaluation.alignment.material import load_batches, read_material
from llava_pat.evaluation.alignment.measure import Measured, measure_rows
from llava_pat.evaluation.alignment.models import (
    Subject,
    fingerprint,
    name_rows,
    objective_of,
    open_subject,
    refuse_no_projector,
)
from llava_pat.evaluation.alignment.pictures import Pictures, choose_pictures
from llava_pat.evaluation.alignment.readings import Readings, read_with
from llava_pat.evaluation.alignment.report import render
from llava_pat.evaluation.alignment.views import Sampling
from llava_pat.evaluation.hashes import folder_hash
from llava_pat.evaluation.model import DTYPES
from llava_pat.pages import require_matplotlib
from llava_pat.types import DataError

logger = logging.getLogger(__name__)

PLAYGROUND = Path("playground/data")
NONE = "none"
_PLAYGROUND_FILES = {
    "data_path": "pretrain_val.json",
    "image_folder": "images",
    "regions_path": "regions_val.jsonl",
    "vocabulary_path": "vocabulary.json",
    "fit_data_path": "pretrain_train.json",
    "fit_image_folder": "images",
    "fit_regions_path": "regions_train.jsonl",
}
_LONGEST = 1000  # letters of an error

DESCRIPTION = """\
Measures how near projected patches lie to the words for what they show, on any number of checkpoints: stage-1 folders,
LLaVA's layout, llava-hf's, LoRA's. Writes OUT/metrics.json, OUT/data/, OUT/report.html and OUT/plots/. Rows of controls
(random projector, mean vectors, closed-form linear maps) are always measured beside them. docs/analysis.md defines
every number."""

EXAMPLES = """\
examples:
  python eval/alignment.py checkpoints/llava-v1.5-playground-pretrain-pat checkpoints/llava-v1.5-playground-pat
  python eval/alignment.py checkpoints/llava-v1.5-7b-pat --data_path coco_val.json --image_folder coco/val2017 \\
      --regions_path regions_val.jsonl --fit_data_path coco_train.json \\
      --fit_image_folder coco/train2017 --fit_regions_path regions_train.jsonl --limit 5000 --out reports/7b
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the report is written, 2 with one line on stderr when it is not."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    _fill_in(options)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        _check(options)
        print(f"written to {Run(options, words).measure()}", flush=True)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return 2
    return 0


class Run:
    """One call of the command: reads the files at birth, then measures one checkpoint after another."""

    def __init__(self, options: argparse.Namespace, words: Sequence[str]) -> None:
        if options.report:
            require_matplotlib()
        self.device = _device(options.device)
        refuse_no_projector(options.checkpoints)
        self.options, self.out = options, Path(options.out)
        names = name_rows(options.checkpoints, taken=controls.TITLES)
        self.rows = dict(zip(names, options.checkpoints, strict=True))
        self.material = read_material(
            options.data_path, options.image_folder, _path(options.regions_path), _path(options.vocabulary_path),
            options.limit, options.seed,
        )  # fmt: skip
        self.fitting = read_material(
            options.fit_data_path, options.fit_image_folder, _path(options.fit_regions_path), None, options.fit_limit,
            options.seed, without=self.material,
        )  # fmt: skip
        images = len(self.material.records)
        self.sampling = Sampling(
            options.seed, options.min_coverage, -(-options.sampled_patches // images),
            -(-options.decomposed_patches // images),
        )  # fmt: skip
        kind = options.dtype if options.dtype != "auto" else "fp32" if self.device.type == "cpu" else "fp16"
        self.dtype = DTYPES[kind]
        self.groups: dict[str, str] = {}  # fingerprint -> the first checkpoint that has it
        self.started = time.perf_counter()
        self.content: dict[str, Any] = {"checkpoints": {}, "baselines": {}, "settings": self._settings(words, kind)}

    def measure(self) -> Path:
        """All checkpoints, the table, the page. Returns the last file written."""
        for number, (row, folder) in enumerate(self.rows.items(), start=1):
            print(f"[{number}/{len(self.rows)}] {row}", flush=True)
            subject = open_subject(
                row, folder, base=self.options.base, vision_tower=self.options.vision_tower,
                template=self.options.template, dtype=self.dtype, device=self.device,
            )  # fmt: skip
            try:
                self._measure(subject)
            except DataError:
                raise
            except ValueError as error:  # of a measure: NaN or infinite patches, for instance
                raise ValueError(f"{folder}: {error}") from error
            self.content["settings"]["seconds"] = round(time.perf_counter() - self.started, 1)
            write_json(self.out / METRICS, self.content)
        print(f"\n{table(self.content)}\n", flush=True)
        return render(self.out) if self.options.report else self.out / METRICS

    def _measure(self, subject: Subject) -> None:
        options, model, row = self.options, subject.model, subject.row
        dataset, fitting = (
            material.dataset(model, subject.template, subject.tokenizer, subject.geometry)
            for material in (self.material, self.fitting)
        )
        for data in (dataset, fitting):
            data.check(model.num_patches, progress=False)
        readings = read_with(subject, self.material)
        key = fingerprint(subject, readings.piece_ids, readings.piece_words, readings.piece_vectors)
        is_new = key not in self.groups
        first = self.groups.setdefault(key, row)
        fitted = controls.fit_controls(
            subject, self._batches(fitting, subject, "fitting controls"), options.min_coverage, with_maps=is_new
        )
        rows = {row: model.project, self._name(controls.MEAN_VECTOR, row): constant_patches(fitted.mean_patch)}
        if is_new:
            shared = controls.control_rows(subject, fitted, options.seed)
            alone = len(self.groups) == 1
            rows |= {name if alone else f"{name}-of-{row}": project for name, project in shared.items()}
        pictures = Pictures(subject, readings, self.material, dataset, choose_pictures(self.material, options.pictures))
        found = measure_rows(
            subject, readings, rows, self._batches(dataset, subject, "measuring"), self.sampling,
            options.language_images, watch=[pictures],
        )  # fmt: skip
        pictures.save(self.out / DATA / row)
        self._describe(subject, readings, first, found[row], fitted)
        for name, measured in found.items():
            write_arrays(self.out / DATA / f"{name}.npz", measured.arrays)
            where = "checkpoints" if name == row else "baselines"
            self.content[where][name] = finite(measured.metrics)
            if name != row:
                kind = name.split("-of-")[0]
                self.content["settings"]["rows"][name] = {
                    "title": controls.TITLES[kind] + (f" of {row}" if "-of-" in name else ""),
                    "group": row,
                    "note": controls.NOTES[kind],
                }

    def _name(self, kind: str, row: str) -> str:
        """Of a control that every checkpoint has its own of."""
        return kind if len(self.rows) == 1 else f"{kind}-of-{row}"

    def _batches(self, dataset: LlavaDataset, subject: Subject, doing: str) -> tqdm:
        batches = load_batches(dataset, subject.model, self.options.batch_size, self.options.workers)
        return tqdm(batches, desc=f"  {doing}", unit="batch", disable=None, leave=False)

    def _describe(
        self, subject: Subject, readings: Readings, first: str, measured: Measured, fitted: controls.Fitted
    ) -> None:
        """What the report says about a checkpoint, and about the run as its first checkpoint has it."""
        settings, row = self.content["settings"], subject.row
        objective = objective_of(subject.folder)
        settings["rows"][row] = {
            "title": row,
            "path": subject.folder,
            **({} if objective is None else {"objective": objective}),
            "group": first,
            "note": f"{subject.loaded.kind} layout, image_aspect_ratio {subject.loaded.image_aspect_ratio}",
            "sha256": folder_hash(subject.folder),
            "language_model": subject.loaded.tokenizer_source,
            "vision_tower": subject.loaded.vision_tower,
            "tokenizer_size": len(subject.tokenizer),
            "embeddings": subject.model.vocab_size,
            "word_pieces": len(readings.piece_ids),
        }
        grid = subject.model.tower.grid
        for name, value in {
            "labelled_patches": int(measured.metrics.get("labelled_patches", 0)),
            "word_pieces": len(readings.piece_ids),
            "pieces_that_are_no_words": dict(readings.dropped_pieces),
            "grid": [grid, grid],
            "fit_images": fitted.images,
            "fit_patches": fitted.patches,
        }.items():
            settings.setdefault(name, value)

    def _settings(self, words: Sequence[str], dtype: str) -> dict[str, Any]:
        options, material = self.options, self.material
        files = {
            name: path
            for name in ("data_path", "regions_path", "vocabulary_path", "fit_data_path", "fit_regions_path")
            if (path := _path(getattr(options, name))) is not None
        }
        return {
            "command": ["eval/alignment.py", *words],
            "seed": options.seed,
            "images": len(material.records),
            "left_out_records": material.left_out,
            "min_coverage": options.min_coverage,
            "template": options.template,
            "vocabulary_size": 0 if material.vocabulary is None else len(material.vocabulary.words),
            "sampled_patches_per_image": self.sampling.per_image,
            "decomposed_patches_per_image": self.sampling.decomposed_per_image,
            "language_images": options.language_images,
            "dtype": dtype,
            "device": self.device.type,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "versions": {
                "llava_pat": llava_pat.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "numpy": np.__version__,
                "python": sys.version.split()[0],
            },
            "git_commit": git_commit(Path(__file__).parent),
            "hashes": {name: file_sha256(path) for name, path in files.items()},
            "files": files,
            "rows": {},
        }


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        "eval/alignment.py", description=DESCRIPTION, epilog=EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = result.add_argument
    add("checkpoints", nargs="+", metavar="CKPT", help="a folder or hub id: stage 1, LLaVA's layout, llava-hf, LoRA")
    add("--out", default="checkpoints/alignment", help="folder of the report (default: %(default)s)")
    add("--base", help="language model of stage-1 and LoRA folders (default: what each config.json names)")
    add("--vision_tower", help="in place of the one that config.json names")
    data = result.add_argument_group("data", "Without --data_path: the playground's held-out data. With it, only what "
        "is named: none stands for no file.").add_argument  # fmt: skip
    data("--data_path", help="LLaVA JSON: one image and its caption a record; others are left out and counted")
    data("--image_folder", help="what image names are relative to")
    data("--regions_path", help="labelled regions of these images (docs/formats.md); without: none of the measures "
        "that need labels")  # fmt: skip
    data("--vocabulary_path", help="{facet: [words]}; without: the regions' own labels are the vocabulary")
    data("--fit_data_path", help="images that the controls are fitted on, less those that are measured (default: the "
        "--data_path, of which --limit leaves some)")  # fmt: skip
    data("--fit_image_folder", help="(default: --image_folder)")
    data("--fit_regions_path", help="without: no linear maps (default: --regions_path, with the same --data_path)")
    add("--fit_limit", type=int, default=500, help="images that the controls are fitted on (default: %(default)s)")
    add("--limit", type=int, help="measure a sample of so many images, drawn with --seed (default: all)")
    add("--language_images", type=int, default=200, help="images that also go through the language model, for caption "
        "loss and IMA; 0: none (default: %(default)s)")  # fmt: skip
    add("--sampled_patches", type=int, default=20_000, help="patches for the measure against all words of the "
        "tokenizer, evenly over the images (default: %(default)s)")  # fmt: skip
    add("--decomposed_patches", type=int, default=2_000, help="labelled patches for matching pursuit (default: "
        "%(default)s)")  # fmt: skip
    add("--pictures", type=int, default=8, help="images that the page shows (default: %(default)s)")
    add("--min_coverage", type=float, default=0.25, help="share of a patch that a region must cover to label it "
        "(default: %(default)s)")  # fmt: skip
    add("--template", default="plain", help="conversation template of the text beside the image (default: plain, for "
        "all checkpoints, so that they read the same)")  # fmt: skip
    add("--batch_size", type=int, default=8, help="images at a time (default: %(default)s)")
    add("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    add("--device", help="such as cpu or cuda (default: the GPU if there is one)")
    add("--dtype", choices=["auto", *DTYPES], default="auto", help="of the models; every measure is in fp32 or better "
        "(auto: fp16 on a GPU, fp32 on a CPU)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the samples and of the random projector (default: %(default)s)")
    add("--no_report", dest="report", action="store_false", help="metrics and data only, no page")
    return result


def _one_line(message: str) -> str:
    """transformers lists all that it knows, over many lines."""
    words = " ".join(message.split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."


def _fill_in(options: argparse.Namespace) -> None:
    """Data flags that were not given: the playground's, or with --data_path what follows from the flags that were."""
    if options.data_path is None:
        defaults = {name: str(PLAYGROUND / file) for name, file in _PLAYGROUND_FILES.items()}
    else:
        defaults = {
            "image_folder": "",
            "regions_path": NONE,
            "vocabulary_path": NONE,
            "fit_data_path": options.data_path,
            "fit_image_folder": options.image_folder or "",
            "fit_regions_path": options.regions_path or NONE,
        }
        if options.fit_data_path is not None:
            defaults["fit_regions_path"] = NONE
    for name, value in defaults.items():
        if vars(options)[name] is None:
            setattr(options, name, value)


def _device(name: str | None) -> torch.device:
    """ValueError for one that is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def _path(value: str) -> str | None:
    return None if value == NONE else value


def _check(options: argparse.Namespace) -> None:
    """ValueError for numbers that mean nothing."""
    least = {
        "limit": 1, "fit_limit": 1, "batch_size": 1, "sampled_patches": 1, "language_images": 0,
        "decomposed_patches": 0, "pictures": 0, "workers": 0, "seed": 0,
    }  # fmt: skip
    for name, bound in least.items():
        value = vars(options)[name]
        if value is not None and value < bound:
            raise ValueError(f"--{name} {value}: must be at least {bound}")
    if not 0.0 <= options.min_coverage <= 1.0:
        raise ValueError(f"--min_coverage {options.min_coverage}: a share of a patch, 0 to 1")
