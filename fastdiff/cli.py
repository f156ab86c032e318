"""The command line.

Exit codes: 0 done, 1 it failed (one line on stderr says why), 2 wrong arguments, 128 + N ended by signal N.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from . import __version__
from .memory import keep_freed_memory

# Spellings that users know from elsewhere, for options of `train`.
TRAIN_ALIASES = {
    "--lr": "--training.lr",
    "--learning-rate": "--training.lr",
    "--steps": "--training.steps",
    "--batch-size": "--training.batch_size",
    "--seed": "--training.seed",
    "--device": "--training.device",
    "--run-dir": "--logging.run_dir",
    "--output-dir": "--logging.run_dir",
    "--num-samples": "--logging.num_samples",
    "--data-root": "--data.root",
}


class UsageError(ValueError):
    """Wrong arguments: exit code 2."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UsageError(f"{message} (see {self.prog} --help)")


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
    commands: dict[str, Callable[[list[str]], int]] = {"train": _train, "sample": _sample, "doctor": _doctor}
    parser = _Parser(
        prog="fastdiff",
        description="Train and sample diffusion models.",
        usage="fastdiff COMMAND ...",
        epilog="fastdiff COMMAND --help says more.",
    )
    parser.add_argument("--version", action="version", version=f"fastdiff {__version__}")
    parser.add_argument(
        "command", nargs="?", metavar="COMMAND", help="train a model, sample from one, or doctor: check this installation"
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


def _train(argv: list[str]) -> int:
    from .config import config_parser, load_config, named_config

    parser = _Parser(
        prog="fastdiff train",
        usage="fastdiff train CONFIG [--resume [RUN]] [--run-dir DIR] [--SECTION.KEY VALUE ...]",
        description="Train a model and leave its run folder. CONFIG: digits, mnist, or a .yaml file.",
        epilog=f"Short for: {', '.join(f'{short} ({full})' for short, full in TRAIN_ALIASES.items())}.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="digits, mnist, or a .yaml file; may be left out with --resume"
    )
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="RUN",
        help="go on in this run folder, or from this checkpoint of one; without RUN, in the newest one (of CONFIG, where "
        "given). The run's own config.yaml counts, and what is given beside it",
    )  # fmt: skip
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    known, rest = parser.parse_known_args(_with_values([_alias(word) for word in argv]))
    if known.help:
        file = _usage(named_config, known.config) if known.config else None
        parser.print_help()
        options = config_parser(file, usage=argparse.SUPPRESS).format_help()
        print(options[options.index("\nThe network:") :])
        return 0
    if known.config is None and known.resume is None:
        parser.error("CONFIG is missing: digits, mnist, or a .yaml file")

    from .training import latest_run, run_folder_of, train_run

    checkpoint, file = None, known.config
    if known.resume is not None:
        is_named = known.config is not None or any(word.startswith("--logging.run_dir") for word in rest)
        if known.resume:
            checkpoint = Path(known.resume)
        else:
            checkpoint = latest_run(_usage(load_config, known.config, rest) if is_named else None)
        file = run_folder_of(checkpoint) / "config.yaml"
        if not file.is_file():
            raise UsageError(f"--resume: {file.parent} is not a run folder, it has no config.yaml")
    config = _usage(load_config, file, rest)
    result = train_run(config, checkpoint)
    shown = shlex.quote(str(result.folder))
    if result.stopped_by is not None:
        print(f"stopped by {result.stopped_by} after step {result.step}; go on with: fastdiff train --resume {shown}")
        return 128 + signal.Signals[result.stopped_by]
    if result.was_finished:
        print(f"this run was finished already, after step {result.step}; to go on, give a larger --steps")
    print("\n".join(f"  {name.replace('_', ' '):26}{value}" for name, value in result.figures.items()))
    print(f"pictures and report: {result.folder}/report.html\nmore samples: fastdiff sample {shown}")
    return 0


def _usage(load: Callable, *arguments: object) -> Any:
    """What `load` returns; its ValueError is the user's wrong arguments."""
    try:
        return load(*arguments)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _with_values(words: list[str]) -> list[str]:
    """`--section.key VALUE` as one word, for argparse would take the value of an option that it does not know for CONFIG."""
    joined: list[str] = []
    for word in words:
        option = joined[-1] if joined else ""
        takes_value = option.startswith("--") and "=" not in option and option not in ("--resume", "--help")
        if takes_value and not word.startswith("--"):
            joined[-1] = f"{option}={word}"
        else:
            joined.append(word)
    return joined


