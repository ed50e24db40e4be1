"""Parts of the measuring run on made-up tensors, against NumPy, scikit-learn and hand; what it keeps of an image."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava_pat.analysis.vocabulary import Vocabulary
from llava_pat.data.words import Words
from llava_pat.evaluation.alignment.controls import label_targets
from llava_pat.evaluation.alignment.decompositions import Decompositions
from llava_pat.evaluation.alignment.files import finite, git_commit, table, write_arrays, write_json
from llava_pat.evaluation.alignment.histogram import CosineHistogram
from llava_pat.evaluation.alignment.labelled import LabelMeasures
from llava_pat.evaluation.alignment.material import read_material
from llava_pat.evaluation.alignment.measure import RowMeasures, measure_rows
from llava_pat.evaluation.alignment.models import name_rows, objective_of
from llava_pat.evaluation.alignment.pictures import choose_pictures
from llava_pat.evaluation.alignment.readings import Readings
from llava_pat.evaluation.alignment.views import Labelled, Sampling, view_of
from llava_pat.types import DataError, PatchRegions

ROOT = Path(__file__).resolve().parents[3]


def load_bench():
    spec = importlib.util.spec_from_file_location("bench_alignment", ROOT / "tests" / "bench" / "bench_alignment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kept(thing: object, seen: set[int]) -> int:
    """Bytes of all tensors, arrays and list entries that an object reaches."""
    if id(thing) in seen or isinstance(thing, (str, int, float, type)):
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        return thing.nbytes
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, dict):
        return sum(kept(value, seen) + 32 for value in thing.values())
    if isinstance(thing, (list, tuple, set, frozenset)):
        return sum(kept(value, seen) + 32 for value in thing)
    return kept(vars(thing), seen) if hasattr(thing, "__dict__") else 0


def test_nothing_of_an_image_is_kept() -> None:
    """At LLaVA-1.5's size, 576 patches of 4096: an image leaves a few numbers, not its 9.4 MB."""
    bench = load_bench()
    subject = bench.make_subject(1024, 4096, 576, 300)
    readings = bench.make_readings(subject, 300)
    weight = torch.randn(1024, 4096) / 32
    sampling = Sampling(0, 0.25, 4, 1)
    row = RowMeasures(subject, readings, sampling.min_coverage, 0)
    sizes = []
    for batch in bench.make_batches(images=3, batch_size=1, patches=576):
        view = view_of(batch, subject, readings, sampling)
        row.update(view, view.features @ weight, subject.model.embed_words(view.caption_ids))
        sizes.append(kept(row, set()))
    assert sizes[0] > 4096 * 4096 * 8  # the sum of the pooled entropy is seen by this count
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] <= 128


def test_rows_share_their_images_and_features() -> None:
    bench = load_bench()
    subject = bench.make_subject(8, 12, 16, 50)
    readings = bench.make_readings(subject, 50)
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(3))
    seen = []
    rows = {"same": lambda f: f @ weight, "again": lambda f: f @ weight, "zero": lambda f: f @ weight * 0}
    found = measure_rows(
        subject, readings, rows, bench.make_batches(5, 2, 16), Sampling(1, 0.25, 4, 2), 0,
        watch=[lambda view, patches: seen.append((view.places, patches.shape))],
    )  # fmt: skip
    assert seen == [([0, 1], (2, 16, 12)), ([2, 3], (2, 16, 12)), ([4], (1, 16, 12))]
    assert found["same"].metrics == found["again"].metrics
    assert found["zero"].metrics["entropy_patches"] == 0 and found["zero"].metrics["hit_at_1"] == 0
    assert found["zero"].metrics["entropy_features"] == found["same"].metrics["entropy_features"] > 0
    assert found["same"].metrics["images"] == 5 and found["same"].metrics["labelled_patches"] == 5 * 8
    with pytest.raises(ValueError, match="no image"):
        measure_rows(subject, readings, rows, [], Sampling(1, 0.25, 4, 2), 0)


