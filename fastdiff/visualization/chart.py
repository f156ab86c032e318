"""A line chart drawn with Pillow alone, so that every run has its curves with nothing extra installed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

COLORS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2", "#a16207", "#475569")
BACKGROUND, GRID, AXIS, TEXT, MUTED_TEXT = "#ffffff", "#e5e7eb", "#9ca3af", "#111827", "#4b5563"

OVERSAMPLING = 3  # lines are drawn this many times larger and averaged down; text is antialiased by its font
LINE_WIDTH = 2  # pixels
LOG_SPAN = 50  # largest / smallest value from which the vertical axis becomes logarithmic


def line_chart(
    series: Mapping[str, tuple],
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    size: tuple[int, int] = (800, 480),
    log_y: bool | None = None,
    log_x: bool = False,
    colors: Mapping[str, str] | None = None,
) -> Image.Image:
    """Draws named curves (x, y) into one RGB picture of `size` pixels (width, height).

    x and y are sequences, arrays or tensors of one length. Points that are not finite (or not positive on a logarithmic
    axis) are skipped and the line breaks there; a point without neighbours is a dot. `log_y=None` takes a logarithmic
    axis where all values are positive and the largest is more than 50 times the smallest. Several curves get a legend.
    `log_x=True` takes a logarithmic horizontal axis; x must then be positive.
    `colors` maps names to Pillow colours; the others take theirs from `COLORS` in turn.

    Raises ValueError for no point to draw, for an x that a logarithmic axis has no place for, for x and y that do not
    match, and for a size below 200 x 150.
    """
    width, height = size
    if width < 200 or height < 150:
        raise ValueError(f"size must be at least (200, 150) pixels, not {size}")
    curves = {name: _curve(name, *points) for name, points in series.items()}
    log = _spans_decades(curves.values()) if log_y is None else log_y
    runs = {name: _finite_runs(x, y, log) for name, (x, y) in curves.items()}
    drawn = [run for curve_runs in runs.values() for run in curve_runs]
    if not drawn:
        raise ValueError("line_chart has no finite point to draw")
    x_axis = _x_axis(np.concatenate([x for x, _ in drawn]), log_x)
    y_axis = _y_axis(np.concatenate([y for _, y in drawn]), log)
    palette = {name: (colors or {}).get(name, COLORS[i % len(COLORS)]) for i, name in enumerate(runs)}

    small, large = ImageFont.load_default(13), ImageFont.load_default(18)
    legend = _legend_rows(list(runs), small, width - 40) if len(runs) > 1 else []
    x_ticks, y_ticks = x_axis.ticks(max(2, width // 110)), y_axis.ticks(max(2, height // 75))
    box = _Box(
        left=20 + (20 if ylabel else 0) + math.ceil(max(small.getlength(_label(v)) for v in y_ticks)),
        top=14 + (28 if title else 0) + 22 * len(legend),
        right=width - 24,
        bottom=height - (50 if xlabel else 30),
    )
    image = _draw_curves(size, box, x_axis, y_axis, x_ticks, y_ticks, runs, palette)

    draw = ImageDraw.Draw(image)
    for value in x_ticks:
        draw.text((box.x(x_axis, value), box.bottom + 8), _label(value), MUTED_TEXT, small, anchor="mt")
    for value in y_ticks:
        draw.text((box.left - 8, box.y(y_axis, value)), _label(value), MUTED_TEXT, small, anchor="rm")
    draw.text((20, 14), title, TEXT, large, anchor="lt")
    draw.text(((box.left + box.right) / 2, height - 12), xlabel, MUTED_TEXT, small, anchor="mb")
    if ylabel:
        _draw_upwards(image, ylabel, small, center=(18, (box.top + box.bottom) // 2))
    for row, names in enumerate(legend):
        _draw_legend_row(draw, names, palette, small, center_y=(42 if title else 14) + 22 * row + 8)
    return image


@dataclass(frozen=True)
class _Axis:
    """The interval that an axis shows, in the units of the data."""

    low: float
    high: float
    log: bool = False
    whole: bool = False  # only whole numbers as ticks: there is no step 0.5

    def fraction(self, values):
        """Where values lie between the ends of the axis, 0 to 1."""
        if self.log:
            return np.log(np.asarray(values) / self.low) / math.log(self.high / self.low)
        return (np.asarray(values) - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """About `most` round values inside the axis: 1, 2 or 5 times powers of ten."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            factors = (1, 2, 5) if self.high <= 1e3 * self.low else (1,)
            stride = math.ceil((last - first) / (2 * most))
            ticks = [f * 10.0**e for e in range(first, last + 1, stride) for f in factors]
            ticks = [tick for tick in ticks if self.low <= tick <= self.high]
            if len(ticks) > 1:
                return ticks
        raw_step = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(raw_step))
        step = min((m * power for m in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / raw_step)))
        if self.whole:
            step = max(step, 1.0)
        # A little slack keeps the ends of an exact interval such as [0, 0.3], whose quotients are rounded.
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Box:
    """The rectangle of the curves, in pixels of the picture."""

    left: int
    top: int
    right: int
    bottom: int

    def x(self, axis: _Axis, values):
        return self.left + axis.fraction(values) * (self.right - self.left)

    def y(self, axis: _Axis, values):
        return self.bottom - axis.fraction(values) * (self.bottom - self.top)


