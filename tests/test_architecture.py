"""The rules of the building, held by reading the source: who may import, read, wait and load what.

import-linter holds the layers between the rooms (`make imports`); `test_import_contracts.py` proves
that its contracts bite. Here is what it cannot see.
"""

import ast
import dataclasses
import importlib
import re
import statistics
import subprocess
import sys
import typing
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest

from shared import messages, parts

ROOT = Path(__file__).resolve().parents[1]
PROCESS_ROOMS = ("frontend", "tokenizer_proc", "gpu_worker")
ROOMS = (*PROCESS_ROOMS, "scheduler")
PACKAGES = {*ROOMS, "shared", "demo", "benchmarks", "tests"}
SCRIPTS = {"tests", "demo", "benchmarks", "launcher", "example_client"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_FUNCTION_LINES = 12
MAX_STEP_LOOP_LINES = 40

DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}
BROUGHT_BY_TORCH = {"triton"}  # its CUDA builds pin the version
EXTRAS = {"av"}  # used where the user has installed them
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def python_files(*folders: str) -> list[Path]:
    """The Python files under these top-level folders, or `launcher.py` itself."""
    files = []
    for folder in folders:
        path = ROOT / folder
        files += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return files


SERVER_FILES = python_files("launcher.py", "shared", *ROOMS)
PROJECT_FILES = [*SERVER_FILES, *python_files("example_client.py", "demo", "benchmarks")]


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name(path: Path) -> str:
    """A file as the failure message shows it, such as `shared/wire.py`."""
    return str(path.relative_to(ROOT))


def imported_modules(path: Path) -> set[str]:
    """Every module that a file names in an import; `from a import b` gives both a and a.b."""
    modules = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def imported_roots(path: Path) -> set[str]:
    """The top-level names among the imports of a file."""
    return {module.partition(".")[0] for module in imported_modules(path)}