def test_view_of_a_batch() -> None:
    bench = load_bench()
    subject = bench.make_subject(8, 12, 16, 50)
    readings = dataclasses.replace(bench.make_readings(subject, 50), silent_ids=frozenset({1}))
    one, both = (
        [view_of(batch, subject, readings, Sampling(7, 0.25, 4, 3)) for batch in bench.make_batches(4, size, 16)]
        for size in (1, 4)
    )
    assert both[0].caption_ids.tolist() == [[0, 2]] * 4  # 1 is no word
    assert torch.equal(torch.cat([view.sampled for view in one]), both[0].sampled)  # whatever the batch
    assert len({tuple(row) for row in both[0].sampled.tolist()}) > 1
    assert [(i, *view.decomposed[k][1:]) for i, view in enumerate(one) for k in range(3)] == both[0].decomposed
    # the first quarter of the patches is under label 0, the second under label 1
    assert all(tokens == {0 if patch < 4 else 1} and patch < 8 for _, patch, tokens in both[0].decomposed)
    assert both[0].entries.targets.sum().item() == 4 * 8


def test_histogram_is_numpys() -> None:
    generator = torch.Generator().manual_seed(0)
    cosine = torch.rand(500, 7, generator=generator) * 2 - 1
    cosine[0, :3] = torch.tensor([-1.0, 1.0, 0.0])
    targets = torch.rand(500, 7, generator=generator) < 0.2
    histogram = CosineHistogram()
    assert histogram.gap() is None
    for some, right in zip(cosine.split(90), targets.split(90), strict=True):
        histogram.update(some, right)
    arrays = histogram.arrays()
    for name, chosen in (("cosine_right", targets), ("cosine_wrong", ~targets)):
        expected, _ = np.histogram(cosine[chosen].double().numpy(), arrays["cosine_edges"])
        assert np.abs(arrays[name] - expected).sum() <= 2  # a value on an edge may fall to either side by rounding
        assert arrays[name].sum() == int(chosen.sum())
    gap = cosine[targets].double().mean() - cosine[~targets].double().mean()
    assert histogram.gap() == pytest.approx(float(gap))
    ends = CosineHistogram()
    ends.update(torch.tensor([[-1.0, 1.0]]), torch.tensor([[True, False]]))
    assert ends.right[0] == 1 and ends.wrong[-1] == 1 and ends.gap() == -2


def made_up_readings(generator: torch.Generator) -> Readings:
    """Five words in two facets; labels: "a x", "b", "a y b" (two of one facet)."""
    vocabulary = Vocabulary(("a", "b", "c", "x", "y"), {"letter": (0, 1, 2), "end": (3, 4)})
    labels = Vocabulary(("a x", "b", "a y b"))
    vectors = torch.randn(5, 6, generator=generator)
    ids = torch.arange(5).unsqueeze(1)
    rows = {(0, 3): [0, 3], (1,): [1], (0, 4, 1): [0, 1, 4]}
    entries = {tokens: torch.isin(torch.arange(5), torch.tensor(right)) for tokens, right in rows.items()}
    own = {tokens: torch.arange(3) == place for place, tokens in enumerate(rows)}
    words = Words(vocabulary, ids, torch.ones(5, 1, dtype=torch.bool), entries)
    whole = Words(labels, torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1, dtype=torch.bool), own)
    return Readings(
        words, whole, vectors, torch.randn(3, 6, generator=generator), torch.arange(5), vocabulary.words, vectors,
        {}, frozenset(),
    )  # fmt: skip


def regions_of(rows: list[tuple[int, tuple[int, ...], list[float]]]) -> PatchRegions:
    """(image, label's tokens, coverage) a region."""
    longest = max(len(tokens) for _, tokens, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, (_, tokens, _) in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), True
    coverage = torch.tensor([share for *_, share in rows])
    return PatchRegions(coverage, torch.tensor([image for image, *_ in rows]), ids, mask)


