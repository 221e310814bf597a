"""Command line, environment and file to `ServerConfig`; the parser is generated from the fields.

The command line beats the environment, which beats the file, which beats the default. A bad value
is fatal and names its flag, variable or key. Nothing heavy is imported: `--help` answers at once.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from shared.config import ServerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.launching import config_file
from shared.launching.values import convert

BASICS = "Basics"
# What command lines and settings of the predecessor may still hold. Batching is always continuous,
# there is one kind of cache and of attention, and the model is loaded at the start.
OPTIONS_WITHOUT_EFFECT = (
    "--attn-implementation", "--cache-type", "--continuous-batching", "--continous-batching",
    "--hotload", "--reload",
)  # fmt: skip
VARIABLES_WITHOUT_EFFECT = (
    "ATTN_IMPLEMENTATION", "CACHE_TYPE", "CONTINUOUS_BATCHING", "CONTINOUS_BATCHING", "HOTLOAD",
)  # fmt: skip

# Flags that change nothing unless the switch is on.
_PARTS_OF_SWITCHES = {
    "torch_compile_mode": "torch_compile",
}

DEFAULT = "default"


@dataclass(frozen=True)
class Settings:
    """What command line, environment and file say together."""

    config: ServerConfig
    origins: dict[str, str]  # by field: where its value is from, in words
    without_effect: tuple[str, ...]  # what was given and changes nothing, in the words of its giver


@dataclass(frozen=True)
class _Given:
    """The text of a flag; `name` is how an error speaks of it."""

    text: str
    name: str
    origin: str


def read(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Returns the settings, or raises FatalError naming the flag that is wrong."""
    arguments = vars(_parser().parse_args(argv))
    fields = list(flag_fields())
    in_file = _read_file(fields, arguments, environ)
    values, origins = {}, {}
    for field in fields:
        given = _given(field, arguments, environ) or in_file.get(field.name)
        origins[field.name] = given.origin if given else DEFAULT
        if given:
            values[field.name] = convert(field, given.text, given.name)
    config: ServerConfig = _build(ServerConfig, values)
    return Settings(config, origins, _without_effect(config, origins, arguments, environ))


def described(settings: Settings) -> str:
    """Every flag with its value and where that is from, a line each; secrets are hidden."""
    values = _values(settings.config)
    lines = []
    for field in flag_fields():
        value, origin = values[field.name], settings.origins[field.name]
        if value == "" and field.metadata["unset"]:
            origin += f": {field.metadata['unset']}"
        is_hidden = field.metadata["is_secret"] and value
        shown = "***" if is_hidden else json.dumps(value, ensure_ascii=False)
        lines.append(f"{names_of(field)[0]} {shown}  ({origin})\n")
    return "".join(lines)


def groups() -> dict[str, list[dataclasses.Field[Any]]]:
    """Every flag once under the title of its group: the basic ones, then room by room."""
    found: dict[str, list[dataclasses.Field[Any]]] = {BASICS: []}
    seen = set()
    for title, fields in _flags_of(ServerConfig):
        for field in fields:
            if field.name not in seen:
                seen.add(field.name)
                group = BASICS if field.metadata["is_basic"] else title
                found.setdefault(group, []).append(field)
    return found


def flag_fields() -> Iterator[dataclasses.Field[Any]]:
    """Every flag once, in the order of `--help`."""
    for fields in groups().values():
        yield from fields


def variables(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The environment variables of a flag; the first that is set wins."""
    return field.metadata["env"] or (field.name.upper(),)


def names_of(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The options that set a flag: its own name, then its aliases."""
    return (_option(field.name), *field.metadata["aliases"])


def default_of(field: dataclasses.Field[Any]) -> str:
    """The default as a command line would give it, or what leaving it empty means."""
    default = field.default
    return field.metadata["unset"] or (str(default).lower() if field.type is bool else str(default))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FatalError(f"{message} (see --help)", EXIT_CONFIGURATION)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="launcher.py",
        usage="%(prog)s [FLAG [VALUE]] ...",
        description="Any Hugging Face model behind an OpenAI-compatible API.",
        epilog="The command line beats the environment, the environment --config's file.",
        allow_abbrev=False,  # a new flag must not change what an old command line means
    )
    for title, fields in groups().items():
        group = parser.add_argument_group(title)
        for field in fields:
            _add_argument(group, field)
    old = parser.add_argument_group("Without effect")
    for option in OPTIONS_WITHOUT_EFFECT:
        old.add_argument(
            option, nargs="?", const="true", help="accepted, as old command lines have it"
        )
    return parser


def _add_argument(group: Any, field: dataclasses.Field[Any]) -> None:
    names = ", ".join(variables(field))
    choices = field.metadata["choices"]
    text = field.metadata["help"] + (f"; one of {', '.join(choices)}" if choices else "")
    help_text = f"{text} (default: {default_of(field)}, env: {names})".replace("%", "%%")
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


def _flags_of(cls: type) -> Iterator[tuple[str, list[dataclasses.Field[Any]]]]:
    """Yields (title, flags) of this dataclass and of those that it is composed of."""
    fields = dataclasses.fields(cls)
    flags = [field for field in fields if "help" in field.metadata]
    if flags:
        yield str(cls.__doc__), flags
    for field in fields:
        if "help" not in field.metadata and dataclasses.is_dataclass(field.type):
            yield from _flags_of(field.type)  # type: ignore[arg-type]  # a class, not an instance


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


def _values(config: Any) -> dict[str, Any]:
    """The value of every flag in a configuration and in those that it is composed of."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= _values(value)
        elif "help" in field.metadata:
            found[field.name] = value
    return found


def _given(
    field: dataclasses.Field[Any], arguments: Mapping[str, Any], environ: Mapping[str, str]
) -> _Given | None:
    if (text := arguments[field.name]) is not None:
        return _Given(text, names_of(field)[0], "command line")
    for name in variables(field):
        if environ.get(name):
            return _Given(environ[name], name, f"environment variable {name}")
    return None


def _read_file(
    fields: Sequence[dataclasses.Field[Any]],
    arguments: Mapping[str, Any],
    environ: Mapping[str, str],
) -> dict[str, _Given]:
    """What the file of `--config` gives, by field; nothing when there is none."""
    (field,) = (field for field in fields if field.name == "config")
    given = _given(field, arguments, environ)
    if given is None or not given.text:
        return {}
    path = given.text
    types: dict[str, Any] = {field.name: field.type for field in fields}
    texts = config_file.read_texts(path, types, giver=given.name)
    return {
        name: _Given(text, f"{path}: {name.replace('_', '-')}", f"file {path}")
        for name, text in texts.items()
    }


def _without_effect(
    config: ServerConfig,
    origins: Mapping[str, str],
    arguments: Mapping[str, Any],
    environ: Mapping[str, str],
) -> tuple[str, ...]:
    old = [
        option
        for option in OPTIONS_WITHOUT_EFFECT
        if arguments[option.removeprefix("--").replace("-", "_")] is not None
    ]
    old += [name for name in VARIABLES_WITHOUT_EFFECT if environ.get(name)]
    values = _values(config)
    old += [
        f"{_option(name)} without {_option(switch)}"
        for name, switch in _PARTS_OF_SWITCHES.items()
        if origins.get(name, DEFAULT) != DEFAULT and not values[switch]
    ]
    return tuple(old)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
