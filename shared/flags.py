"""Command line and environment to `ServerConfig`; the parser is generated from the fields.

The command line beats the environment, which beats the default. A bad value is fatal and names
its flag or variable. Nothing heavy is imported, so that `--help` answers at once.
"""

import argparse
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from shared.config import ServerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError

_TRUE = frozenset({"1", "true", "yes", "on", "enabled"})
_FALSE = frozenset({"0", "false", "no", "off", "disabled"})


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> ServerConfig:
    """Returns the configuration, or raises FatalError naming the flag that is wrong."""
    given = vars(_parser().parse_args(argv))
    values = {}
    for field in flag_fields():
        text, origin = given[field.name], _option(field)
        if text is None:
            text, origin = _from_environment(field, environ)
        if text is not None:
            values[field.name] = _convert(field, text, origin)
    config: ServerConfig = _build(ServerConfig, values)
    return config


def flag_fields() -> Iterator[dataclasses.Field[Any]]:
    """Every flag once, in the order of the room configurations."""
    seen = set()
    for _, fields in _groups(ServerConfig):
        for field in fields:
            if field.name not in seen:
                seen.add(field.name)
                yield field


def variables(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The environment variables of a flag; the first that is set wins."""
    return field.metadata["env"] or (field.name.upper(),)


def names_of(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The options that set a flag: its own name, then its aliases."""
    return (_option(field), *field.metadata["aliases"])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FatalError(f"{message} (see --help)", EXIT_CONFIGURATION)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="launcher.py",
        description="Any Hugging Face model behind an OpenAI-compatible API.",
        allow_abbrev=False,  # a new flag must not change what an old command line means
    )
    seen: set[str] = set()
    for title, fields in _groups(ServerConfig):
        group = parser.add_argument_group(title)
        for field in fields:
            if field.name not in seen:
                seen.add(field.name)
                _add_argument(group, field)
    return parser


def _add_argument(group: Any, field: dataclasses.Field[Any]) -> None:
    names = ", ".join(variables(field))
    choices = field.metadata["choices"]
    text = field.metadata["help"] + (f"; one of {', '.join(choices)}" if choices else "")
    help_text = f"{text} (default: {field.default!r}, env: {names})".replace("%", "%%")
    options = {"nargs": "?", "const": "true"} if field.type is bool else {}
    metavar = field.type.__name__.upper() if isinstance(field.type, type) else "VALUE"
    group.add_argument(
        *names_of(field), dest=field.name, default=None, metavar=metavar, help=help_text, **options
    )
    if field.type is bool:
        no_options = ["--no-" + option.removeprefix("--") for option in names_of(field)]
        group.add_argument(
            *no_options,
            dest=field.name,
            action="store_const",
            const="false",
            help=argparse.SUPPRESS,
        )


def _groups(cls: type) -> Iterator[tuple[str, list[dataclasses.Field[Any]]]]:
    """Yields (title, flags) of this dataclass and of those that it is composed of."""
    fields = dataclasses.fields(cls)
    flags = [field for field in fields if "help" in field.metadata]
    if flags:
        yield str(cls.__doc__), flags
    for field in fields:
        if "help" not in field.metadata and dataclasses.is_dataclass(field.type):
            yield from _groups(field.type)  # type: ignore[arg-type]  # a class, not an instance


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance of `cls` with these flags, in every room that has them."""
    arguments = {}
    for field in dataclasses.fields(cls):
        if "help" in field.metadata:
            if field.name in values:
                arguments[field.name] = values[field.name]
        elif dataclasses.is_dataclass(field.type) and field.name != "identity":
            arguments[field.name] = _build(field.type, values)  # type: ignore[arg-type]  # as above
    return cls(**arguments)


def _option(field: dataclasses.Field[Any]) -> str:
    return "--" + field.name.replace("_", "-")


def _from_environment(
    field: dataclasses.Field[Any], environ: Mapping[str, str]
) -> tuple[str | None, str]:
    for name in variables(field):
        if environ.get(name):
            return environ[name], name
    return None, ""


def _convert(field: dataclasses.Field[Any], text: str, origin: str) -> Any:
    choices = {choice.lower(): choice for choice in field.metadata["choices"]}
    if choices and text.lower() not in choices:
        raise _refusal(origin, text, f"one of {', '.join(choices.values())}")
    if choices:
        return choices[text.lower()]
    if field.type is bool:
        return _boolean(origin, text)
    return text if field.type is str else _number(field, text, origin)


def _number(field: dataclasses.Field[Any], text: str, origin: str) -> int | float:
    kind = "a whole number" if field.type is int else "a number"
    try:
        value: int | float = field.type(text)  # type: ignore[operator]  # int or float
    except ValueError as error:
        raise _refusal(origin, text, kind) from error
    lowest, highest = field.metadata["range"]
    if isinstance(value, float) and not math.isfinite(value):
        raise _refusal(origin, text, kind)
    if not lowest <= value <= highest:
        bounds = f"from {lowest}" + (f" to {highest}" if math.isfinite(highest) else "")
        raise _refusal(origin, text, f"{kind} {bounds}")
    return value


def _boolean(origin: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise _refusal(origin, text, "true or false")


def _refusal(origin: str, text: str, expected: str) -> FatalError:
    return FatalError(f"{origin}: {text!r} is not {expected}", EXIT_CONFIGURATION)
