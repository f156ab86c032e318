"""What is timed for an op, and whether its values are right: a time is taken only of values that pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rivals import rival

from fastdiff import ops
from fastdiff.ops import Op
from fastdiff.ops._oracle import as_tuple, error_and_bound, errors_and_bounds, in_float64

Args = tuple[Any, ...]
# Their public function takes ways that the op does not, with the same arguments, and gives the op's first output.
PUBLIC = {"attention": ops.attention}


def ours(op: Op) -> Callable[..., Any]:
    """What a user of fastdiff calls: the op, or its public function where that does more than check."""
    return PUBLIC.get(op.name, op)


def passes(op: Op, args: Args, checked: Op, checked_args: Args) -> tuple[float, float]:
    """The largest error of what is timed, and its bound; AssertionError where it is above. checked: op or its backward.

    A public function is held against float64 beside torch's own (`rivals.py`), backward through autograd.
    """
    if op.name not in PUBLIC:
        with torch.no_grad():
            found = errors_and_bounds(checked, checked_args)
    else:
        run = first_output if op is checked else lambda *call: backward(*call)()
        values = run(ours(op), args), run(rival(op), args), run(op.reference, in_float64(args))
        found = [error_and_bound(*of, op.floor) for of in zip(*values, strict=True)]
    assert all(error <= bound for error, bound in found), f"{checked.name}: {found}"
    return max(found)


def first_output(function: Callable[..., Any], args: Args) -> tuple[torch.Tensor]:
    with torch.no_grad():
        return as_tuple(function(*args))[:1]


def backward(function: Callable[..., Any], args: Args) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Autograd's backward of the first output, for all floating arguments."""
    leaves = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
    wanted = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    y = as_tuple(function(*leaves))[0]
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).bfloat16()  # the same in any dtype
    grad = torch.empty_like(y).copy_(grad)  # in y's memory format
    return lambda: torch.autograd.grad(y, wanted, grad, retain_graph=True)
