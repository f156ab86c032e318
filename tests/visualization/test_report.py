import base64
import io
import json
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from fastdiff.visualization import plot_loss, save_animation, save_images, write_report

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags nest, and collects text, pictures and addresses."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.words, self.pictures, self.charts, self.addresses = [], set(), [], {}, set(), []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href") if name in attrs]
        if tag == "img":
            self.pictures[attrs["alt"]] = base64.b64decode(attrs["src"].partition(",")[2])
            self.charts |= {attrs["alt"]} if attrs["class"] == "chart" else set()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture
def run(tmp_path):
    """A complete run folder, with a name and values that would break careless HTML."""
    folder = tmp_path / "a <b> & 'c'"
    folder.mkdir()
    x = torch.rand(4, 1, 8, 8)
    save_images(x, folder / "samples.png")
    save_images(-x, folder / "noising.png")
    save_animation([x, -x], folder / "denoising.webp")
    plot_loss([1, 0.5], folder / "loss.png")
    (folder / "config.yaml").write_text("name: </pre><script>alert(1)</script>\n")
    (folder / "environment.json").write_text(json.dumps({"torch": "2.13", "build": {"cuda": None}, "<i>": "<u>"}))
    (folder / "figures.json").write_text(json.dumps({"frechet": 3.14159, "n": 2000, "space": "digits & co"}))
    lines = [{"step": i, "loss": 1 / (i + 1), "images_per_s": 100.0 + i, "lr": 1e-3} for i in range(0, 50, 10)]
    lines[3]["figures"] = {"precision": 0.75}
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 50, "lo')
    return folder


def read(run):
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_the_page_holds_everything_and_needs_nothing_else(run):
    page = read(run)
    for alt, name in {
        "Samples": "samples.png",
        "From images to noise": "noising.png",
        "From noise to samples": "denoising.webp",
        "Loss": "loss.png",
    }.items():
        assert page.pictures[alt] == (run / name).read_bytes()
    assert {"images_per_s", "lr"} < page.pictures.keys()
    assert "loss" not in page.pictures  # loss.png is there
    assert page.charts == {"images_per_s", "lr", "Loss"}  # what a dark page inverts
    for word in ("3.142", "2,000", "digits & co", "2.13", '{"cuda": null}', "<u>", "precision", "0.75", run.name):
        assert word in page.text
    assert "</pre><script>" in page.text  # as text
    assert "script" not in page.tags
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert "Left out" not in page.text


def test_headlines_come_from_the_whole_lines(run):
    text = read(run).text
    for name, value in (("last step", "40"), ("last loss", "0.02439"), ("images/s, median", "120")):
        assert f"{name} {value}" in text


def test_the_loss_is_drawn_where_there_is_no_picture_of_it(run):
    (run / "loss.png").unlink()
    page = read(run)
    assert Image.open(io.BytesIO(page.pictures["loss"])).size == (560, 320)
    assert "loss.png (not there)" in page.text


def test_missing_and_damaged_pieces_are_named(run):
    (run / "config.yaml").unlink()
    (run / "environment.json").write_text("[1]")
    (run / "figures.json").write_text("{")
    (run / "samples.png").write_bytes((run / "samples.png").read_bytes()[:60])
    (run / "denoising.webp").write_text("")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\nnonsense\n{"step": 2, "loss": 0.5}\n')
    page = read(run)
    left_out = page.text.partition("Left out:")[2]
    for name in (
        "config.yaml (not there)",
        "environment.json (not a JSON object)",
        "figures.json (not a JSON object)",
        "samples.png (damaged)",
        "denoising.webp (damaged)",
        "1 damaged lines of metrics.jsonl",
    ):
        assert name in left_out
    assert "noising.png (" not in left_out.replace("denoising", "")
    assert "lowest loss, step 2 0.5" in page.text
    assert page.pictures.keys() == {"From images to noise", "Loss"}


def test_long_runs_show_the_latest_evaluations(run):
    lines = [json.dumps({"step": i, "figures": {"frechet": 1000 + i}}) for i in range(20)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    text = read(run).text
    assert "8 earlier evaluations" in text
    assert "1,019" in text
    assert "1,007" not in text


def test_one_file_is_enough_and_none_is_not(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "typo")
    with pytest.raises(FileNotFoundError, match=r"nothing to report on.*samples\.png"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1")
    assert "a: 1" in read(tmp_path).text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml", "report.html"]