def dotted_names(path: Path) -> Iterator[tuple[str, int]]:
    """Every dotted expression such as `os.environ`, with its line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node), node.lineno


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to the last line, docstring included."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


# ── rooms and doors ──────────────────────────────────────────────────────────────────────────────


def test_the_top_level_packages_are_the_expected_ones() -> None:
    found = {init.parent.name for init in ROOT.glob("[!.]*/__init__.py")}
    assert found == PACKAGES


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_are_this_repositorys_own(package: str) -> None:
    """Names as general as `shared` could be shadowed by something installed."""
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == ROOT / package


def test_init_files_hold_at_most_a_docstring() -> None:
    for path in python_files("shared", *ROOMS, "demo"):
        if path.name == "__init__.py":
            body = tree(path).body
            assert len(body) == (ast.get_docstring(tree(path)) is not None), name(path)


def test_the_launcher_imports_only_shared_and_the_standard_library() -> None:
    foreign = imported_roots(ROOT / "launcher.py") - sys.stdlib_module_names
    assert foreign == {"shared"}


def test_the_example_client_needs_only_requests() -> None:
    assert imported_roots(ROOT / "example_client.py") - sys.stdlib_module_names == {"requests"}


def test_the_server_imports_neither_tests_nor_scripts() -> None:
    for path in SERVER_FILES:
        strangers = imported_roots(path) & SCRIPTS
        assert not strangers, f"{name(path)} imports {strangers}"


def test_each_process_room_has_the_entries_that_the_launcher_starts() -> None:
    process = importlib.import_module("shared.process")
    entries = {kind.entry for kind in process.ROOM_KINDS.values()}
    assert {entry.partition(".")[0] for entry in entries} == set(PROCESS_ROOMS)
    for entry in entries:
        module, _, function = entry.partition(":")
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert any(f.name == function and len(f.args.args) == 2 for f in functions(path)), entry


def test_no_file_is_a_drawer() -> None:
    for path in PROJECT_FILES:
        assert path.stem not in DRAWERS, name(path)


def users_of_shared() -> dict[str, set[str]]:
    """The rooms that use each module of shared/: by importing it, or another one that needs it.

    `shared.process` is how every process room starts, so each of them uses it.
    """
    users: dict[str, set[str]] = {
        path.stem: set() for path in sorted((ROOT / "shared").glob("*.py"))
        if path.stem != "__init__"
    }  # fmt: skip
    users["process"] |= set(PROCESS_ROOMS)
    for room in (*ROOMS, "launcher.py"):
        for path in python_files(room):
            for module in users:
                if f"shared.{module}" in imported_modules(path):
                    users[module].add(room)
    for _ in users:  # a chain of imports is no longer than the number of modules
        for importer, rooms in users.items():
            for module in users:
                if f"shared.{module}" in imported_modules(ROOT / f"shared/{importer}.py"):
                    users[module] |= rooms
    return users


def test_shared_modules_are_shared() -> None:
    users = users_of_shared()
    lonely = {module: rooms for module, rooms in users.items() if len(rooms) < 2}
    assert not lonely, f"used by one room only, so it belongs there: {lonely}"


def test_launching_is_the_launchers_alone() -> None:
    """The launcher has no folder of its own: this part of the corridor is its."""
    for path in SERVER_FILES:
        if path != ROOT / "launcher.py" and path.parent != ROOT / "shared/launching":
            others = {m for m in imported_modules(path) if m.startswith("shared.launching")}
            assert not others, f"{name(path)} imports {others}"


# ── what may be touched ──────────────────────────────────────────────────────────────────────────


def test_only_the_launcher_reads_the_environment() -> None:
    for path in SERVER_FILES:
        if path != ROOT / "launcher.py":
            touched = {dotted for dotted, _ in dotted_names(path)} & {"os.environ", "os.getenv"}
            assert not touched, f"{name(path)}: {touched}"
            assert not imported_modules(path) & {"os.environ", "os.getenv"}, name(path)


def test_only_flags_parse_arguments() -> None:
    for path in SERVER_FILES:
        if path != ROOT / "shared/launching/flags.py":
            assert "argparse" not in imported_roots(path), name(path)


def test_nothing_is_ever_unpickled() -> None:
    for path in PROJECT_FILES:
        assert not imported_roots(path) & UNPICKLERS, name(path)
        for dotted, line in dotted_names(path):
            last = dotted.rpartition(".")[2]
            assert last not in {"send_pyobj", "recv_pyobj"}, f"{name(path)}:{line}"
            assert dotted != "torch.load", f"{name(path)}:{line}"


def test_rooms_never_sleep() -> None:
    """A room waits for its inbox or for a deadline, never for a fixed time; no time lets others."""
    for path in python_files("shared", *ROOMS):
        for dotted, line in dotted_names(path):
            assert dotted != "time.sleep", f"{name(path)}:{line}"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("asyncio.sleep"):
                assert not is_constant(node.args[0]), f"{name(path)}:{node.lineno}"


def is_constant(node: ast.expr) -> bool:
    """True for a number but 0, and for a name in capitals."""
    if isinstance(node, ast.Constant):
        return bool(node.value)
    return isinstance(node, ast.Name) and node.id.isupper()


def test_every_foreign_import_is_pinned() -> None:
    pins = re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    pinned = {pin.lower().replace("_", "-") for pin in pins}
    distributions = packages_distributions()
    others = sys.stdlib_module_names | PACKAGES | BROUGHT_BY_TORCH | EXTRAS
    for path in SERVER_FILES:
        for root in imported_roots(path) - others:
            provided_by = {d.lower().replace("_", "-") for d in distributions[root]}
            assert provided_by & pinned, f"{name(path)} imports {root}"


def test_the_server_starts_without_triton() -> None:
    """Only the backend that a CUDA device is given imports it."""
    for path in SERVER_FILES:
        if not path.name.startswith("triton_"):
            assert "triton" not in imported_roots(path), name(path)


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_an_exact_version(file: str) -> None:
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement and requirement != "-r requirements.txt":
            assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", requirement), requirement


SCHEDULER_MODULES = tuple(
    f"scheduler.{path.stem}" for path in python_files("scheduler") if path.stem != "__init__"
)


@pytest.mark.parametrize(
    ("modules", "strangers"),
    [
        (("launcher",), ("torch", "transformers")),
        (("frontend.server",), ("torch", "transformers")),
        (("tokenizer_proc.detokenizer",), ("torch", "transformers.models")),
        (("tokenizer_proc.decoder",), ("torch", "transformers", "zmq")),
        (SCHEDULER_MODULES, ("torch", "transformers")),
    ],
    ids=lambda names: names[0],
)
def test_torch_stays_in_the_worker(modules: tuple[str, ...], strangers: tuple[str, ...]) -> None:
    """Asks a fresh interpreter, because no static rule sees what other packages import."""
    script = (
        f"import sys, {', '.join(modules)}\nprint(sorted({set(strangers)} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# ── messages ─────────────────────────────────────────────────────────────────────────────────────

MESSAGES = typing.get_args(messages.Message)


def classes_of(module: ModuleType) -> list[type]:
    """What the module defines itself."""
    values = vars(module).values()
    return [v for v in values if isinstance(v, type) and v.__module__ == module.__name__]


PARTS = classes_of(parts)


def types_within(annotation: object) -> set[object]:
    """A type and everything between its brackets."""
    return {annotation}.union(*map(types_within, typing.get_args(annotation)))


@pytest.mark.parametrize("cls", [*MESSAGES, *PARTS])
def test_messages_are_frozen_data(cls: type) -> None:
    assert dataclasses.is_dataclass(cls)
    with pytest.raises(dataclasses.FrozenInstanceError):
        object.__new__(cls).any_field = None  # type: ignore[attr-defined]  # it must be refused


@pytest.mark.parametrize("cls", MESSAGES)
def test_messages_name_sender_and_receiver(cls: type) -> None:
    assert re.match(r"[a-z][a-z, ]* -> [a-z][a-z, >-]*: \S", str(cls.__doc__)), cls.__doc__


def test_messages_and_their_parts_have_a_file_each() -> None:
    assert set(classes_of(messages)) == set(MESSAGES)
    hints = [typing.get_type_hints(cls).values() for cls in (*MESSAGES, *PARTS)]
    used = set[object]().union(*(types_within(hint) for values in hints for hint in values))
    assert set(PARTS) <= used


@pytest.mark.parametrize("name", ["messages", "parts"])
def test_the_files_of_messages_hold_no_logic(name: str) -> None:
    assert not list(functions(ROOT / f"shared/{name}.py"))


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────


def test_files_are_short() -> None:
    for path in [*PROJECT_FILES, *python_files("tests")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES, name(path)


def test_functions_are_short() -> None:
    lengths = []
    for path in PROJECT_FILES:
        for function in functions(path):
            lengths.append(num_lines(function))
            assert lengths[-1] <= MAX_FUNCTION_LINES, f"{name(path)}: {function.name}"
    assert statistics.median(lengths) <= MAX_MEDIAN_FUNCTION_LINES


def test_the_step_loop_fits_on_one_screen() -> None:
    path = ROOT / "gpu_worker/worker.py"
    worker = next(
        node for node in tree(path).body if isinstance(node, ast.ClassDef) and node.name == "Worker"
    )
    run = next(f for f in worker.body if isinstance(f, ast.FunctionDef) and f.name == "run")
    assert num_lines(run) <= MAX_STEP_LOOP_LINES