def _alias(word: str) -> str:
    """--batch_size and --batch-size (also with =value) as the option they are short for."""
    name, equals, value = word.partition("=")
    full = TRAIN_ALIASES.get(name.replace("_", "-")) if name.startswith("--") and "." not in name else None
    return word if full is None else full + equals + value


def _sample(argv: list[str]) -> int:
    from .diffusion.levels import SPACINGS
    from .diffusion.samplers import SAMPLERS, VARIANCES

    parser = _Parser(prog="fastdiff sample", description="Sample images from a trained model into samples.npz and samples.png.")
    add = parser.add_argument
    add("checkpoint", nargs="?", metavar="RUN|CHECKPOINT", help="run folder or checkpoint file")
    add("--checkpoint", dest="checkpoint_option", metavar="PATH", help="the same, as an option")
    add("--out", "--output-dir", "--output_dir", default=None, metavar="DIR", help="folder to write to (default: RUN/samples)")
    add("--num-samples", "--num_samples", type=int, default=64, metavar="N", help="images to make (default: %(default)s)")
    add("--steps", type=int, metavar="K", help="sampling steps, 1..T (default: 50, or T where that is less)")
    add("--sampler", default="ddim", metavar="NAME", help=f"{', '.join(SAMPLERS)} (default: %(default)s)")
    add("--spacing", choices=SPACINGS, help="which timesteps are visited (default: karras for heun, else trailing)")
    add("--eta", type=float, help="share of fresh noise in ddim (default: 0) and euler_ancestral (default: 1), in 0..1")
    add("--variance", choices=VARIANCES, help="of the noise in ddpm (default: fixed_small)")
    add("--churn", type=float, metavar="S", help="noise added back in euler and heun, S_churn of Karras et al. (default: 0)")
    add("--threshold", type=float, metavar="Q", help="dynamic thresholding at this quantile of an image, such as 0.995")
    add("--classes", metavar="I,J,...", help="class labels; image i gets the (i mod k)-th (default: all classes in turn)")
    add(
        "--guidance",
        type=float,
        default=1.5,
        metavar="W",
        help="classifier-free guidance scale, 1 is none (default: %(default)s)",
    )
    add("--seed", type=int, default=0, metavar="S", help="seed of the noise (default: %(default)s)")
    add("--batch-size", "--batch_size", type=int, default=64, metavar="B", help="images at a time (default: %(default)s)")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    precisions = ("auto", "fp32", "bf16")
    add("--precision", default="auto", choices=precisions, help="of the network; auto: bf16 where the device is made for it")
    add("--png", action="store_true", help="write each image as a file of its own too")
    args = parser.parse_args(argv)
    if (args.checkpoint is None) == (args.checkpoint_option is None):
        parser.error("give a run folder or a checkpoint, once")

    from .sampling import sample_to_folder

    path = Path(args.checkpoint or args.checkpoint_option)
    out = sample_to_folder(
        path,
        Path(args.out) if args.out else None,
        num_samples=args.num_samples,
        steps=args.steps,
        sampler=args.sampler,
        spacing=args.spacing,
        threshold=args.threshold,
        options={name: given for name in ("eta", "variance", "churn") if (given := getattr(args, name)) is not None},
        classes=_classes(args.classes),
        guidance=args.guidance,
        seed=args.seed,
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
        png=args.png,
    )
    print(f"{args.num_samples} samples: {out}/samples.png, {out}/samples.npz")
    return 0


def _classes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.replace(" ", "").split(",")]
    except ValueError:
        raise UsageError(f"--classes must be numbers with commas between them, got {text!r}") from None


def _doctor(argv: list[str]) -> int:
    parser = _Parser(
        prog="fastdiff doctor", description="Say what is installed and compiled, and check each op against its reference."
    )
    parser.parse_args(argv)
    from .doctor import examine

    lines, healthy = examine()
    print("\n".join(lines))
    return 0 if healthy else 1
