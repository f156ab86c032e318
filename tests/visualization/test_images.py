import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.visualization import image_grid, save_animation, save_each, save_images, to_uint8
from fastdiff.visualization.images import PADDING_GRAY


@pytest.mark.parametrize(
    ("value", "normalize", "expected"),
    [(-1, True, 0), (1, True, 255), (0, True, 128), (7, True, 255), (-7, True, 0), (0, False, 0), (0.5, False, 128)],
)
def test_values_map_to_bytes_with_clipping_and_halves_up(value, normalize, expected):
    assert to_uint8(torch.full((1, 1, 2, 2), float(value)), normalize).tolist() == np.full((1, 2, 2, 1), expected).tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_float_dtype_is_read(dtype):
    assert (to_uint8(torch.ones(1, 3, 2, 2, dtype=dtype, requires_grad=True)) == 255).all()


def test_uint8_passes_through():
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    assert (to_uint8(pixels) == pixels).all()
    assert (to_uint8(torch.from_numpy(pixels)) == pixels).all()


@pytest.mark.parametrize(
    ("shape", "of_tensor", "of_array"),
    [
        ((2, 1, 8, 6), (2, 8, 6, 1), (2, 8, 6, 1)),
        ((2, 8, 6, 3), (2, 8, 6, 3), (2, 8, 6, 3)),
        ((2, 3, 8, 3), (2, 8, 3, 3), (2, 3, 8, 3)),  # ambiguous: tensors channels first, arrays channels last
        ((2, 3, 8, 1), (2, 8, 1, 3), (2, 3, 8, 1)),
        ((3, 8, 6), (1, 8, 6, 3), (1, 8, 6, 3)),
        ((8, 6, 1), (1, 8, 6, 1), (1, 8, 6, 1)),
        ((8, 6), (1, 8, 6, 1), (1, 8, 6, 1)),
    ],
)
def test_layouts(shape, of_tensor, of_array):
    x = torch.rand(shape)
    assert to_uint8(x).shape == of_tensor
    assert to_uint8(x.numpy()).shape == of_array


def test_channels_first_moves_pixels_and_not_only_the_shape():
    x = torch.rand(2, 3, 4, 5)
    assert (to_uint8(x) == to_uint8(x.numpy().transpose(0, 2, 3, 1))).all()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.tensor([[0.0, float("nan")], [float("inf"), 1]]), ValueError, "2 non-finite values among 4"),
        (torch.zeros(2, 4, 8, 8), ValueError, r"1 or 3 channels.*\(2, 4, 8, 8\)"),
        (torch.zeros(5), ValueError, r"not \(5,\)"),
        (torch.zeros(0, 1, 8, 8), ValueError, "empty"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.long), TypeError, "int64"),
        ([[0.0]], TypeError, "list"),
    ],
)
def test_wrong_images_are_named(images, error, message):
    with pytest.raises(error, match=message):
        to_uint8(images)


def test_grid_places_tiles_row_by_row_between_padding():
    tiles = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 6)
    grid = np.asarray(image_grid(tiles, nrow=2, padding=2))
    assert grid.shape == (2 * 4 + 3 * 2, 2 * 6 + 3 * 2)
    assert (grid[2:6, 2:8] == 10).all()
    assert (grid[2:6, 10:16] == 20).all()
    assert (grid[8:12, 2:8] == 30).all()
    assert (grid[8:12, 10:16] == PADDING_GRAY).all()  # the empty place
    covered = grid.copy()
    covered[2:6, 2:8] = covered[2:6, 10:16] = covered[8:12, 2:8] = PADDING_GRAY
    assert (covered == PADDING_GRAY).all()


def test_grid_is_no_wider_than_its_images_and_keeps_colours():
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 255
    grid = image_grid(red, nrow=8, padding=0)
    assert (grid.size, grid.mode, grid.getpixel((1, 1))) == ((4, 4), "RGB", (255, 0, 0))


def test_scale_repeats_pixels():
    checker = np.array([[0, 200], [100, 50]], np.uint8)
    assert (np.asarray(image_grid(checker, padding=0, scale=3)) == np.kron(checker, np.ones((3, 3)))).all()


def test_scale_none_makes_tiles_at_least_48_pixels():
    assert image_grid(torch.zeros(1, 1, 28, 20), padding=0, scale=None).size == (60, 84)
    assert image_grid(torch.zeros(1, 1, 64, 64), padding=0, scale=None).size == (64, 64)


@pytest.mark.parametrize("wrong", [{"nrow": 0}, {"padding": -1}, {"scale": 0}, {"scale": 1.5}])
def test_wrong_grid_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        image_grid(torch.zeros(1, 1, 8, 8), **wrong)


def test_saved_grid_reads_back_and_leaves_nothing_else(tmp_path):
    x = torch.rand(5, 3, 8, 8) * 2 - 1
    path = save_images(x, str(tmp_path / "new" / "folder" / "a.png"), nrow=4, normalize=True)
    assert (np.asarray(Image.open(path)) == np.asarray(image_grid(x))).all()
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_failed_save_keeps_the_old_file(tmp_path):
    path = save_images(torch.zeros(1, 1, 8, 8), tmp_path / "a.png")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="non-finite"):
        save_images(torch.full((1, 1, 8, 8), torch.nan), path)
    assert path.read_bytes() == before


def test_unwritable_paths_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(OSError, match=r"cannot write.*file.a\.png"):
        save_images(x, tmp_path / "file" / "a.png")
    with pytest.raises(OSError, match=r"cannot write.*folder\.png"):
        save_images(x, tmp_path / "folder.png")
    with pytest.raises(ValueError, match="suffix"):
        save_images(x, tmp_path / "picture")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.png"]


def test_save_each_writes_every_image_in_order(tmp_path):
    tiles = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 6)
    paths = save_each(tiles, tmp_path / "single", "digit")
    assert [path.name for path in paths] == ["digit-00000.png", "digit-00001.png", "digit-00002.png"]
    assert [Image.open(path).getpixel((5, 3)) for path in paths] == [10, 20, 30]


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_animation_has_every_frame_and_holds_the_last(tmp_path, suffix):
    frames = [torch.full((4, 1, 8, 8), value) for value in (-1.0, -0.5, 0.2, 1.0)]
    path = save_animation(iter(frames), tmp_path / f"a.{suffix}", duration_ms=60, nrow=2, padding=0, last_ms=900)
    with Image.open(path) as animation:
        assert (animation.n_frames, animation.size) == (4, (16, 16))
        durations, values = [], []
        for i in range(4):
            animation.seek(i)
            animation.load()
            durations.append(animation.info["duration"])
            values.append(animation.convert("L").getpixel((5, 5)))
    assert durations == [60, 60, 60, 900]
    assert values == [0, 64, 153, 255]


def test_webp_is_lossless(tmp_path):
    frames = torch.rand(3, 2, 3, 8, 8) * 2 - 1
    with Image.open(save_animation(frames, tmp_path / "a.webp")) as animation:
        for i, frame in enumerate(frames):
            animation.seek(i)
            assert (np.asarray(animation.convert("RGB")) == np.asarray(image_grid(frame))).all()


def test_wrong_animations_are_named(tmp_path):
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"\.webp or \.gif"):
        save_animation([x], tmp_path / "a.png")
    with pytest.raises(ValueError, match="frames are empty"):
        save_animation([], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="one size"):
        save_animation([x, torch.zeros(1, 1, 9, 9)], tmp_path / "a.gif")
