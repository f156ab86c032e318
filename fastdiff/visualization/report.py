"""One self-contained HTML page per run: open it anywhere, send it to anyone.

The page is read from the files of the run folder alone, so it can be written again at any time, during the run too.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fastdiff.visualization.chart import line_chart
from fastdiff.visualization.files import write_atomically
from fastdiff.visualization.report_style import STYLE

PICTURES = {
    "samples.png": "Samples",
    "denoising.webp": "From noise to samples",
    "noising.png": "From images to noise",
    "nearest.png": "Samples over the training images nearest to them",
    "loss.png": "Loss",
}
OPTIONAL = {"nearest.png"}  # a run that does not judge its samples has none
CHARTS = {"loss.png"}  # drawn on white: the dark page inverts them
SMALLEST_WIDTH = 360  # CSS pixels: smaller pictures are enlarged by whole factors
NOT_CURVES = {"step", "epoch", "loss", "time", "timestamp", "seconds"}
FIGURE_ROWS = 12  # the latest evaluations; a long run has hundreds


def write_report(run_dir: str | os.PathLike) -> Path:
    """Writes `run_dir/report.html` from what the run folder holds, and returns its path.

    Read are `config.yaml`, `environment.json`, `metrics.jsonl` (one JSON object per line: `step`, `loss`,
    `images_per_s`, `lr`, ..., `figures`), `figures.json` (name to value) and the pictures `samples.png`,
    `denoising.webp`, `noising.png`, `nearest.png` and `loss.png` (without it the loss is drawn from the metrics). Pictures are
    embedded; nothing is loaded from elsewhere and there is no script. What is missing or damaged is left out and named
    at the end of the page; a last line of metrics that is still being written is ignored.

    Raises FileNotFoundError where `run_dir` is no folder or holds none of these files, OSError where the page cannot be
    written.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise FileNotFoundError(f"there is no run folder {run}")
    files = _RunFiles(run)
    config = files.text("config.yaml")
    environment = files.json_object("environment.json")
    metrics = files.metrics("metrics.jsonl")
    figures = files.json_object("figures.json")
    shown = [name for name in PICTURES if name not in OPTIONAL or (run / name).exists()]
    pictures = {name: files.picture(name) for name in shown}
    if not (config or environment or metrics or figures or any(pictures.values())):
        raise FileNotFoundError(f"{run} holds nothing to report on: {'; '.join(files.left_out)}")

    sections = [
        _tiles(_headlines(metrics)),
        _section("Final figures", _table(figures.items())),
        *(_section(title, _figure(pictures[name], title, name in CHARTS)) for name, title in PICTURES.items() if name in shown),
        _section("Curves", _curves(metrics, loss_too=not pictures["loss.png"])),
        _section("Evaluations during the run", _evaluations(metrics)),
        _section("Environment", _table(environment.items())),
        _section("Configuration", f"<pre>{escape(config)}</pre>" if config else ""),
    ]
    if files.left_out:
        sections.append(f"<footer>Left out: {escape('; '.join(files.left_out))}.</footer>")
    title = escape(run.resolve().name)
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n<header><p>fastdiff run</p><h1>{title}</h1></header>\n"
        + "\n".join(filter(None, sections))
        + "\n</body>\n</html>\n"
    )
    return write_atomically(run / "report.html", page.encode())


class _RunFiles:
    """Reads the files of a run and keeps account in `left_out` of those that are missing or damaged."""

    def __init__(self, run: Path):
        self.run = run
        self.left_out: list[str] = []

    def text(self, name: str) -> str:
        try:
            return (self.run / name).read_bytes().decode(errors="replace")
        except FileNotFoundError:
            self.left_out.append(f"{name} (not there)")
            return ""

    def json_object(self, name: str) -> dict:
        text = self.text(name)
        if not text:
            return {}
        content = _json_object(text)
        if content is None:
            self.left_out.append(f"{name} (not a JSON object)")
        return content or {}

    def metrics(self, name: str) -> list[dict]:
        lines = self.text(name).split("\n")
        if _json_object(lines[-1]) is None:
            lines.pop()  # empty after the last line break, or a line that is still being written
        entries = [_json_object(line) for line in lines if line.strip()]
        damaged = entries.count(None)
        if damaged:
            self.left_out.append(f"{damaged} damaged lines of {name}")
        return [entry for entry in entries if entry is not None]

    def picture(self, name: str) -> bytes:
        path = self.run / name
        try:
            with Image.open(path) as image:
                image.load()
            return path.read_bytes()
        except FileNotFoundError:
            self.left_out.append(f"{name} (not there)")
        except (UnidentifiedImageError, OSError, SyntaxError):  # SyntaxError: Pillow's word for a broken PNG
            self.left_out.append(f"{name} (damaged)")
        return b""


