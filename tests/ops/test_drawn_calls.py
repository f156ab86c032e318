"""Calls that nobody thought of: shapes, strides, dtypes and arguments drawn for the public function of every op.

A valid call gives the reference's values; any other raises TypeError or ValueError that names an argument. Most draws are
valid: each strategy starts from a valid call and spoils one argument in a quarter of the cases.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from fastdiff import ops
from fastdiff.ops._activation import ACTIVATIONS
from fastdiff.ops._oracle import as_tuple, error_and_bound, in_float64

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Call = tuple[dict[str, Any], str | None]  # arguments, and the one that was spoilt


def _strided(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Values in one of the ways in which a tensor can lie in memory."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    way = draw(st.sampled_from(("contiguous", "permuted", "sliced", "expanded", "channels_last", "offset")))
    rank = len(shape)
    if way == "permuted":
        order = draw(st.permutations(range(rank)))
        base = torch.randn([shape[d] for d in order], generator=generator, dtype=torch.float64)
        return base.to(dtype).permute([order.index(d) for d in range(rank)])
    if way == "sliced":
        base = torch.randn([2 * s + 1 for s in shape], generator=generator, dtype=torch.float64).to(dtype)
        return base[tuple(slice(1, 2 * s + 1, 2) for s in shape)]
    if way == "expanded":
        kept = [s if draw(st.booleans()) else 1 for s in shape]
        return torch.randn(kept, generator=generator, dtype=torch.float64).to(dtype).expand(shape)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if way == "channels_last" and rank in (4, 5):
        return x.contiguous(memory_format=torch.channels_last if rank == 4 else torch.channels_last_3d)
    if way == "offset":
        return torch.cat((x.new_zeros(1), x.reshape(-1)))[1:].reshape(shape)
    return x


def _images(draw: st.DrawFn, channels: int | None = None) -> torch.Tensor:
    rank = draw(st.integers(3, 5))
    c = draw(st.integers(0, 9)) if channels is None else channels
    shape = (draw(st.integers(0, 3)), c, *(draw(st.integers(0, 5)) for _ in range(rank - 2)))
    return _strided(draw, shape, draw(st.sampled_from(DTYPES)))


def _parameter(draw: st.DrawFn, shape: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    return _strided(draw, shape, x.dtype if x.dtype is torch.float64 or draw(st.booleans()) else torch.float32)


def _spoil(draw: st.DrawFn, arguments: dict[str, Any], bad: dict[str, list[Any]]) -> Call:
    if draw(st.sampled_from((False, False, False, True))) is False:
        return arguments, None
    name = draw(st.sampled_from(sorted(bad)))
    return arguments | {name: draw(st.sampled_from(bad[name]))}, name


@st.composite
def film_calls(draw: st.DrawFn) -> Call:
    x = _images(draw)
    shape = tuple(x.shape[:2])
    scale = _parameter(draw, shape, x)
    shift = _strided(draw, shape, scale.dtype) if draw(st.booleans()) else None
    arguments = {"x": x, "scale": scale, "shift": shift, "act": draw(st.sampled_from(ACTIVATIONS))}
    wrong = [torch.zeros(shape[0] + 1, shape[1]), torch.zeros(shape[1]), torch.zeros(shape, dtype=torch.int32), 1.0, None]
    return _spoil(draw, arguments, {"x": [torch.zeros(2, 3), x.to(torch.int64), None], "scale": wrong, "act": ["", None, 3]})


@st.composite
def group_norm_calls(draw: st.DrawFn) -> Call:
    groups = draw(st.integers(1, 4))
    x = _images(draw, groups * draw(st.integers(1, 3)))
    if x.shape[0] and not x[0].numel():
        x = x.new_ones(x.shape[0], x.shape[1], 2)
    n, c = x.shape[:2]
    arguments: dict[str, Any] = {"x": x, "groups": groups, "act": draw(st.sampled_from(ACTIVATIONS))}
    for name, shape in (("weight", (c,)), ("bias", (c,)), ("scale", (n, c)), ("shift", (n, c))):
        if draw(st.booleans()):
            arguments[name] = _parameter(draw, shape, x)
    bad = {
        "groups": [0, -1, c + 1, 2.0],
        "weight": [torch.zeros(c + 1), torch.zeros(c, dtype=torch.int64)],
        "scale": [torch.zeros(c), torch.zeros(n, c + 1)],
        "eps": [0.0, -1.0, float("nan")],
        "x": [torch.zeros(n, c), torch.zeros(2, c, 0)],
        "act": ["swish"],
    }
    return _spoil(draw, arguments, bad)


@st.composite
def philox_calls(draw: st.DrawFn) -> Call:
    shape = tuple(draw(st.integers(0, 5)) for _ in range(draw(st.integers(1, 4))))
    seeds = torch.tensor([draw(st.integers(-(2**63), 2**63 - 1)) for _ in range(shape[0])], dtype=torch.int64)
    arguments = {"shape": shape, "seeds": seeds, "step": draw(st.integers(0, 2**32 - 1)), "purpose": draw(st.integers(0, 9))}
    bad = {"seeds": [seeds.float(), torch.zeros(shape[0] + 1, dtype=torch.int64), 5], "step": [-1, 2**32], "purpose": [-1]}
    return _spoil(draw, arguments, bad)


@st.composite
def q_sample_calls(draw: st.DrawFn) -> Call:
    x0 = _images(draw)
    n, steps = x0.shape[0], draw(st.integers(1, 9))
    t = torch.tensor([draw(st.integers(0, steps - 1)) for _ in range(n)], dtype=torch.int64)
    abar = torch.linspace(1, 0, steps)
    arguments: dict[str, Any] = {"x0": x0, "t": t, "signal": abar.sqrt(), "sigma": (1 - abar).sqrt()}
    if draw(st.booleans()):
        arguments["noise"] = _strided(draw, tuple(x0.shape), x0.dtype)
    else:
        arguments |= {"seeds": torch.arange(n), "step": draw(st.integers(0, 99))}
    bad = {
        "t": [torch.full((n + 2,), 0), t.float(), torch.full((max(n, 1),), steps), torch.full((1,), -1)],
        "signal": [abar.double(), torch.zeros(steps + 1), torch.zeros(steps, 1)],
        "noise": [torch.zeros(n + 1, 2), 0.5],
        "x0": [x0.to(torch.int32), "x"],
    }
    return _spoil(draw, arguments, bad)


@st.composite
def step_calls(draw: st.DrawFn) -> Call:
    x = _images(draw)
    n = x.shape[0]
    coefficients = torch.linspace(-1, 1, 6)
    if draw(st.booleans()):
        coefficients = coefficients.repeat(n, 1)
    arguments: dict[str, Any] = {"x": x, "m": _strided(draw, tuple(x.shape), x.dtype), "coefficients": coefficients}
    if draw(st.booleans()):
        arguments["previous"] = _strided(draw, tuple(x.shape), x.dtype)
    if draw(st.booleans()):
        arguments["seeds"] = torch.arange(n)
    arguments["clip"] = draw(st.sampled_from((None, 0.5, 2.0)))
    bad = {
        "m": [torch.zeros(1), None],
        "coefficients": [torch.zeros(5), torch.zeros(n + 2, 6), coefficients.double()],
        "clip": [0.0, -1.0, float("nan")],
        "seeds": [torch.zeros(n + 1, dtype=torch.int64), torch.zeros(n)],
    }
    return _spoil(draw, arguments, bad)


@st.composite
def uniform_calls(draw: st.DrawFn) -> Call:
    arguments = {"seeds": torch.arange(draw(st.integers(0, 9))) - 3, "step": draw(st.integers(0, 2**32 - 1)), "purpose": 4}
    bad = {"seeds": [torch.zeros(2), None, torch.zeros(2, 2, dtype=torch.int64)], "step": [-1, 2**32], "purpose": [-1, 2**31]}
    return _spoil(draw, arguments, bad)


@st.composite
def ddpm_calls(draw: st.DrawFn) -> Call:
    x = _images(draw)
    n, steps = x.shape[0], draw(st.integers(1, 9))
    arguments = {
        "x": x,
        "m": _strided(draw, tuple(x.shape), x.dtype),
        "t": torch.tensor([draw(st.integers(0, steps - 1)) for _ in range(n)], dtype=torch.int64),
        "table": torch.linspace(-1, 1, 5 * steps).reshape(steps, 5),
        "seeds": torch.arange(n),
        "clip": draw(st.sampled_from((None, 1.0))),
    }
    bad = {
        "m": [torch.zeros(1), None],
        "t": [torch.full((1,), steps), torch.full((1,), -1), torch.zeros(1)],
        "table": [torch.zeros(steps, 6), torch.zeros(5), torch.zeros(steps, 5).half()],
        "seeds": [None, torch.zeros(n + 1, dtype=torch.int64)],
    }
    return _spoil(draw, arguments, bad)


@st.composite
def embedding_calls(draw: st.DrawFn) -> Call:
    dtype = draw(st.sampled_from((torch.int64, torch.int32, torch.float32, torch.bfloat16, torch.float64)))
    t = _strided(draw, (draw(st.integers(0, 5)),), torch.float64).abs().mul(300).to(dtype)
    arguments = {"t": t, "dim": 2 * draw(st.integers(1, 20)), "max_period": draw(st.sampled_from((100.0, 10000.0)))}
    bad = {"t": [torch.zeros(2, 2), 5, torch.zeros(2, dtype=torch.bool)], "dim": [0, 3, -2], "max_period": [1.0, -1.0]}
    return _spoil(draw, arguments, bad)


@st.composite
def attention_calls(draw: st.DrawFn) -> Call:
    n, h, dtype = draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(st.sampled_from(DTYPES))
    queries, keys, d = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(8, 24))
    arguments: dict[str, Any] = {"q": _strided(draw, (n, h, queries, d), dtype)}
    arguments |= {name: _strided(draw, (n, h, keys, d), dtype) for name in "kv"}
    full = (n, h, queries, keys)
    if draw(st.booleans()):
        shape = tuple(s if draw(st.booleans()) else 1 for s in full)[draw(st.integers(0, 3)) :]
        mask = _strided(draw, shape, dtype if dtype is torch.float64 or draw(st.booleans()) else torch.float32)
        kind = draw(st.sampled_from(("bool", "additive", "excluding")))
        arguments["mask"] = {"bool": mask > 0, "additive": mask, "excluding": mask.masked_fill(mask > 0.5, -torch.inf)}[kind]
    if draw(st.booleans()):
        arguments["scale"] = draw(st.sampled_from((1, 0.5, 0.0, -0.25)))
    bad = {
        "q": [None, torch.zeros(2, 8), torch.zeros(n, h, 0, 8), torch.zeros(n, h, 1, 7), torch.zeros(n, h, 1, 257)],
        "k": [torch.zeros(n, h, keys, d + 1, dtype=dtype), torch.zeros(n, h, 0, d, dtype=dtype), torch.zeros(1), 2],
        "v": [torch.zeros(n, h, keys + 1, d, dtype=dtype), torch.zeros(n, h, keys, d, dtype=torch.int32), None],
        "mask": [torch.zeros(queries, keys + 2), torch.zeros(1, dtype=torch.int64), torch.zeros(1, *full), 1.0],
        "scale": [float("nan"), float("inf"), "1", True],
    }
    return _spoil(draw, arguments, bad)


@st.composite
def convolution_calls(draw: st.DrawFn) -> Call:
    dtype, n = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2))
    height, width, c1 = draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.integers(1, 20))
    c2, outputs = draw(st.sampled_from((0, 0, 3, 17))), draw(st.integers(1, 40))
    kh, kw = draw(st.sampled_from(((1, 1), (3, 3), (3, 3), (2, 3))))
    stride, up = draw(st.integers(1, 2)), draw(st.booleans())
    padding = draw(st.sampled_from((1, (1, 1, 1, 1), (0, 2, 1, 1))))
    x = _strided(draw, (n, c1, height, width), dtype)
    wide = torch.promote_types(dtype, torch.float32)
    arguments: dict[str, Any] = {
        "x": x,
        "weight": _strided(draw, (outputs, c1 + c2, kh, kw), dtype),
        "act_in": draw(st.sampled_from(ACTIVATIONS)),
        "act_out": draw(st.sampled_from(ACTIVATIONS)),
        "stride": stride,
        "padding": padding,
        "upsample": up,
        "statistics": draw(st.booleans()),
    }
    if c2:
        arguments["x2"] = _strided(draw, (n, c2, height, width), dtype)
    if draw(st.booleans()):
        arguments |= {name: _strided(draw, (n, c1 + c2), wide) for name in "ab"}
    if draw(st.booleans()):
        arguments["bias"] = _strided(draw, draw(st.sampled_from(((outputs,), (n, outputs)))), wide)
    if draw(st.booleans()):
        sizes = ((1 + up) * height + 2 - kh, (1 + up) * width + 2 - kw)
        arguments["residual"] = _strided(draw, (n, outputs, *(size // stride + 1 for size in sizes)), dtype)
    bad = {
        "x": [None, torch.zeros(2, 3), x.to(torch.int32)],
        "weight": [torch.zeros(outputs, c1 + c2 + 1, kh, kw, dtype=dtype), torch.zeros(3), None],
        "bias": [torch.zeros(outputs + 1), 1.0],
        "act_in": ["tanh"],
        "stride": [0, 1.5, True],
        "padding": [-1, (1, 1), (0, 0, 0, -1)],
        "residual": [torch.zeros(n, outputs + 1, 9, 9, dtype=dtype)],
        "a": [torch.zeros(n + 1, c1)],
    }
    return _spoil(draw, arguments, bad)


@st.composite
def norm_convolution_calls(draw: st.DrawFn) -> Call:
    dtype, n = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 3))
    height, width, c1 = draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.integers(1, 20))
    c2, outputs = draw(st.sampled_from((0, 0, 3, 17))), draw(st.integers(1, 40))
    channels, (kh, kw) = c1 + c2, draw(st.sampled_from(((1, 1), (3, 3), (3, 3), (2, 3))))
    stride, up = draw(st.integers(1, 2)), draw(st.booleans())
    groups = draw(st.sampled_from([0, *(g for g in range(1, channels + 1) if channels % g == 0)]))
    x = _strided(draw, (n, c1, height, width), dtype)
    arguments: dict[str, Any] = {
        "x": x,
        "weight": _parameter(draw, (outputs, channels, kh, kw), x),
        "groups": groups,
        "act": draw(st.sampled_from(ACTIVATIONS)),
        "stride": stride,
        "padding": draw(st.sampled_from((1, (1, 1, 1, 1), (0, 2, 1, 1)))),
        "upsample": up,
        "statistics": draw(st.booleans()),
    }
    if c2:
        arguments["x2"] = _strided(draw, (n, c2, height, width), dtype)
    shapes = {"gn_weight": (channels,), "gn_bias": (channels,), "scale": (n, channels), "shift": (n, channels)}
    arguments |= {name: _parameter(draw, shape, x) for name, shape in shapes.items() if groups and draw(st.booleans())}
    if draw(st.booleans()):
        arguments["bias"] = _parameter(draw, draw(st.sampled_from(((outputs,), (n, outputs)))), x)
    if draw(st.booleans()):
        sizes = ((1 + up) * height + 2 - kh, (1 + up) * width + 2 - kw)
        arguments["residual"] = _strided(draw, (n, outputs, *(size // stride + 1 for size in sizes)), dtype)
    bad = {
        "x": [None, torch.zeros(2, 3), x.to(torch.int32)],
        "weight": [torch.zeros(outputs, channels + 1, kh, kw, dtype=dtype), torch.zeros(3), None],
        "groups": [-1, channels + 1, 1.0, True],
        "scale": [torch.zeros(channels), torch.zeros(n + 1, channels)],
        "partials": [torch.zeros(n, c1, 3), torch.zeros(n, c1, 0, 3), 1.0],
        "eps": [0.0, -1.0, float("nan"), "1"],
        "bias": [torch.zeros(outputs + 1), 1.0],
        "act": ["tanh"],
        "stride": [0, 1.5, True],
        "padding": [-1, (1, 1), (0, 0, 0, -1)],
        "residual": [torch.zeros(n, outputs + 1, 9, 9, dtype=dtype)],
    }
    return _spoil(draw, arguments, bad)


@st.composite
def affine_calls(draw: st.DrawFn) -> Call:
    n, groups, each = draw(st.integers(0, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    wide, channels = draw(st.sampled_from((torch.float32, torch.float64))), groups * each

    def partials(c: int) -> torch.Tensor:
        p = _strided(draw, (n, c, draw(st.integers(1, 5)), 3), wide).clone()
        return torch.stack((p[..., 0].abs().ceil() + 1, p[..., 1], p[..., 2].square()), -1)

    first = draw(st.integers(1, channels))
    arguments: dict[str, Any] = {"partials": partials(first), "groups": groups}
    if first < channels:
        arguments["partials2"] = partials(channels - first)
    for name, shape in (("weight", (channels,)), ("bias", (channels,)), ("scale", (n, channels)), ("shift", (n, channels))):
        if draw(st.booleans()):
            arguments[name] = _strided(draw, shape, wide)
    bad = {
        "partials": [None, torch.zeros(n, first, 3), torch.zeros(n, first, 0, 3, dtype=wide)],
        "groups": [0, channels + 1, 1.0, True],
        "weight": [torch.zeros(channels + 1), torch.zeros(channels, dtype=torch.int64)],
        "scale": [torch.zeros(channels)],
        "eps": [-1.0, float("nan"), "1"],
    }
    return _spoil(draw, arguments, bad)


@st.composite
def packing_calls(draw: st.DrawFn) -> Call:
    kernel = draw(st.sampled_from(((1, 1), (3, 3), (2, 5))))
    shape = (draw(st.integers(1, 40)), draw(st.integers(1, 40)), *kernel)
    arguments = {"weight": _strided(draw, shape, draw(st.sampled_from(DTYPES)))}
    if kernel == (3, 3):
        arguments["winograd"] = draw(st.booleans())
    return _spoil(draw, arguments, {"weight": [None, torch.zeros(3, 3), torch.zeros(0, 1, 3, 3), torch.ones(2, 2, 1, 1).int()]})


# What is drawn for each op's public function, and the raw op's arguments that its result is compared with.
DRAWN: dict[str, st.SearchStrategy[Call]] = {
    "film": film_calls(),
    "group_norm_silu": group_norm_calls(),
    "philox_normal": philox_calls(),
    "philox_uniform": uniform_calls(),
    "q_sample": q_sample_calls(),
    "sampler_step": step_calls(),
    "ddpm_step": ddpm_calls(),
    "timestep_embedding": embedding_calls(),
    "attention": attention_calls(),
    "conv2d_fused": convolution_calls(),
    "norm_conv2d": norm_convolution_calls(),
    "norm_affine": affine_calls(),
    "pack_conv_weight": packing_calls(),
}


def _attention_arguments(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, scale: float | None = None
) -> tuple[Any, ...]:
    return q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else float(scale)


# The raw op's arguments for functions that may hand a call to torch's own operators instead of the op.
PAST_THE_OP: dict[str, Callable[..., tuple[Any, ...]]] = {"attention": _attention_arguments}


def test_every_op_is_drawn() -> None:
    assert set(DRAWN) == {name for name in ops.REGISTRY if not name.endswith("_backward")}


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_calls(name: str) -> None:
    public, op, valid = getattr(ops, name), ops.REGISTRY[name], []

    @settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(call=DRAWN[name])
    def check(call: Call) -> None:
        arguments, spoilt = call
        valid.append(spoilt is None)
        if spoilt is not None:
            with pytest.raises((TypeError, ValueError)) as caught:
                public(**arguments)
            first_word = str(caught.value).split()[0]
            assert first_word in inspect.signature(public).parameters, str(caught.value)
            return
        with _recorded(op) as raw:
            got = as_tuple(public(**arguments))
        args = raw[0] if raw else PAST_THE_OP[name](**arguments)
        plain, truth = as_tuple(op.plain(*args)), as_tuple(op.reference(*in_float64(args)))
        for g, p, t in zip(got, plain, truth, strict=False):
            if p.shape == g.shape:  # an empty tensor stands for a noise that was given
                error, bound = error_and_bound(g, p, t, op.floor)
                assert error <= bound, f"error {error:.2e} is above {bound:.2e}"

    check()
    assert sum(valid) >= len(valid) / 2, f"only {sum(valid)} of {len(valid)} drawn calls were valid"
    assert sum(valid) < len(valid)


class _recorded:
    """The raw arguments that the public function hands to its op."""

    def __init__(self, op: ops.Op) -> None:
        self._op, self.calls = op, []

    def __enter__(self) -> list[tuple[Any, ...]]:
        calls = self.calls
        self._plain: Callable[..., Any] = type(self._op).__call__

        def call(op: ops.Op, *args: Any) -> Any:
            if op is self._op:
                calls.append(args)
            return self._plain(op, *args)

        type(self._op).__call__ = call
        return calls

    def __exit__(self, *_: Any) -> None:
        type(self._op).__call__ = self._plain
