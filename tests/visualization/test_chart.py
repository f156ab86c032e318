import numpy as np
import pytest
import torch
from PIL import ImageColor

from fastdiff.visualization import line_chart
from fastdiff.visualization.chart import COLORS, _Axis, _label, _thin


def pixels_of(image, color):
    """Rows and columns of the pixels that have just this colour."""
    return np.nonzero((np.asarray(image) == ImageColor.getrgb(color)).all(axis=2))


def test_a_rising_line_runs_from_bottom_left_to_top_right():
    rows, columns = pixels_of(line_chart({"a": ([0, 1, 2], [0, 1, 2])}), COLORS[0])
    assert columns.min() < 80 < 740 < columns.max()
    assert rows[columns.argmin()] > 400
    assert rows[columns.argmax()] < 60
    assert np.corrcoef(rows, columns)[0, 1] < -0.999


def test_a_constant_is_a_level_line_in_the_middle():
    image = line_chart({"a": ([0, 10], [3, 3])}, size=(400, 300))
    rows, columns = pixels_of(image, COLORS[0])
    assert np.ptp(rows) <= 2
    assert 100 < rows.mean() < 180
    assert np.ptp(columns) > 250


def test_a_hole_breaks_the_line():
    y = np.ones(101)
    whole = set(pixels_of(line_chart({"a": (range(101), y)}), COLORS[0])[1].tolist())
    y[40:60] = np.nan
    y[80] = np.inf
    broken = set(pixels_of(line_chart({"a": (range(101), y)}), COLORS[0])[1].tolist())
    left, right = min(whole), max(whole)
    columns = {round(left + (right - left) * x / 100) for x in range(42, 58)}
    assert columns <= whole
    assert not columns & broken
    assert round(left + (right - left) * 0.2) in broken


def test_a_point_alone_is_a_dot():
    rows, columns = pixels_of(line_chart({"a": ([5], [1.0])}), COLORS[0])
    assert 4 <= np.ptp(rows) <= 8
    assert 4 <= np.ptp(columns) <= 8


def test_curves_have_their_colours_and_a_legend():
    two = line_chart({"a": ([0, 1], [0, 0]), "b": ([0, 1], [1, 1])})
    one = line_chart({"a": ([0, 1], [0, 0])})
    assert pixels_of(two, COLORS[0])[0].size > 500 < pixels_of(two, COLORS[1])[0].size
    assert pixels_of(one, COLORS[1])[0].size == 0
    assert pixels_of(two, COLORS[1])[0].min() < 12 + pixels_of(two, COLORS[1])[1].min()  # its legend, at the top left
    chosen = line_chart({"a": ([0, 1], [0, 0])}, colors={"a": "#ff0000"})
    assert pixels_of(chosen, "#ff0000")[0].size > 500


def test_text_is_drawn_where_it_belongs():
    line = {"a": ([0, 1], [0, 1])}
    plain, labelled = (np.asarray(line_chart(line, **words)) for words in ({}, {"xlabel": "step", "ylabel": "loss"}))
    assert (plain[470:] == 255).all()
    assert labelled[455:, 300:500].min() < 150
    rows, _ = np.nonzero(labelled[:, 8:30].min(axis=2) < 150)  # left of the tick labels
    assert rows.size
    assert 180 < rows.min() < rows.max() < 270
    assert np.asarray(line_chart(line, title="Loss"))[10:30, 15:70].min() < 100


def test_log_axis_straightens_an_exponential_and_is_chosen_by_span():
    x = np.arange(200)
    decay = np.exp(-x / 20)
    straight = pixels_of(line_chart({"a": (x, decay)}), COLORS[0])
    bent = pixels_of(line_chart({"a": (x, decay)}, log_y=False), COLORS[0])
    assert np.corrcoef(*straight)[0, 1] > 0.999 > 0.95 > np.corrcoef(*bent)[0, 1]

    for y, is_log in (([1, 51], True), ([1, 49], False), ([0, 51], False), ([-1, 51], False)):
        series = {"a": ([0, 1], y)}
        assert (line_chart(series).tobytes() == line_chart(series, log_y=True).tobytes()) == is_log


def test_a_horizontal_log_axis_straightens_a_logarithm():
    x = 2.0 ** np.arange(8)
    rows, columns = pixels_of(line_chart({"a": (x, np.arange(8))}, log_x=True), COLORS[0])
    assert np.corrcoef(rows, columns)[0, 1] < -0.999
    assert line_chart({"a": ([3], [1])}, log_x=True).size == (800, 480)
    with pytest.raises(ValueError, match="x must be positive on a logarithmic axis, got 0"):
        line_chart({"a": ([0, 1], [1, 2])}, log_x=True)


def test_log_axis_skips_what_is_not_positive():
    image = line_chart({"a": ([0, 1, 2, 3, 4], [1, 0, -5, 10, 100])}, log_y=True)
    assert pixels_of(image, COLORS[0])[0].size


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (_Axis(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (_Axis(-0.3, 1.2), [-0.25 + 0.05, 0, 0.2, 0.4, 0.6, 0.8, 1, 1.2]),
        (_Axis(0, 2300), [0, 500, 1000, 1500, 2000]),
        (_Axis(1, 3, whole=True), [1, 2, 3]),
        (_Axis(0.5, 300, log=True), [0.5, 1, 2, 5, 10, 20, 50, 100, 200]),
        (_Axis(1e-6, 1.5, log=True), [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1]),
        (_Axis(1.1, 1.9, log=True), [1.2, 1.4, 1.6, 1.8]),
    ],
)
def test_ticks_are_round(axis, expected):
    assert axis.ticks(5) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3 * 0.1, "0.3"), (5000, "5000"), (20000, "20k"), (2.5e6, "2.5M"), (1e-5, "1e-5"), (-0.5, "-0.5")],
)
def test_tick_labels(value, text):
    assert _label(value) == text


def test_thinning_keeps_the_extremes():
    y = np.sin(np.arange(100_000.0))
    y[77_777], y[33_333] = 9, -9
    x, thin = _thin(np.arange(100_000), y, columns=100)
    assert thin.size <= 202
    assert (x[thin.argmax()], x[thin.argmin()]) == (77_777, 33_333)


def test_tensors_and_size():
    assert line_chart({"a": (torch.arange(3), torch.rand(3, requires_grad=True))}, size=(300, 200)).size == (300, 200)


def test_wrong_input_is_named():
    for nothing in ({}, {"a": ([], [])}, {"a": ([1], [float("nan")])}):
        with pytest.raises(ValueError, match="no finite point"):
            line_chart(nothing)
    with pytest.raises(ValueError, match="series 'a' has 2 x values and 1 y values"):
        line_chart({"a": ([1, 2], [1])})
    with pytest.raises(ValueError, match="one dimension"):
        line_chart({"a": (np.zeros((2, 2)), np.zeros((2, 2)))})
    with pytest.raises(ValueError, match="size"):
        line_chart({"a": ([1], [1])}, size=(10, 10))