def test_patchdis_facet_by_facet_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(2)
    readings = made_up_readings(generator)
    regions = regions_of([
        (0, (0, 3), [1.0, 1.0, 0.6, 0.0]),
        (0, (1,), [0.0, 0.0, 0.4, 1.0]),
        (1, (0, 4, 1), [1.0, 0.0, 0.0, 0.0]),  # two letters: no class of that facet, "y" of the other
        (1, (0, 3), [0.0, 1.0, 0.1, 0.0]),
    ])  # fmt: skip
    patches = torch.randn(3, 4, 6, generator=generator)  # the third image has no annotations
    targets, labels = readings.words.region_targets(regions), readings.labels.region_targets(regions)
    found = [_labelled(regions, right) for right in (targets, labels)]
    view = SimpleNamespace(regions=regions, entries=found[0], labels=found[1])
    measures = LabelMeasures(readings, 0.25)
    measures.update(view, patches)
    nothing_here = regions_of([(0, (1,), [0.0, 0.1, 0.0, 0.0])])  # annotated, and too little for a label
    empty = [_labelled(nothing_here, of.region_targets(nothing_here)) for of in (readings.words, readings.labels)]
    measures.update(SimpleNamespace(regions=nothing_here, entries=empty[0], labels=empty[1]), patches[:1])
    assert measures.scenes[0].confusion.sum() == 3 * 4 and measures.classes[0].confusion.sum() == 5
    result, arrays = measures.result()
    cosine = torch.nn.functional.cosine_similarity(patches[:2].unsqueeze(2), readings.word_vectors, dim=-1).flatten(
        0, 1
    )
    nothing = -1
    letters = np.array([0, 0, 0, 1, nothing, 0, nothing, nothing])  # by hand, from the coverage above
    ends = np.array([3, 3, 3, nothing, 4, 3, nothing, nothing])
    iou = np.full(5, np.nan)
    for truth, columns in ((letters, [0, 1, 2]), (ends, [3, 4])):
        read = np.array(columns)[cosine[:, columns].argmax(-1).numpy()]
        real = truth != nothing
        present = sorted(set(truth[real]))
        iou[present] = metrics.jaccard_score(truth[real], read[real], labels=present, average=None, zero_division=0)
    assert arrays["label_iou"] == pytest.approx(iou, nan_ok=True)
    assert result["patchdis_miou"] == pytest.approx(np.nanmean(iou))
    assert result["patchdis_miou_background"] <= result["patchdis_miou"]
    assert result["labelled_patches"] == 6  # patches of at least one word, both facets
    assert arrays["label_words"].tolist() == list("abcxy") and arrays["label_patches"].tolist() == [5, 3, 0, 4, 1]


def _labelled(regions: PatchRegions, targets: torch.Tensor) -> Labelled:
    from llava_pat.analysis.patch_alignment import labelled_patches

    return Labelled(*labelled_patches(regions.coverage, regions.image, targets, 0.25))


def test_a_label_in_capitals_is_found_among_the_words() -> None:
    """Pieces 5 and 6 are "a" and "b" in capitals, which are no columns of their own."""
    readings = dataclasses.replace(made_up_readings(torch.Generator().manual_seed(6)), same_word={5: 0, 6: 1})
    decompositions = Decompositions(readings)
    patches = readings.piece_vectors[[0, 1]].unsqueeze(0)
    view = SimpleNamespace(decomposed=[(0, 0, frozenset({5, 9})), (0, 1, frozenset({5, 6}))])
    decompositions.update(view, patches)
    metrics = decompositions.result()[0]
    assert (metrics["omp_overlap"], metrics["omp_recall"], metrics["omp_precision"]) == (1.0, 0.75, 1.0)


def test_targets_of_the_linear_map_are_means_of_the_labels_words() -> None:
    table = torch.randn(9, 5, generator=torch.Generator().manual_seed(4))
    subject = SimpleNamespace(model=SimpleNamespace(embed_words=lambda ids: table[ids]), device=torch.device("cpu"))
    regions = regions_of([(0, (1, 2), [1.0, 0.5, 0.0]), (1, (3,), [0.2, 0.3, 0.0]), (0, (4,), [0.0, 0.5, 0.0])])
    image, patch, vectors = label_targets(subject, regions, min_coverage=0.25)
    assert list(zip(image.tolist(), patch.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 1)]
    first = table[[1, 2]].mean(0)
    torch.testing.assert_close(vectors, torch.stack([first, (first + table[4]) / 2, table[3]]))


def test_row_names(tmp_path: Path) -> None:
    for folder in ("a/one", "b/one", "a/two"):
        (tmp_path / folder).mkdir(parents=True)
    paths = [str(tmp_path / folder) for folder in ("a/one", "a/two")]
    assert name_rows(paths) == ["one", "two"]
    assert name_rows([*paths, str(tmp_path / "b/one")]) == ["a-one", "a-two", "b-one"]
    assert name_rows(["org/llava v1", "other/llava"]) == ["llava-v1", "llava"]
    assert name_rows(["x/a b", "x/a-b"]) == ["x-a-b-1", "x-a-b-2"]
    assert name_rows(["x/mean_word", "x/one"], taken={"mean_word": ""}) == ["x-mean_word", "x-one"]
    with pytest.raises(DataError, match="given twice"):
        name_rows([paths[0], f"{paths[0]}/"])


