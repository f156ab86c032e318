"""The command line.

Exit codes: 0 done, 1 it failed (one line on stderr says why), 2 wrong arguments, 128 + N ended by signal N.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from .. import __version__
from ..memory import keep_freed_memory
from .arguments import Parser, UsageError
from .sample import interpolate, sample
from .train import train


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code. Errors that a user can mend are one line, without a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _fail(error, 2)
    except SystemExit as done:  # argparse after --help and --version
        return int(done.code or 0)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader, such as `head`, has gone; the interpreter's last flush must not say so again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if os.environ.get("FASTDIFF_TRACEBACK"):  # where the error is ours, not the user's
            raise
        return _fail(error, 1)


def _fail(error: BaseException | str, code: int) -> int:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    print(f"fastdiff: {' '.join(text.split())}", file=sys.stderr)
    return code


def _dispatch(argv: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": train,
        "sample": sample,
        "interpolate": interpolate,
        "doctor": _doctor,
    }
    parser = Parser(
        prog="fastdiff",
        description="Train and sample diffusion models.",
        usage="fastdiff COMMAND ...",
        epilog="fastdiff COMMAND --help says more.",
    )
    parser.add_argument("--version", action="version", version=f"fastdiff {__version__}")
    parser.add_argument(
        "command",
        nargs="?",
        metavar="COMMAND",
        help="train a model, sample from one, interpolate between two samples, or doctor: check this installation",
    )
    command = parser.parse_args(argv[:1]).command
    if command is None:
        parser.error(f"COMMAND is missing: {', '.join(commands)}")
    if command not in commands:
        near = get_close_matches(command, commands, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(commands)}"
        parser.error(f"there is no command {command!r}: {hint}")
    keep_freed_memory()
    return commands[command](argv[1:])


def _doctor(argv: list[str]) -> int:
    parser = Parser(
        prog="fastdiff doctor", description="Say what is installed and compiled, and check each op against its reference."
    )
    parser.parse_args(argv)
    from ..doctor import examine

    lines, healthy = examine()
    print("\n".join(lines))
    return 0 if healthy else 1
