"""The page as a whole: self-contained, whole, the same twice, and alive in a browser where there is one."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from llava_pat.evaluation.alignment.report import __main__ as command
from llava_pat.evaluation.alignment.report import render
from llava_pat.evaluation.alignment.report.explorer import embedded_json, explorer_data, kept_words, packed
from llava_pat.evaluation.alignment.report.files import read_run
from llava_pat.evaluation.alignment.report.style import looks
from tests.evaluation.alignment.report.conftest import CHECKPOINTS, WORDS, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "input", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that elements close in order; collects attributes and the texts of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: dict[str, str] = {}
        self.script = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.script = dict(attrs).get("id", "code")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self.script] = self.scripts.get(self.script, "") + data

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    (folder / "plots").mkdir()
    (folder / "plots" / "words-99.png").write_bytes(b"of an earlier run")
    assert render(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def html(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def test_elements_close_and_ids_are_unique(html: str) -> None:
    page = Page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = [value[1:] for value in page.values("href")]
    assert targets and set(targets) <= set(ids), "a link of the page leads nowhere"


def test_nothing_comes_from_anywhere_else(html: str) -> None:
    page = Page(html)
    sources = page.values("src")
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert all(value.startswith("#") for value in page.values("href"))
    outside = re.sub(r"data:image/[^\"]*", "", html)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", outside)


def test_figures_in_the_page_are_whole(html: str) -> None:
    kinds = []
    for source in Page(html).values("src"):
        kind, content = source.split(";base64,")
        content = base64.b64decode(content)
        kinds.append(kind)
        if kind == "data:image/svg+xml":
            root = ElementTree.fromstring(content)
            assert root.tag.endswith("svg") and b"<script" not in content and b"mathdefault" not in content
        else:
            assert min(Image.open(io.BytesIO(content)).size) > 100
    assert kinds.count("data:image/svg+xml") == 9
    assert kinds.count("data:image/png") == 4, "words and sums of two images"


def test_every_figure_is_also_a_png(out: Path) -> None:
    found = {path.stem: Image.open(path) for path in (out / "plots").glob("*.png")}
    assert set(found) == {
        "metrics", "compression", "spectra", "image_entropies", "cosines", "words", "explained", "hits", "layers",
        "words-0", "words-1", "sums-0", "sums-1",
    }  # fmt: skip
    assert found["metrics"].size[0] == 2200
    for name, image in found.items():
        assert np.asarray(image.convert("L")).std() > 5, f"{name} is blank"


def test_rendering_again_gives_the_same_bytes(out: Path, html: str) -> None:
    before = {path.name: path.read_bytes() for path in (out / "plots").glob("*.png")}
    assert render(out).read_text(encoding="utf-8") == html
    assert {path.name: path.read_bytes() for path in (out / "plots").glob("*.png")} == before
    assert not list(out.glob("*.partial"))


def unpack(packed: dict, shape: tuple[int, int]) -> np.ndarray:
    steps = np.frombuffer(base64.b64decode(packed["bytes"]), dtype=np.int8)
    return steps.reshape(shape).astype(float) * packed["scale"] / 127


def test_the_embedded_cosines_are_the_measured_ones(out: Path, html: str) -> None:
    data = json.loads(Page(html).scripts["data"])
    assert [entry["title"] for entry in data["checkpoints"]] == ["none-seed0", "none-seed1", "pat-seed0"]
    assert data["words"] == [list(WORDS)], "the same words are stored once"
    assert data["start"] == "red", "a word that the first image shows"
    assert len(data["pngs"]) == 1 or len(data["pngs"]) == 2, "the same pixels are stored once for all checkpoints"
    for name, entry in zip(CHECKPOINTS, data["checkpoints"], strict=True):
        with np.load(out / "data" / f"{name}-pictures.npz") as stored:
            for i, image in enumerate(entry["images"]):
                measured = stored[f"cosine_{i}"].astype(float)
                scale = np.abs(measured).max()
                assert np.abs(unpack(image["cosine"], (len(WORDS), 16)).T - measured).max() <= scale / 254 + 1e-12
                words = [[image["pool"][number] for number in line] for line in image["nearest"]]
                assert words == stored[f"nearest_words_{i}"].tolist()
                assert [image["pool"][n] for n in image["entry"]] == [WORDS[n] for n in stored[f"nearest_entry_{i}"]]
                pixels = base64.b64decode(data["pngs"][image["png"]].split(",")[1])
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(pixels))), stored[f"pixels_{i}"])


def test_packing_is_exact_at_the_ends_and_takes_nan_as_zero() -> None:
    values = np.array([[0.5, -0.5], [0.0, np.nan]], dtype=np.float32)
    assert unpack(packed(values), (2, 2)).tolist() == [[0.5, -0.5], [0.0, 0.0]]
    assert packed(np.zeros((0, 3), np.float32)) == {"scale": 0.0, "bytes": ""}
    assert unpack(packed(np.zeros((1, 2), np.float32)), (1, 2)).tolist() == [[0.0, 0.0]]


def test_where_words_are_too_many_those_that_the_images_show_stay(make_run) -> None:
    pictures = read_run(make_run()).pictures[CHECKPOINTS[0]]
    patches = 2 * 16
    kept = [WORDS[number] for number in kept_words(pictures, 4 * patches)]
    assert kept == ["circle", "star", "red", "blue"], "the words of both labels, in the vocabulary's order"
    assert len(kept_words(pictures, 10_000)) == len(WORDS)
    assert kept_words(pictures, 0) == []


def test_labels_cannot_end_the_script(make_run) -> None:
    out = make_run()
    evil = "</script><script>alert(1)</script><!--"
    for name in CHECKPOINTS:
        head = out / "data" / f"{name}-pictures.json"
        content = json.loads(head.read_text())
        content["images"][0]["regions"][0]["label"] = evil
        content["images"][0]["caption"] = evil
        head.write_text(json.dumps(content))
    run = read_run(out)
    text = embedded_json(explorer_data(run, looks(run.rows), 0.25))
    assert "<" not in text
    assert json.loads(text)["checkpoints"][0]["images"][0]["regions"][0]["label"] == evil


def test_a_run_without_pictures_and_curves_still_has_a_page(make_run) -> None:
    out = make_run(checkpoints=("alone",))
    for file in (out / "data").iterdir():
        file.unlink()
    html = render(out).read_text(encoding="utf-8")
    page = Page(html)
    assert "data" not in page.scripts and "--pictures 0" in html
    assert {path.stem for path in (out / "plots").iterdir()} == {"metrics", "compression"}


def test_command_tells_where_the_page_is_or_what_is_missing(out: Path, tmp_path: Path, capsys) -> None:
    assert command.main([str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and "metrics.json" in told


def test_without_matplotlib_the_way_out_is_named(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llava_pat.pages.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[report\]'"):
        render(tmp_path)


def dom(out: Path, fragment: str) -> str:
    """The page after its scripts have run."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom",
         f"file://{out}/report.html{fragment}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return re.sub(r"<script.*?</script>|data:image/[^\"]*", "", done.stdout, flags=re.DOTALL)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")
def test_in_a_browser_a_typed_word_has_a_map_and_an_unknown_one_says_so(out: Path) -> None:
    with np.load(out / "data" / f"{CHECKPOINTS[2]}-pictures.npz") as stored:
        measured = float(stored["cosine_1"][5, WORDS.index("blue")])
    page = dom(out, "#word=Blue&image=1&patch=5")
    assert "val/00001.png: a red circle &lt;left&gt; &amp; more" in page
    told = re.findall(r"Row 2, column 2: Blue (−?[\d.]+)\.", page)
    assert len(told) == 3 and abs(float(told[2].replace("−", "-")) - measured) < 0.011
    assert "is not among" not in page
    assert "“dog” is not among the 7 words of this page" in dom(out, "#word=dog")
