"""`Plan`: the operators that one call of a network ran, to be run again on other inputs without the Python between them.

Small networks, and larger ones at batch 1, spend as much time on deciding what to run as on running it. What is decided depends
on the network and the inputs' shapes, strides and dtypes; so a call is noted, and later ones like it follow the note as long as
nothing of the network has changed. Operators that saw no input are not run again: their results are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import TorchDispatchMode, _len_torch_dispatch_stack
from torch.utils._pytree import tree_flatten

from .. import packed

_NoAutocast = torch._C._DisableAutocast
MOST = 8  # plans of one network: shapes that alternate, such as a last batch that is smaller
_plans: WeakKeyDictionary[nn.Module, Plans] = WeakKeyDictionary()


class Guard:
    """Whether a network is what it was: its modules, their attributes, no hooks, its parameters and buffers unchanged."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        dicts = [d for m in modules for d in (m.__dict__, m._parameters, m._buffers, m._modules)]
        self.contents = [(d, list(d.values())) for d in dicts]
        self.hooks = [d for m in modules for d in (m._forward_hooks, m._forward_pre_hooks)]
        self.tensors = [v for m in modules for d in (m._parameters, m._buffers) for v in d.values() if v is not None]
        self.versions = self._versions()

    def _versions(self) -> list[Any]:
        return [packed.state(), *(v._version for v in self.tensors), *(v.data_ptr() for v in self.tensors)]

    def holds(self) -> bool:
        if any(self.hooks):
            return False
        try:
            same = all(list(d.values()) == values for d, values in self.contents)
        except (RuntimeError, ValueError):  # two different tensors, or arrays, have no truth
            return False
        return same and self._versions() == self.versions


class Plan(NamedTuple):
    """A function of the tensors among a call's arguments, and while it is that."""

    guard: Guard
    replay: Callable[..., torch.Tensor]

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        with _NoAutocast():  # whose casts are among what was noted
            return self.replay(*inputs)


class _Recorder(TorchDispatchMode):
    """Notes operators as lines of Python over the names of their operands, unless it meets one that cannot just run again."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.names = {id(v): f"x{i}" for i, v in enumerate(inputs)}
        self.kept: list[Any] = list(inputs)  # so that no id is another's
        self.constants: dict[str, Any] = {}
        self.lines: list[tuple[str, list[str], list[str]]] = []  # text, names read, names made
        self.complete = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operands = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
        read = [self.names[id(v)] for v in operands if id(v) in self.names]
        results = out if isinstance(out, tuple | list) else [out]
        writes_or_reads_out = func._schema.is_mutable or not all(isinstance(v, torch.Tensor) for v in results)
        if torch.Tag.nondeterministic_seeded in func.tags or (read and writes_or_reads_out):
            self.complete = False
        elif read:
            self.kept += results
            made = [self.names.setdefault(id(v), f"v{len(self.names)}") for v in results]
            operator = self._constant(getattr(func, "_op", func))
            words = [self._word(v) for v in args] + [f"{name}={self._word(v)}" for name, v in kwargs.items()]
            comma = "," if isinstance(out, tuple | list) else ""
            self.lines.append((f"{', '.join(made)}{comma} = {operator}({', '.join(words)})", read, made))
        return out

    def _word(self, v: Any) -> str:
        """An operand as Python: a name, or lists with names in them."""
        if isinstance(v, torch.Tensor) and id(v) in self.names:
            return self.names[id(v)]
        if isinstance(v, list | tuple) and any(isinstance(e, torch.Tensor) for e in v):
            return f"[{', '.join(map(self._word, v))}]"
        return repr(v) if v is None or type(v) in (bool, int) else self._constant(v)

    def _constant(self, v: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = v
        return name

    def replay(self, inputs: int, result: torch.Tensor) -> Callable[..., Any] | None:
        """A function of the inputs, which lets go of each value after its last use."""
        if not self.complete or id(result) not in self.names:  # several results, or one that is a constant
            return None
        needed = self.names[id(result)]
        wanted, body = {needed}, []
        for text, read, made in reversed(self.lines):
            if wanted.isdisjoint(made):
                continue
            last = [name for name in dict.fromkeys(read) if name not in wanted]
            unused = [name for name in made if name not in wanted]
            body += [f"del {name}" for name in (*last, *unused)] + [text]
            wanted.update(read)
        lines = [f"def replay({', '.join(f'x{i}' for i in range(inputs))}):", *reversed(body), f"return {needed}"]
        exec("\n    ".join(lines), self.constants)
        return self.constants.pop("replay")


class Plans:
    """Those of one network, by what a call depends on besides; None for a call that cannot be planned."""

    def __init__(self) -> None:
        self.of: dict[Any, Plan | None] = {}

    def find(self, key: Any) -> Plan | None:
        plan = self.of.get(key)
        if plan is None or _watched():
            return None
        if not plan.guard.holds():
            self.of.clear()
            return None
        return plan

    def run(self, key: Any, modules: Sequence[nn.Module], call: Callable[[], torch.Tensor], inputs: Any) -> torch.Tensor:
        """call(), which is noted where that is possible."""
        if key in self.of or _watched() or any(type(v) not in (torch.Tensor, nn.Parameter) for v in inputs):
            return call()
        while len(self.of) >= MOST:
            del self.of[next(iter(self.of))]
        with _Recorder(inputs) as recorder:
            result = call()
        replay = recorder.replay(len(inputs), result)
        self.of[key] = None if replay is None else Plan(Guard(modules), replay)
        return result


def plans_of(network: nn.Module) -> Plans:
    found = _plans.get(network)
    return _plans.setdefault(network, Plans()) if found is None else found


def forget(network: nn.Module) -> None:
    """What was kept of a network for inference is not held through its training."""
    if _plans.pop(network, None) is not None:
        packed.drop(network)


def key_of(args: Sequence[Any]) -> tuple[Any, ...]:
    """What a call with these arguments, a tensor first, depends on besides the network."""
    device = args[0].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return (autocast, *(_signature(v) if isinstance(v, torch.Tensor) else repr(v) for v in args))


def _signature(v: torch.Tensor) -> tuple[Any, ...]:
    return (type(v), v.shape, v.stride(), v.dtype, v.device)


def _watched() -> bool:
    """Whether someone follows each operator or module: a tracer, torch.func, forward-mode derivatives, hooks of all modules."""
    if torch.jit.is_tracing() or _has_any_global_hook():
        return True
    return _len_torch_dispatch_stack() > 0 or peek_interpreter_stack() is not None or forward_ad._current_level >= 0
