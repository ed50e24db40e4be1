"""The page: text stays text, it needs nothing else, and shows what is in the files; the gallery's drawing."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_pat.annotation.report.command import main
from llava_pat.annotation.report.gallery import place_texts
from llava_pat.annotation.report.outlines import outline, path
from llava_pat.annotation.report.plots import PLOTS
from llava_pat.annotation.report.words import Bar, bars
from tests.annotation.report.conftest import CAPTIONS, GRID, lines, write_lines, write_records, write_run
from tests.annotation.samples import disc, save_image

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Checks that elements close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


@pytest.fixture(autouse=True)
def one_plot(monkeypatch) -> None:
    """Each takes long to write, and has tests of its own."""
    monkeypatch.setattr("llava_pat.annotation.report.page.PLOTS", PLOTS[:1])


def page_of(source: Path, *flags: object) -> tuple[str, Page]:
    assert main([str(source), "--out", str(source.parent / "out"), *GRID, *map(str, flags)]) == 0
    html = (source.parent / "out" / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_the_page_needs_nothing_else_and_its_links_lead_somewhere(world) -> None:
    html, page = page_of(world / "regions.jsonl", "--records", world / "records.json", "--image_folder",
                         world / "images")  # fmt: skip
    assert "script" not in page.tags and "link" not in page.tags
    sources = [value for value in page.values("src") + page.values("href") if not value.startswith("#")]
    assert sources and all(value.startswith("data:image/") for value in sources)
    assert not re.search(r"https?://|@import|url\(", re.sub(r"data:image/[^\"]*", "", html))
    ids = page.values("id")
    links = {value[1:] for value in page.values("href") if value.startswith("#")}
    assert len(ids) == len(set(ids)) and links and links <= set(ids)


def test_every_text_of_others_stays_text(world) -> None:
    """Labels, file names, captions, reasons, settings."""
    content = lines()
    content[0] |= {"image": f"{EVIL}.png"}
    for region in (region for line in content for region in line["regions"]):
        region["label"] = EVIL
    records = write_records(world / "records.json", {f"{EVIL}.png": EVIL, "b.png": EVIL, "c.png": "a cat"})
    run = write_run(world)
    write_lines(run / "regions" / "part-00000.jsonl", content)
    left_out = run / "left_out" / "part-00001.json"
    left_out.write_text(left_out.read_text().replace("no such image file", EVIL).replace("records.json", EVIL))
    (run / "annotation.yaml").write_text(f"tagger: {{kind: caption, engine: rules}}\nx: '{EVIL}'\n")
    html, page = page_of(run, "--records", records)
    assert "script" not in page.tags and "<script" not in html
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.text.count(EVIL) >= 8, "it is shown, as text"
    assert any(value.startswith(EVIL) for value in page.values("aria-label"))


def test_an_image_is_shown_as_it_is_with_outlines_in_its_own_pixels(world) -> None:
    content = [lines()[1]]
    content[0]["regions"] = [{"label": "straße 故宫", "bbox": [8, 4, 16, 12], "score": 0.25}]
    photo = Image.new("RGB", (64, 32), (200, 10, 30))
    photo.save(world / "images" / "b.png")
    html, page = page_of(write_lines(world / "one.jsonl", content), "--image_folder", world / "images")
    shown = next(value for value in page.values("href") if value.startswith("data:image/png"))
    image = Image.open(io.BytesIO(base64.b64decode(shown.split(",")[1])))
    assert image.size == (64, 32) and image.getpixel((5, 5)) == (200, 10, 30)
    assert page.values("viewbox") == ["0 0 64 32"]
    assert "straße 故宫, score 0.25" in page.text
    numbers = [float(number) for number in re.findall(r"[\d.]+", page.values("d")[2])]
    xs, ys = numbers[::2], numbers[1::2]
    assert (min(xs), max(xs), min(ys), max(ys)) == (8, 24, 4, 16)
    assert page.values("d")[0] == "M0 0H64V32H0ZM16 0V32H48V0Z", "what the crop takes away is paler"
    _, padded = page_of(world / "one.jsonl", "--image_aspect_ratio", "pad")
    assert len(padded.values("d")) == 2, "nothing is cut away, and the region has two lines"


def test_images_that_cannot_be_shown_say_why(world) -> None:
    save_image(world / "images" / "a.png", (16, 16))
    (world / "images" / "b.png").write_bytes(b"no image")
    _, page = page_of(world / "regions.jsonl", "--image_folder", world / "images")
    assert "annotated at 32 x 32, the image is 16 x 16" in page.text
    assert "b.png cannot be read (not an image file; 8 bytes)" in page.text
    (world / "images" / "b.png").unlink()
    _, page = page_of(world / "regions.jsonl", "--image_folder", world / "images")
    assert "b.png does not exist" in page.text
    assert page.values("class").count("tile") == 2


def test_captions_and_what_they_name_without_a_region(world) -> None:
    _, page = page_of(world / "regions.jsonl", "--records", world / "records.json")
    assert CAPTIONS["a.png"] in page.text and "no region: bird" in page.text
    assert "no region: brown dog" in page.text


def test_how_many_are_shown_is_asked_for(world) -> None:
    many = write_lines(world / "many.jsonl", [lines()[0] | {"image": f"{n}.png"} for n in range(30)])
    files = {}
    for seed in ("0", "0", "1"):
        _, page = page_of(many, "--samples", "5", "--seed", seed)
        labels = page.values("aria-label")
        assert len(labels) == 5 and labels == sorted(labels, key=lambda name: int(name[:-4]))
        assert files.setdefault(seed, labels) == labels
    assert files["0"] != files["1"]
    assert page_of(many, "--samples", "0")[1].values("class").count("tile") == 0


def test_an_empty_run_has_a_page(world) -> None:
    run = write_run(world)
    write_lines(run / "regions" / "part-00000.jsonl", [])
    _, page = page_of(run)
    assert "no such image file" in page.text and "svg" not in page.tags


@pytest.mark.parametrize("side", [100, 1000])
def test_an_outline_runs_around_the_mask(side) -> None:
    mask = disc((side, side), 0.4 * side, 0.5 * side, 0.3 * side)
    mask[: side // 10, : side // 10] = 1
    corner, circle = sorted(outline(mask), key=lambda line: float(np.hypot(*line.mean(0))))
    assert corner.min() == 0 and corner.max() == pytest.approx(side / 10, abs=side / 100)
    distances = np.hypot(*(circle - [0.4 * side + 0.5, 0.5 * side + 0.5]).T)
    assert np.abs(distances - 0.3 * side).max() < side / 80
    assert (circle[0] == circle[-1]).all() and len(circle) < 400


def test_a_line_of_one_pixel_in_a_large_mask_is_not_lost_and_nothing_is_nothing() -> None:
    mask = np.zeros((50, 4000), np.uint8)
    assert path(outline(mask)) == ""
    mask[25, 100:3900] = 1
    (line,) = outline(mask)
    assert (line[:, 0].min(), line[:, 0].max()) == (100, 3900)
    assert line[:, 1].min() >= 25 and line[:, 1].max() <= 26, "thinner than a page shows, but there"


def test_a_rectangle_is_not_drawn_point_by_point() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 5:50] = 1
    assert len(outline(mask)[0]) == 9, "corners, each cut by half a pixel, and the start again"


def test_texts_stay_in_the_image_and_apart() -> None:
    boxes = [(0.0, 0.0, 10.0, 10.0)] * 6 + [(190.0, 95.0, 200.0, 100.0)]
    places = place_texts(boxes, ["label"] * 7, 200, 100, scale=0.7)
    size, half = 11 * 0.7, 0.56 * 11 * 0.7 * 5 / 2
    assert all(half <= x <= 200 - half and size <= y <= 100 for x, y in places)
    first = sorted(y for _, y in places[:4])
    assert min(b - a for a, b in zip(first, first[1:], strict=False)) >= 0.99 * size
    assert place_texts([(0, 0, 5, 5)], ["a label that is longer than its image"], 50, 50, scale=1.0)[0][0] == 25


def test_bars_are_as_long_as_their_numbers() -> None:
    html = bars("t", "c", [Bar("a", 30, 40, "x"), Bar("b", 0, 10, "y")])
    assert re.findall(r"width:([\d.]+)%", html) == ["75.00", "25.00", "0.00", "25.00"]
    assert bars("t", "c", []) == ""
