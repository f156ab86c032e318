"""`fastdiff train`."""

from __future__ import annotations

import argparse
import shlex
import signal
from pathlib import Path

from .arguments import Parser, UsageError, usage

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


def train(argv: list[str]) -> int:
    from ..config import config_parser, load_config, named_config

    parser = Parser(
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
        file = usage(named_config, known.config) if known.config else None
        parser.print_help()
        options = config_parser(file, usage=argparse.SUPPRESS).format_help()
        print(options[options.index("\nThe network:") :])
        return 0
    if known.config is None and known.resume is None:
        parser.error("CONFIG is missing: digits, mnist, or a .yaml file")

    from ..training import latest_run, run_folder_of, train_run

    checkpoint, file = None, known.config
    if known.resume is not None:
        is_named = known.config is not None or any(word.startswith("--logging.run_dir") for word in rest)
        if known.resume:
            checkpoint = Path(known.resume)
        else:
            checkpoint = latest_run(usage(load_config, known.config, rest) if is_named else None)
        file = run_folder_of(checkpoint) / "config.yaml"
        if not file.is_file():
            raise UsageError(f"--resume: {file.parent} is not a run folder, it has no config.yaml")
    config = usage(load_config, file, rest)
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
