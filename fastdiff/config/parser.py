"""YAML over the dataclasses' defaults, the command line over YAML (`--training.lr 1e-4`); a wrong name finds the nearest."""

from __future__ import annotations

import dataclasses
import re
from argparse import ArgumentError
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .schema import Config, require

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

CONFIGS = Path(__file__).parent.parent / "configs"


def named_config(name: str) -> Path:
    """The YAML file of a shipped config, or the path itself where it is one. Raises ValueError naming the nearest."""
    shipped = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
    if name in shipped:
        return CONFIGS / f"{name}.yaml"
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"config file {name} does not exist")
        return path
    near = get_close_matches(name, shipped, 1)
    hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(shipped)}, or a .yaml file"
    raise ValueError(f"there is no config {name!r}: {hint}")


def load_config(name: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """A shipped config or a YAML file (None: the defaults), with overrides as on the command line, such as
    `["--training.lr", "1e-4"]`.

    Raises ValueError for an unknown name, key or value; it names the nearest right one.
    """
    parser = config_parser(None if name is None else named_config(str(name)))
    try:
        _parse(parser, [])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    parsed = _parse(parser, list(overrides))
    try:
        sections = parser.instantiate(parsed)
    except ArgumentError as error:
        raise ValueError(_one_line(error.message, parser)) from None
    return Config(**{f.name: getattr(sections, f.name) for f in dataclasses.fields(Config)})


def _parse(parser: ArgumentParser, words: list[str]) -> Namespace:
    try:
        parsed = parser.parse_args(words)
    except ArgumentError as error:
        raise ValueError(_one_line(error.message, parser)) from None
    for section in dataclasses.fields(Config):
        values = parsed[section.name]
        require(hasattr(values, "__dict__"), section.name, "a section of keys and values", values)
    return parsed


def config_parser(file: Path | None = None, **options: Any) -> ArgumentParser:
    """A jsonargparse parser of `--section.key value`, over the file's values, over the dataclasses' defaults."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    files = [] if file is None else [str(file)]
    # A prefix of a key is a misspelling: it must not mean another key as soon as there is one.
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, default_config_files=files, **options)
    for section in dataclasses.fields(Config):
        parser.add_argument(f"--{section.name}", type=section.default_factory, default=section.default_factory())
    return parser


def _one_line(message: str, parser: ArgumentParser) -> str:
    """jsonargparse's message without its line breaks and type syntax, and with the nearest known name or value."""
    text = re.sub(r"\s+", " ", message)
    text = re.sub(r'Parser key "([^"]+)": Expected an? (.*?)\. Got value: (.*)', r"\1 must be \2, got \3", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"must be tuple, got", "must be a list such as [1,2], got", text)
    text = re.sub(r"Group '(\w+)' does not accept option '([\w.]+)'", r"Option '\1.\2' is not accepted", text)
    keys = [option.removeprefix("--") for option in parser._option_string_actions if "." in option]
    if wrong := re.search(r"unrecognized arguments: --([\w.-]+)", text):
        near = [f"--{key}" for key in _nearest_key(wrong[1], keys)]
    elif wrong := re.search(r"Option '([\w.]+)' is not accepted", text):
        near = _nearest_key(wrong[1], keys)
    elif wrong := re.search(r"one of (.*), got (\S+)$", text):
        near = get_close_matches(wrong[2], re.findall(r"'(.*?)'", wrong[1]), 1)
    else:
        near = []
    return f"{text}; did you mean {near[0]}?" if near else text


def _nearest_key(wrong: str, keys: list[str]) -> list[str]:
    """The key that is spelled like the wrong one, with its section or without."""
    by_ending = {key.partition(".")[2]: key for key in keys}
    ending = [by_ending[e] for e in get_close_matches(wrong.rpartition(".")[2].replace("-", "_"), by_ending, 1)]
    return ending or get_close_matches(wrong, keys, 1)