def _json_object(text: str) -> dict | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _format(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}" if math.isfinite(value) else str(value)
    if _is_number(value):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _column(metrics: list[dict], key: str) -> tuple[list[float], list[float]]:
    """The steps (or line numbers, where a line has no step) and the values of the lines that hold the number `key`."""
    points = [
        (entry["step"] if _is_number(entry.get("step")) else i, entry[key])
        for i, entry in enumerate(metrics)
        if _is_number(entry.get(key))
    ]
    return [step for step, _ in points], [value for _, value in points]


def _headlines(metrics: list[dict]) -> dict[str, str]:
    headlines = {}
    steps, losses = _column(metrics, "loss")
    _, all_steps = _column(metrics, "step")
    if all_steps:
        headlines["last step"] = _format(max(all_steps))
    if losses:
        headlines["last loss"] = _format(losses[-1])
        finite = [(loss, step) for step, loss in zip(steps, losses, strict=True) if math.isfinite(loss)]
        if finite:
            lowest, step = min(finite)
            headlines[f"lowest loss, step {_format(step)}"] = _format(lowest)
    _, speeds = _column(metrics, "images_per_s")
    if speeds:
        headlines["images/s, median"] = _format(float(sorted(speeds)[len(speeds) // 2]))
    return headlines


def _curves(metrics: list[dict], loss_too: bool) -> str:
    """A small chart for every number that the metrics follow over the steps."""
    names = list(dict.fromkeys(key for entry in metrics for key in entry if key not in NOT_CURVES))
    charts = []
    for name in (["loss"] if loss_too else []) + names:
        steps, values = _column(metrics, name)
        if sum(map(math.isfinite, values)) < 2:
            continue
        chart = io.BytesIO()
        line_chart({name: (steps, values)}, title=name, xlabel="step", size=(560, 320)).save(chart, format="png")
        charts.append(_figure(chart.getvalue(), name, is_chart=True))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _evaluations(metrics: list[dict]) -> str:
    entries = [(entry.get("step", ""), entry["figures"]) for entry in metrics if isinstance(entry.get("figures"), dict)]
    names = list(dict.fromkeys(name for _, figures in entries for name in figures))
    if not names:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in ["step", *names])
    rows = "".join(
        f"<tr><td>{escape(_format(step))}</td>"
        + "".join(f"<td>{escape(_format(figures[n])) if n in figures else ''}</td>" for n in names)
        + "</tr>"
        for step, figures in entries[-FIGURE_ROWS:]
    )
    older = len(entries) - FIGURE_ROWS
    note = f"<p>{older} earlier evaluations are in metrics.jsonl.</p>" if older > 0 else ""
    return f'<div class="wide"><table class="figures"><tr>{head}</tr>{rows}</table></div>{note}'


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def _tiles(values: dict[str, str]) -> str:
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return f"<dl>{tiles}</dl>" if tiles else ""


def _table(items: Iterable[tuple[str, object]]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(_format(value))}</td></tr>" for name, value in items)
    return f'<div class="wide"><table>{rows}</table></div>' if rows else ""


def _figure(encoded: bytes, title: str, is_chart: bool = False) -> str:
    if not encoded:
        return ""
    with Image.open(io.BytesIO(encoded)) as image:
        width, mime = image.width, Image.MIME[image.format]
    shown = width if is_chart else width * max(1, math.ceil(SMALLEST_WIDTH / width))
    kind = "chart" if is_chart else "pixels"
    data = base64.b64encode(encoded).decode()
    return f'<img class="{kind}" alt="{escape(title)}" width="{shown}" src="data:{mime};base64,{data}">'
