"""The documents say what the code does: every flag, field, route, message, error code and path.

`python -m tests.test_docs` (`make docs`) writes the table of flags anew.
"""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from frontend import app, fields, openapi
from frontend.fields import Fields
from shared import messages, parts
from shared.errors import FAILURES
from shared.launching import flags

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
FLAGS_PAGE = ROOT / "docs/flags.md"
MIGRATION_PAGE = ROOT / "docs/migration.md"
FLAGS_MARK = "<!-- written by `make docs` from shared/config.py -->\n"
MESSAGES = typing.get_args(messages.Message)


def rows(document: str, title: str) -> list[list[str]]:
    """The cells of the table that begins with this title, without its two heading lines."""
    text = (ROOT / document).read_text(encoding="utf-8")
    table = re.search(rf"^\| {re.escape(title)} \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None, f"{document} has no table that begins with {title}"
    lines = table[1].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


# ── flags ────────────────────────────────────────────────────────────────────────────────────────


def flag_row(field: dataclasses.Field[Any]) -> str:
    """One flag as a line of the table."""
    options = ", ".join(f"`{option}`" for option in flags.names_of(field))
    variables = ", ".join(f"`{variable}`" for variable in flags.variables(field))
    default = flags.default_of(field)
    default = default if field.metadata["unset"] else f"`{default}`"
    choices = ", ".join(f"`{choice}`" for choice in field.metadata["choices"])
    meaning = field.metadata["help"] + (f"; one of {choices}" if choices else "")
    return f"| {options} | {variables} | {default} | {meaning} |"


def flag_table() -> str:
    """One table a group, as `docs/flags.md` must hold them."""
    heading = "| Flag | Environment | Default | Meaning |\n|---|---|---|---|\n"
    return "\n".join(
        f"## {title}\n\n{heading}" + "".join(f"{flag_row(field)}\n" for field in fields)
        for title, fields in flags.groups().items()
    )


def test_the_table_of_flags_is_the_generated_one() -> None:
    written = FLAGS_PAGE.read_text(encoding="utf-8").partition(FLAGS_MARK)[2].strip()
    assert written == flag_table().strip(), "run `make docs`"


def former_flags() -> dict[str, str]:
    """Every flag of the predecessor, and what `docs/migration.md` says has become of it."""
    table = rows("docs/migration.md", "Flag of the original")
    return {flag.strip("`"): here for flag, _, here in table}


def test_migration_says_rightly_which_flags_of_the_original_are_here() -> None:
    options = {name for field in flags.flag_fields() for name in flags.names_of(field)}
    for flag, here in former_flags().items():
        assert (flag in flags.OPTIONS_WITHOUT_EFFECT) == here.startswith("without effect"), flag
        is_known = flag in options or flag in flags.OPTIONS_WITHOUT_EFFECT
        assert is_known != here.startswith("not here"), flag


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_flags_that_exist(document: Path) -> None:
    fields = list(flags.flag_fields())
    options = {name.removeprefix("--") for field in fields for name in flags.names_of(field)}
    options |= {name.removeprefix("--") for name in flags.OPTIONS_WITHOUT_EFFECT}
    options |= {f"no-{f.name.replace('_', '-')}" for f in fields if f.type is bool}
    if document == MIGRATION_PAGE:
        options |= {flag.removeprefix("--") for flag in former_flags()}
    own_command = re.compile(r"^.*launcher\.py.*$|`--[^`]*`", re.MULTILINE)
    for command in own_command.findall(document.read_text(encoding="utf-8")):
        for option in re.findall(r"(?<!\S|`)--([a-z][a-z-]+)|`--([a-z-]+)", command):
            assert "".join(option) in {*options, "help"}, command


# ── messages and errors ──────────────────────────────────────────────────────────────────────────


def test_every_message_is_in_the_table_with_its_edge() -> None:
    documented = [
        (name.strip("`"), edge) for name, edge, _ in rows("docs/architecture.md", "Message")
    ]
    edges = [str(cls.__doc__).partition(": ")[0].replace("->", "→") for cls in MESSAGES]
    assert documented == list(zip([cls.__name__ for cls in MESSAGES], edges, strict=True))


def test_every_part_of_a_message_is_in_the_table() -> None:
    documented = {name.strip("`") for name, *_ in rows("docs/architecture.md", "Part")}
    own = [value for value in vars(parts).values() if isinstance(value, type)]
    assert documented == {cls.__name__ for cls in own if cls.__module__ == parts.__name__}


def test_every_error_code_is_in_the_table_with_its_status() -> None:
    documented = [row[:4] for row in rows("docs/errors.md", "Code")]
    expected = []
    for code, failure in FAILURES.items():
        shown = f"`{code}`" if failure.shows_code else f"`{code}` (sent as null)"
        seconds = failure.retry_after_seconds
        after = "–" if seconds is None else f"{seconds} s"
        expected.append([shown, str(failure.status), f"`{failure.type}`", after])
    assert documented == expected


# ── the API ──────────────────────────────────────────────────────────────────────────────────────

SECTIONS = {
    "Chat only": fields.CHAT,
    "Completions only": fields.COMPLETION,
    "Tokenize": fields.TOKENIZE,
    "Detokenize": fields.DETOKENIZE,
}


def documented_fields(title: str) -> set[str]:
    """The names in the first column of the table of this section of docs/api.md."""
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    section = text.partition(f"### {title}\n")[2].partition("\n#")[0]
    first_cells = re.findall(r"^\| ([^|]*) \|", section, re.MULTILINE)
    return {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(("title", "known"), SECTIONS.items())
def test_every_obeyed_field_is_in_the_table_of_its_endpoint(title: str, known: Fields) -> None:
    shared_table = documented_fields("Chat and completions") if title.endswith("only") else set()
    assert documented_fields(title) | shared_table == set(known.shape.__struct_fields__)


def test_every_route_is_in_the_table() -> None:
    documented = [route for cell, _ in rows("docs/api.md", "Route") for route in cell.split(", ")]
    served = openapi.endpoints(openapi.document(app._HANDLERS, (), max_choices=8))
    assert sorted(documented) == sorted(f"`{route}`" for route in served)


# ── commands and paths ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)
    assert set(named) <= targets


def test_every_make_target_is_explained_and_never_taken_for_a_file() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    explained = re.findall(r"^([a-z-]+):.*## .+$", makefile, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert sorted(explained) == sorted(phony[1].split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in link:
            assert (document.parent / link).exists(), link


def test_every_room_and_its_files_in_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\n(.*?)```", readme.partition("## Where things are")[2], re.DOTALL)
    assert tree is not None
    for path in re.findall(r"^([\w./-]+)", tree[1], re.MULTILINE):
        assert (ROOT / path).exists(), path


if __name__ == "__main__":
    head = FLAGS_PAGE.read_text(encoding="utf-8").partition(FLAGS_MARK)[0]
    FLAGS_PAGE.write_text(f"{head}{FLAGS_MARK}\n{flag_table()}", encoding="utf-8")
