"""define(): the one way to register an op.

An op's schema lives here in Python. Its plain-torch reference is registered as `CompositeExplicitAutograd`, so it serves
every device, fake and meta tensors included, until a compiled kernel for that device overrides it. Derivatives are
registered above it, so they are the same with and without anything compiled.

    public function -> Op.__call__ -> dispatcher -> csrc/<op>/bind.cpp -> kernel
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

NAMESPACE = "fastdiff"
REGISTRY: dict[str, Op] = {}

# Kernels compute in float32. Native CPU kernels take double as well: they hide the reference, and gradcheck needs it.
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
NATIVE_FLOATS = {"CPU": (*FLOATS, torch.float64), "CUDA": FLOATS}

_library = torch.library.Library(NAMESPACE, "DEF")
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


@dataclass(frozen=True)
class Sample:
    """One call of an op, as tests, benchmarks and `fastdiff doctor` make it.

    `args` are the op's positional arguments. `tiny` samples are small enough for gradcheck; `large` ones are for timing and
    come after all others.
    """

    name: str
    args: tuple[Any, ...]
    tiny: bool = False
    large: bool = False


Samples = Callable[[torch.dtype, torch.device | str], Iterator[Sample]]


@dataclass(frozen=True, eq=False)
class Op:
    """A registered op. Calling it runs the op; `reference` is its definition in plain torch."""

    name: str
    reference: Callable[..., Any]
    samples: Samples
    native: dict[str, tuple[torch.dtype, ...]]  # dispatch key -> dtypes of the compiled kernel; {} where none is stated
    differentiable: bool
    floor: float  # absolute error allowed beside twice plain torch's, for values of order one
    plain: Callable[..., Any]  # what plain torch computes in the arguments' dtype, whose error bounds that of the op
    overload: torch._ops.OpOverload = field(repr=False)
    function: type[torch.autograd.Function] = field(repr=False)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.overload(*args)  # the guard below would hide the op from the tracer
        self._refuse_transforms(args)
        if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
            return self.function.apply(*args)
        with _BelowAutograd():  # past the dispatcher's Python kernel, which costs microseconds where nothing needs a gradient
            return self.overload(*args)

    def _refuse_transforms(self, args: tuple[Any, ...]) -> None:
        """Forward AD would lose its tangents silently, and torch.func its levels: say so instead."""
        if peek_interpreter_stack() is not None:
            raise RuntimeError(f"{_public(self.name)} does not support torch.func (vmap, grad, jvp); {_advice(self.name)}")
        if forward_ad._current_level >= 0 and any(
            isinstance(a, torch.Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in args
        ):
            raise RuntimeError(f"{_public(self.name)} does not support forward-mode AD; {_advice(self.name)}")

    def small_samples(self, dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
        """Those that are not for timing, without making the large ones, which come last."""
        return takewhile(lambda sample: not sample.large, self.samples(dtype, device))

    def compiled(self, key: str) -> bool:
        """Whether a compiled kernel is registered for dispatch key "CPU" or "CUDA"."""
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{self.name}", key)


def define(
    schema: str,
    reference: Callable[..., Any],
    *,
    samples: Samples,
    kernel: Callable[..., Any] | None = None,
    native: dict[str, tuple[torch.dtype, ...]] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    floor: float = 1e-6,
    plain: Callable[..., Any] | None = None,
) -> Op:
    """Register an op and return it.

    schema: "name(Tensor x, ...) -> Tensor", without the namespace.
    reference: the definition in plain torch, same arguments; no data-dependent branch, outputs never alias inputs.
    samples: yields the calls that tests, benchmarks and the doctor make, for a dtype and a device.
    kernel: serves the op in the reference's place where no compiled kernel does; it chooses between a kernel that is made at
        run time (Triton) and the reference.
    native: the devices and dtypes with a compiled kernel, as stated in the documentation and held by a test.
    plain: torch's own operator for the same thing, where there is one that rounds more than the reference does.
    backward, setup_context: as for `torch.library.register_autograd`; without them the op has no derivative, and asking
        for one is an error.
    """
    name = schema.partition("(")[0]
    differentiable = backward is not None
    backward = backward or _no_derivative(name)
    _library.define(schema)
    _library.impl(name, kernel or reference, "CompositeExplicitAutograd")
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default
    op = Op(
        name=name,
        reference=reference,
        samples=samples,
        native=native or {},
        differentiable=differentiable,
        floor=floor,
        plain=plain or reference,
        overload=overload,
        function=_function(name, overload, backward, setup_context),
    )
    REGISTRY[name] = op
    return op


def _function(
    name: str, overload: torch._ops.OpOverload, backward: Callable[..., Any], setup_context: Callable[..., None] | None
) -> type[torch.autograd.Function]:
    """The derivative for eager calls: the same one as in the dispatcher, whose Python kernel takes 20 us longer."""

    def forward(ctx: Any, *args: Any) -> Any:
        with _BelowAutograd():
            output = overload(*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    return type(name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


def _public(name: str) -> str:
    return f"fastdiff.ops.{name.removesuffix('_backward')}"


def _advice(name: str) -> str:
    stem = name.removesuffix("_backward")
    return f"for a version made of torch's own operators call fastdiff.ops.REGISTRY[{stem!r}].reference"


def _no_derivative(name: str) -> Callable[..., Any]:
    which = "no second derivative" if name.endswith("_backward") else "no derivative"

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{_public(name)} has {which}; {_advice(name)}")

    return backward