@pytest.mark.parametrize("foreign", ["", "- a list\n", "model: {a: 1}\n", "a: b: c\n", "alignment: {a: 1}\n"])
def test_objective_of_a_folder_that_other_software_wrote(tmp_path: Path, foreign: str) -> None:
    assert objective_of(str(tmp_path)) is None
    (tmp_path / "config.yaml").write_text(foreign)
    (tmp_path / "metrics.json").write_text("[1, 2]")
    assert objective_of(str(tmp_path)) is None
    (tmp_path / "metrics.json").write_text('{"objective": "sea"}')
    assert objective_of(str(tmp_path)) == "sea"
    (tmp_path / "config.yaml").write_text("alignment: pat\n")
    assert objective_of(str(tmp_path)) == "pat"


def test_material_is_one_image_a_record(scene, tmp_path: Path) -> None:
    records = json.loads((scene.folder / "val.json").read_text())
    text = {"id": "t", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "no"}]}
    (tmp_path / "val.json").write_text(json.dumps([*records, records[0], text]))
    files = (scene.folder / "images", scene.folder / "regions_val.jsonl", scene.folder / "vocabulary.json")
    material = read_material(tmp_path / "val.json", *files)
    assert len(material.records) == 8 and material.left_out == 2
    assert len(material.regions) == 7 and material.vocabulary.words[0] == "square"
    first, again, other = (read_material(tmp_path / "val.json", *files, limit=3, seed=seed) for seed in (0, 0, 1))
    assert first.records == again.records != other.records and len(first.records) == 3
    assert list(first.records) == sorted(first.records, key=lambda record: record.index)
    without = read_material(tmp_path / "val.json", scene.folder / "images", None)
    assert without.regions is without.vocabulary is without.labels is None
    labels = read_material(tmp_path / "val.json", *files[:2])
    assert labels.vocabulary.words == labels.labels.words and "square" not in labels.vocabulary.words
    rest = read_material(tmp_path / "val.json", *files, without=first)
    assert len(rest.records) == 5 and not {r.id for r in rest.records} & {r.id for r in first.records}
    with pytest.raises(DataError, match="none is left to fit the controls on"):
        read_material(tmp_path / "val.json", *files, without=material)
    (tmp_path / "text.json").write_text(json.dumps([text]))
    with pytest.raises(DataError, match="none of its 1 records has exactly one image"):
        read_material(tmp_path / "text.json", *files)


def test_pictures_are_spread_over_annotated_images(scene) -> None:
    files = (scene.folder / "images", scene.folder / "regions_val.jsonl")
    material = read_material(scene.folder / "val.json", *files)
    assert choose_pictures(material, 100) == [0, 1, 2, 3, 5, 6, 7]  # 4 has no regions
    assert choose_pictures(material, 3) == [0, 2, 5] and choose_pictures(material, 0) == []
    assert choose_pictures(read_material(scene.folder / "val.json", files[0], None), 2) == [0, 4]


def test_files_are_whole_and_without_nan(tmp_path: Path) -> None:
    assert finite({"a": 1, "b": float("nan"), "c": float("inf")}) == {"a": 1.0}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "m.json", {"a": float("nan")})
    write_arrays(tmp_path / "data" / "x.npz", {"words": np.array(["a", "ü"])})
    with np.load(tmp_path / "data" / "x.npz", allow_pickle=False) as arrays:
        assert arrays["words"].tolist() == ["a", "ü"]
    assert not (tmp_path / "m.json").exists() and git_commit(tmp_path) is None
    shown = table({"checkpoints": {"one": {"hit_at_1": 0.5}}, "baselines": {"mean": {"tacs": 0.25}}, "settings": {}})
    lines = shown.splitlines()
    assert lines[0].split() == ["hit@1", "TACS"] and lines[1].split() == ["one", "0.500", "–"]
    assert set(lines[2]) == {"-"} and lines[3].split() == ["mean", "–", "0.250"]
