import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from fastdiff.visualization import loss_figures, plot_images, plot_loss, plot_training_curves
from fastdiff.visualization.chart import COLORS
from fastdiff.visualization.plots import RAW_COLOR, smooth

DECAY = np.exp(-np.arange(400) / 100) + 0.05 * np.random.default_rng(0).standard_normal(400)


def count(image, color):
    return int((np.asarray(image) == ImageColor.getrgb(color)).all(axis=2).sum())


def test_plot_loss_draws_raw_and_smoothed_and_saves_what_it_returns(tmp_path):
    image = plot_loss(DECAY.tolist(), save_path=str(tmp_path / "sub" / "l.png"), title="Training Loss")
    assert (np.asarray(Image.open(tmp_path / "sub" / "l.png")) == np.asarray(image)).all()
    assert count(image, RAW_COLOR) > 1000
    assert count(image, COLORS[0]) > 500


def test_short_curves_are_drawn_once():
    image = plot_loss([1.0, 0.5])
    assert count(image, RAW_COLOR) == 0
    assert count(image, COLORS[0]) > 300


def test_plot_loss_takes_what_training_gives():
    expected = plot_loss([1.0, 0.5, 0.25]).tobytes()
    for losses in (torch.tensor([1.0, 0.5, 0.25], requires_grad=True), [torch.tensor(1.0), 0.5, np.float32(0.25)]):
        assert plot_loss(losses).tobytes() == expected


@pytest.mark.parametrize("losses", [[], [float("nan")]])
def test_plot_loss_without_a_finite_loss(losses):
    with pytest.raises(ValueError, match="no finite point"):
        plot_loss(losses)


def test_smooth_is_the_centred_mean():
    y = np.random.default_rng(1).standard_normal(200)
    got = smooth(y)  # half a window is 5
    assert got[0] == pytest.approx(y[0])
    assert got[2] == pytest.approx(y[:5].mean())
    assert got[100] == pytest.approx(y[95:106].mean())
    assert got[-1] == pytest.approx(y[-1])
    y[100] = np.nan
    assert smooth(y)[103] == pytest.approx(np.nanmean(y[98:109]))


def test_loss_figures():
    line = loss_figures(np.linspace(1, 0, 100))
    assert line["smoothness"] == pytest.approx(1)
    assert line["monotonicity"] == 1
    assert loss_figures(np.linspace(0, 1, 100))["monotonicity"] == 0
    noise = loss_figures(np.random.default_rng(2).standard_normal(100_000))
    assert noise["smoothness"] == pytest.approx(1 / (1 + 6**0.5), abs=0.01)
    assert noise["monotonicity"] == pytest.approx(0.5, abs=0.01)
    assert loss_figures([0.3] * 10) == {"smoothness": 1.0, "monotonicity": 0.0}


def test_loss_figures_leave_out_what_is_not_finite():
    holes = np.insert(DECAY, [3, 50], [np.nan, np.inf])
    assert loss_figures(holes) == loss_figures(DECAY)
    assert loss_figures([1.0, float("nan"), 0.5]) == {}


def test_training_curves_have_a_panel_per_curve(tmp_path):
    history = {"train_losses": DECAY, "epoch_losses": [1.0, 0.5, 0.2]}
    both = plot_training_curves(history, save_path=tmp_path / "c.png")
    assert both.size == Image.open(tmp_path / "c.png").size == (1280, 400)
    assert count(both.crop((0, 0, 640, 400)), RAW_COLOR) > 500
    assert count(both.crop((640, 0, 1280, 400)), RAW_COLOR) == 0
    assert count(both.crop((640, 0, 1280, 400)), COLORS[0]) > 300
    alone = plot_training_curves({"train_losses": [], "epoch_losses": [1.0, 0.5, 0.2]})
    assert alone.tobytes() == both.crop((640, 0, 1280, 400)).tobytes()
    assert plot_training_curves({**history, "accuracy": [0.1, 0.9]}).size == (1280, 800)


@pytest.mark.parametrize("history", [{}, {"train_losses": []}])
def test_training_curves_of_nothing(history):
    with pytest.raises(ValueError, match="history"):
        plot_training_curves(history)


def test_plot_images_fills_the_figure_with_whole_pixels(tmp_path):
    x = torch.full((4, 1, 28, 28), -1.0)
    x[1] = 1
    figure = plot_images(x, title="Generated Images", nrow=2, figsize=(4, 4), save_path=tmp_path / "i.png")
    # A tile grows 5 times: 2 * 140 + 3 * 2 pixels of grid, 12 of margin, 36 of title.
    assert figure.size == Image.open(tmp_path / "i.png").size == (286 + 24, 286 + 24 + 36)
    assert figure.getpixel((14 + 139, 50 + 139)) == (0, 0, 0)
    assert figure.getpixel((14 + 142, 50)) == (255, 255, 255)
    assert np.asarray(figure)[10:40, 10:150].min() < 100  # the title
    assert plot_images(x, nrow=2, figsize=(4, 4)).size == (366, 366)  # without a title 6 times


def test_plot_images_shrinks_what_does_not_fit():
    figure = plot_images(torch.zeros(16, 3, 128, 128), figsize=(2, 2))
    assert figure.size == (200, 200)
    with pytest.raises(ValueError, match="figsize"):
        plot_images(torch.zeros(1, 1, 8, 8), figsize=(0, 5))
