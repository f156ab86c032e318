"""What the commands' parsers share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


class UsageError(ValueError):
    """Wrong arguments: exit code 2."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UsageError(f"{message} (see {self.prog} --help)")


def usage(load: Callable, *arguments: object) -> Any:
    """What `load` returns; its ValueError is the user's wrong arguments."""
    try:
        return load(*arguments)
    except ValueError as error:
        raise UsageError(str(error)) from None
