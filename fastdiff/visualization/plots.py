"""Loss curves and image figures: each function returns the picture, which a notebook shows, and saves it on request."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastdiff.visualization.chart import BACKGROUND, COLORS, TEXT, as_values, line_chart
from fastdiff.visualization.files import write_image
from fastdiff.visualization.images import Images, image_grid

PIXELS_PER_INCH = 100
RAW_COLOR = "#bfd3fb"  # COLORS[0], pale


def smooth(losses: Sequence[float]) -> np.ndarray:
    """Centred moving mean, float64 [n], over a twentieth of the curve: an odd window of 2 (n // 40) + 1 values.

    Near the ends the window shrinks and stays centred: cut off on one side only, it would misplace the steep beginning.
    Non-finite losses are left out, and a window without a finite one gives NaN.
    """
    values = as_values(losses)
    finite = np.isfinite(values)
    origin = values[finite][0] if finite.any() else 0.0  # summed from here, a constant curve stays exactly constant
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values - origin, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(values.size)
    half = np.minimum(values.size // 40, np.minimum(index, index[::-1]))
    first, last = index - half, index + half + 1
    count = counts[last] - counts[first]
    return np.where(count > 0, origin + (sums[last] - sums[first]) / np.maximum(count, 1), np.nan)


def loss_figures(losses: Sequence[float]) -> dict[str, float]:
    """Two figures about a loss curve, without units; the non-finite losses are left out first.

    `smoothness` is 1 / (1 + r), where r is the standard deviation of the second differences over that of the losses:
    1 for a straight line, 1 / (1 + sqrt(6)) = 0.29 for white noise, whose r is sqrt(6), less for a zigzag.
    `monotonicity` is the fraction of steps of the smoothed curve (`smooth`) that go down: noise gives 0.5.

    Fewer than three finite losses have no such figures: the result is empty.
    """
    values = as_values(losses)
    values = values[np.isfinite(values)]
    if values.size < 3:
        return {}
    spread = values.std()
    roughness = np.diff(values, 2).std() / spread if spread > 0 else 0.0
    return {
        "smoothness": float(1 / (1 + roughness)),
        "monotonicity": float(np.mean(np.diff(smooth(values)) < 0)),
    }


def plot_loss(
    losses: Sequence[float],
    save_path: str | os.PathLike | None = None,
    title: str = "Training Loss",
    xlabel: str = "step",
    size: tuple[int, int] = (800, 480),
    steps: Sequence[int] | None = None,
) -> Image.Image:
    """Draws a loss curve over its steps (by default 1..n): pale as it is and strong as smoothed by `smooth`.

    A curve too short to be smoothed (n < 40) is drawn once. Raises ValueError where no loss is finite.
    """
    values = as_values(losses)
    steps = np.arange(1, values.size + 1) if steps is None else np.asarray(steps)
    series = {"loss": (steps, values)}
    if values.size >= 40:
        series["smoothed"] = (steps, smooth(values))
    colors = {"loss": RAW_COLOR, "smoothed": COLORS[0]} if len(series) > 1 else {}
    return _saved(line_chart(series, title, xlabel, "loss", size, colors=colors), save_path)


def plot_training_curves(history: Mapping[str, Sequence[float]], save_path: str | os.PathLike | None = None) -> Image.Image:
    """Draws each curve of `history` in a panel of its own, two to a row.

    Usual names are `train_losses` (one value per step) and `epoch_losses` (one per epoch); any others are drawn as
    well and empty ones are left out. Raises ValueError where nothing is left to draw.
    """
    panels = [
        plot_loss(values, title=name.replace("_", " ").capitalize(), xlabel=_index_name(name), size=(640, 400))
        for name, values in history.items()
        if len(values)
    ]
    if not panels:
        raise ValueError("history holds no values to draw")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Image.new("RGB", (640 * columns, 400 * rows), BACKGROUND)
    for i, panel in enumerate(panels):
        figure.paste(panel, (640 * (i % columns), 400 * (i // columns)))
    return _saved(figure, save_path)


def plot_images(
    images: Images,
    title: str = "",
    nrow: int = 4,
    figsize: tuple[float, float] = (10, 10),
    normalize: bool = True,
    save_path: str | os.PathLike | None = None,
) -> Image.Image:
    """Draws a titled grid of images (see `image_grid`) as large as fits into `figsize` inches, at 100 pixels per inch.

    Tiles grow by a whole factor, pixel for pixel, and the figure ends where the grid does. A grid that is too large
    as it is, is shrunk. Raises ValueError for a figure below one inch, and as `to_uint8` does.
    """
    if min(figsize) < 1:
        raise ValueError(f"figsize must be at least one inch each way, not {figsize}")
    margin, title_height = 12, 36 if title else 0
    room_x = round(figsize[0] * PIXELS_PER_INCH) - 2 * margin
    room_y = round(figsize[1] * PIXELS_PER_INCH) - 2 * margin - title_height
    grid = image_grid(images, nrow, normalize)
    scale = min(room_x // grid.width, room_y // grid.height)
    if scale > 1:
        grid = image_grid(images, nrow, normalize, scale=scale)
    elif scale < 1:
        grid.thumbnail((room_x, room_y))

    figure = Image.new("RGB", (grid.width + 2 * margin, grid.height + 2 * margin + title_height), BACKGROUND)
    figure.paste(grid, (margin, margin + title_height))
    ImageDraw.Draw(figure).text((margin, margin + 4), title, TEXT, ImageFont.load_default(20), anchor="lt")
    return _saved(figure, save_path)


def _index_name(name: str) -> str:
    return {"epoch": "epoch", "train": "step"}.get(name.split("_")[0], "entry")


def _saved(picture: Image.Image, save_path: str | os.PathLike | None) -> Image.Image:
    if save_path is not None:
        write_image(picture, save_path)
    return picture
