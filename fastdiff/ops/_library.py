"""Loads the compiled kernels and registers those whose signature is the one that the schema states.

A kernel of another signature would reinterpret bits silently, so it is refused before torch knows of it. Switches, read once:
FASTDIFF_CPU=baseline|avx2|avx512|avx512_bf16|amx caps the instruction set; amx_emulated, for tests, runs AMX's kernels on an
emulation of its instructions;
FASTDIFF_DISABLE=op,op keeps ops on their references.
"""

from __future__ import annotations

import ctypes
import json
import os
import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from ._define import NAMESPACE, REGISTRY, Op

CPU_LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
EMULATED = "amx_emulated"
_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Native:
    """What is loaded: the library's path (None: every op runs as plain torch), CPU level in force, disabled ops."""

    path: Path | None
    cpu_level: str | None = None
    disabled: tuple[str, ...] = ()


@cache
def build_record() -> dict:
    """What the build was asked for and what came of it: {"requested", "compiled", "note"}; {} where nothing was built."""
    try:
        return json.loads((_PACKAGE / "_build.json").read_text())
    except FileNotFoundError:
        return {}


def schema_signature(op: Op) -> str:
    """The op's types in the words that csrc/boxing.h uses for a C++ function."""
    schema = op.overload._schema
    arguments, returns = (", ".join(str(a.type) for a in part) for part in (schema.arguments, schema.returns))
    return f"{arguments} -> {returns}"


def _disabled() -> tuple[str, ...]:
    names = tuple(n for n in os.environ.get("FASTDIFF_DISABLE", "").replace(" ", "").split(",") if n)
    for name in names:
        if name not in REGISTRY:
            near = get_close_matches(name, REGISTRY, 1)
            hint = f"; did you mean {near[0]}?" if near else f": one of {', '.join(sorted(REGISTRY))}"
            raise ValueError(f"FASTDIFF_DISABLE names an unknown op {name!r}{hint}")
    return names


def _cpu_cap() -> str:
    level = os.environ.get("FASTDIFF_CPU") or CPU_LEVELS[-1]
    if level not in (*CPU_LEVELS, EMULATED):
        raise ValueError(f"FASTDIFF_CPU must be one of {', '.join(CPU_LEVELS)}, got {level!r}")
    return level


_level: str | None = None  # in force; None where nothing is loaded


def set_cpu_level(library: ctypes.CDLL, cap: str) -> str:
    """Kernels of this instruction set, or of the highest below it that the machine has, from here on; returns which."""
    global _level
    library.fastdiff_cap_cpu.restype = ctypes.c_char_p
    _level = library.fastdiff_cap_cpu(cap.encode()).decode()
    return _level


def multiplies_tiles() -> bool:
    """Whether CPU kernels in force multiply by AMX's tile registers (which take bf16)."""
    return _level in (CPU_LEVELS[-1], EMULATED)


def load() -> Native:
    """Load the library beside this package, if it was built, and register its kernels."""
    disabled, cap = _disabled(), _cpu_cap()
    paths = [p for p in (_PACKAGE / f"libfastdiff_ops{suffix}" for suffix in (".so", ".dylib")) if p.exists()]
    if not paths:
        return Native(None, disabled=disabled)
    try:
        library = ctypes.CDLL(str(paths[0]))
    except OSError as error:
        warnings.warn(f"fastdiff's compiled kernels do not load, ops run as plain torch: {error}", stacklevel=2)
        return Native(None, disabled=disabled)
    for function in (library.fastdiff_kernels, library.fastdiff_register):
        function.restype = ctypes.c_char_p

    for line in library.fastdiff_kernels().decode().splitlines():
        name, key, signature = line.split(" ", 2)
        if name not in REGISTRY or signature != schema_signature(REGISTRY[name]):
            stated = schema_signature(REGISTRY[name]) if name in REGISTRY else "no such op"
            raise ImportError(
                f"{paths[0].name} was built from other sources: {NAMESPACE}::{name} takes ({signature}), "
                f"the schema says ({stated}); install fastdiff again"
            )
        if name in disabled or name.removesuffix("_backward") in disabled:
            continue
        error = library.fastdiff_register(name.encode(), key.encode())
        if error:
            raise ImportError(f"{NAMESPACE}::{name} could not be registered for {key}: {error.decode()}")
    return Native(paths[0], set_cpu_level(library, cap), disabled)