def as_values(values) -> np.ndarray:
    """A tensor, array or sequence of numbers (0-d tensors too) as float64 [n]; ValueError for more dimensions."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    elif not isinstance(values, np.ndarray):
        values = [float(value) for value in values]
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"a curve must have one dimension, not shape {array.shape}")
    return array


def _curve(name: str, x, y) -> tuple[np.ndarray, np.ndarray]:
    x, y = as_values(x), as_values(y)
    if x.shape != y.shape:
        raise ValueError(f"series {name!r} has {x.size} x values and {y.size} y values")
    return x, y


def _spans_decades(curves) -> bool:
    finite = [y[np.isfinite(x) & np.isfinite(y)] for x, y in curves]
    values = np.concatenate([*finite, np.empty(0)])
    return bool(values.size and values.min() > 0 and values.max() > LOG_SPAN * values.min())


def _finite_runs(x: np.ndarray, y: np.ndarray, log: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """The stretches of neighbouring points that can be drawn."""
    kept = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log))
    starts = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0) == 1)
    ends = np.flatnonzero(np.diff(kept.astype(np.int8), append=0) == -1) + 1
    return [(x[a:b], y[a:b]) for a, b in zip(starts, ends, strict=True)]


def _x_axis(x: np.ndarray, log: bool = False) -> _Axis:
    low, high = float(x.min()), float(x.max())
    if log:
        if low <= 0:
            raise ValueError(f"x must be positive on a logarithmic axis, got {low}")
        return _Axis(low, high, log=True) if high > low else _Axis(low / 2, high * 2, log=True)
    if low == high:
        low, high = low - 1, high + 1
    return _Axis(low, high, whole=bool((x == np.rint(x)).all()))


def _y_axis(y: np.ndarray, log: bool) -> _Axis:
    """The range of the values and 5 % more at both ends; a constant gets room on both sides."""
    low, high = float(y.min()), float(y.max())
    if log:
        margin = (high / low) ** 0.05 if high > low else 2.0
        return _Axis(low / margin, high * margin, log=True)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return _Axis(low - margin, high + margin)


def _label(value: float) -> str:
    for least, unit, suffix in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if least <= abs(value) < 1e12:
            return f"{value / unit:.10g}{suffix}"
    return f"{value:.10g}".replace("e-0", "e-")


def _thin(x: np.ndarray, y: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Keeps the lowest and highest point of each of `columns` stretches: a million points give the same picture."""
    if x.size <= 4 * columns:
        return x, y
    edges = np.linspace(0, x.size, columns + 1).astype(int)
    extremes = [a + pick(y[a:b]) for a, b in itertools.pairwise(edges) for pick in (np.argmin, np.argmax)]
    kept = np.unique([0, *extremes, x.size - 1])
    return x[kept], y[kept]


def _draw_curves(size, box, x_axis, y_axis, x_ticks, y_ticks, runs, palette) -> Image.Image:
    """Grid lines, axes and curves, antialiased."""
    s = OVERSAMPLING
    image = Image.new("RGB", (size[0] * s, size[1] * s), BACKGROUND)
    draw = ImageDraw.Draw(image)

    def fill(left, top, right, bottom, color):
        # Whole pixels of the final picture, so that straight lines stay sharp.
        draw.rectangle((round(left) * s, round(top) * s, round(right) * s + s - 1, round(bottom) * s + s - 1), color)

    for value in x_ticks:
        x = box.x(x_axis, value)
        fill(x, box.top, x, box.bottom + 4, GRID)
    for value in y_ticks:
        y = box.y(y_axis, value)
        fill(box.left - 4, y, box.right, y, GRID)
    fill(box.left, box.bottom, box.right, box.bottom, AXIS)
    fill(box.left, box.top, box.left, box.bottom, AXIS)

    for name, curve_runs in runs.items():
        for x, y in curve_runs:
            x, y = _thin(x, y, columns=box.right - box.left)
            points = np.stack([box.x(x_axis, x), box.y(y_axis, y)], axis=1) * s + s / 2  # pixel centres
            if len(points) == 1:
                draw.circle(tuple(points[0]), 1.75 * LINE_WIDTH * s, fill=palette[name])
            else:
                draw.line([tuple(point) for point in points], palette[name], LINE_WIDTH * s, joint="curve")
    return image.reduce(s)


def _legend_rows(names: list[str], font, width: float) -> list[list[str]]:
    rows, used = [[]], 0.0
    for name in names:
        entry = 50 + font.getlength(name)
        if rows[-1] and used + entry > width:
            rows.append([])
            used = 0.0
        rows[-1].append(name)
        used += entry
    return rows


def _draw_legend_row(draw, names, palette, font, center_y: int) -> None:
    x = 20
    for name in names:
        draw.rectangle((x, center_y - 1, x + 19, center_y + 1), palette[name])
        draw.text((x + 26, center_y), name, MUTED_TEXT, font, anchor="lm")
        x += 50 + math.ceil(font.getlength(name))


def _draw_upwards(image: Image.Image, text: str, font, center: tuple[int, int]) -> None:
    left, top, right, bottom = map(math.ceil, font.getbbox(text))
    mask = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), text, 255, font)
    mask = mask.transpose(Image.Transpose.ROTATE_90)
    image.paste(MUTED_TEXT, (center[0] - mask.width // 2, center[1] - mask.height // 2), mask)
