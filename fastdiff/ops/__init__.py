"""Ops: functions on tensors with a plain-torch reference, compiled kernels, and derivatives.

Each op has its room here, `fastdiff/ops/<op>.py`, and its kernels in `csrc/<op>/`. Every module whose name has no leading
underscore is such a room and is found by itself; its public functions are listed in its `__all__`, or are the one of its name.
"""

from importlib import import_module
from pkgutil import iter_modules

from ._define import REGISTRY, Op, Sample

__all__ = ["REGISTRY", "Op", "Sample"]

for _room in sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")):
    _module = import_module(f"{__name__}.{_room}")
    for _name in getattr(_module, "__all__", [_room]):
        globals()[_name] = getattr(_module, _name)  # the function takes the place of the module of the same name
        __all__.append(_name)

from ._library import build_record, load  # noqa: E402  the schemas above must exist before kernels are compared with them

native = load()
__all__ += ["build_record", "native"]
