"""The container files agree with the server and with each other, as far as reading them tells.

`python -m tests.test_containers` (`make docs`) writes the variables of docker-compose.yml anew.
"""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.config import BUILT_IN_MODELS, LauncherConfig
from shared.launching import flags
from shared.process import ROOM_KINDS

ROOT = Path(__file__).resolve().parents[1]
COMPOSE_FILE = ROOT / "docker-compose.yml"
CPU_FILE = ROOT / "docker-compose.cpu.yml"
BEGIN = "      # ── written by `make docs` from shared/config.py\n"
END = "      # ── end of what is written\n"
# Inside a container only the published port decides who reaches the server.
FIXED = {"HOST": "0.0.0.0"}
HEALTH_CHECK = "deploy/docker/health_check.py"
DOCKER, HADOLINT = shutil.which("docker"), shutil.which("hadolint")


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """What a program answered."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


# ── the variables of docker-compose.yml ──────────────────────────────────────────────────────────


def variable_line(field: dataclasses.Field[Any]) -> str:
    """One flag as a line of the service's environment: its first variable, and its default.

    The variable is passed on as it is. An empty one is as good as none for the server, so that
    what nobody set stays unset.
    """
    name = flags.variables(field)[0]
    if name in FIXED:
        return f"      {name}: {FIXED[name]}\n"
    default = str(field.default).lower() if field.type is bool else str(field.default)
    return f"      {name}: ${{{name}:-}}  # {default}".removesuffix("  # ") + "\n"


def variable_lines() -> str:
    """Every flag, as docker-compose.yml must hold them."""
    return "".join(map(variable_line, flags.flag_fields()))


def compose_parts() -> tuple[str, str, str]:
    """docker-compose.yml before, within and after the generated lines."""
    head, _, rest = COMPOSE_FILE.read_text(encoding="utf-8").partition(BEGIN)
    written, _, tail = rest.partition(END)
    return head, written, tail


def test_compose_lists_every_variable_of_the_server_with_its_default() -> None:
    assert compose_parts()[1] == variable_lines(), "run `make docs`"


def test_what_nobody_sets_has_the_servers_own_default() -> None:
    environ = {}
    for name, text in service()["environment"].items():
        environ[name] = text.replace(f"${{{name}:-}}", "")
    assert flags.read([], environ).config == flags.read([], {}).config


# ── docker-compose.yml and its variant for the CPU ───────────────────────────────────────────────


# Docker Compose's own tag: it takes out what an earlier file says.
yaml.add_constructor("!reset", lambda *_: None, Loader=yaml.SafeLoader)


def compose(path: Path = COMPOSE_FILE) -> dict[str, Any]:
    """The content of a compose file."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def service(path: Path = COMPOSE_FILE) -> dict[str, Any]:
    """Its one service."""
    (only,) = compose(path)["services"].values()
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize("files", [[COMPOSE_FILE], [COMPOSE_FILE, CPU_FILE]], ids=["gpu", "cpu"])
def test_docker_compose_understands_it(files: list[Path]) -> None:
    if DOCKER is None or run(DOCKER, "compose", "version").returncode != 0:
        pytest.skip("Docker Compose is not installed here")
    options = [option for path in files for option in ("--file", str(path))]
    done = run(DOCKER, "compose", *options, "config", "--quiet")
    assert done.returncode == 0, done.stderr


def test_compose_asks_for_an_nvidia_gpu() -> None:
    (device,) = service()["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_compose_for_the_cpu_takes_the_gpu_out() -> None:
    cpu = service(CPU_FILE)
    assert cpu["deploy"] is None
    assert cpu["environment"] == {"ACCELERATOR_TYPE": "cpu"}
    assert cpu["image"] == "transformers-openai-api:cpu"
    assert service()["image"] == "transformers-openai-api:cuda"
    assert cpu["build"]["args"].keys() <= set(arguments("ARG", r"(\w+)="))


def test_compose_keeps_the_cache_in_a_named_volume() -> None:
    (name,) = compose()["volumes"]
    assert f"{name}:{instruction('VOLUME')}" in service()["volumes"]


def test_compose_publishes_to_this_machine_alone_on_the_servers_port() -> None:
    port = f"${{PORT:-{LauncherConfig().port}}}"
    assert service()["ports"] == [f"${{PUBLISH_ADDRESS:-127.0.0.1}}:{port}:{port}"]


def test_compose_checks_health_as_the_image_does() -> None:
    check = service()["healthcheck"]
    assert check["test"] == ["CMD", "python", HEALTH_CHECK]
    for option in ("interval", "timeout", "start_period", "retries"):
        assert f"--{option.replace('_', '-')}={check[option]} " in instruction("HEALTHCHECK")


# ── Dockerfile ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed here")
def test_hadolint_has_no_complaint() -> None:
    done = run(str(HADOLINT), str(ROOT / "Dockerfile"))
    assert done.stdout == ""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), without comments, each on one line."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(first, rest) for first, _, rest in (line.partition(" ") for line in lines) if first]


def arguments(name: str, pattern: str = r"(.*)") -> list[str]:
    """What each instruction of this name says, or the part of it that the pattern picks."""
    said = [re.match(pattern, rest) for first, rest in instructions() if first == name]
    return [found[1] for found in said if found]


def instruction(name: str) -> str:
    """What the only instruction of this name says."""
    (said,) = arguments(name)
    return said


def test_the_base_image_has_a_version() -> None:
    image, _, tag = instruction("FROM").partition(":")
    assert image == "python"
    version = re.match(r"(\d+)\.(\d+)-slim-\w+$", tag)
    assert version is not None, tag
    assert (int(version[1]), int(version[2])) >= (3, 11)


def test_the_server_does_not_run_as_root() -> None:
    user, group = instruction("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    order = [first for first, _ in instructions()]
    assert order.index("USER") > max(i for i, first in enumerate(order) if first == "RUN")
    assert f"--uid {user} " in " ".join(arguments("RUN"))


def test_the_cache_is_a_volume_of_the_user_and_holds_all_that_is_slow_to_get() -> None:
    volume = instruction("VOLUME")
    assert f"install -d -o server -g server -m 0755 {volume}" in " ".join(arguments("RUN"))
    places = dict(pair.split("=") for pair in instruction("ENV").split())
    for name in ("HF_HOME", "CACHE_DIRECTORY", "TRITON_CACHE_DIR"):
        assert Path(places[name]).is_relative_to(volume)
    environ = {"CPU_KERNELS_DIRECTORY": "", **places}  # as docker-compose.yml leaves it
    assert flags.read([], environ).config.worker.cpu_kernels_directory == volume


def test_the_image_has_the_compiler_that_the_cpu_kernels_ask_for() -> None:
    from gpu_worker.cpu_kernels.build import COMPILERS

    assert set(" ".join(arguments("RUN")).split()) & set(COMPILERS)


def test_the_port_is_the_servers_default() -> None:
    port = LauncherConfig().port
    assert instruction("EXPOSE") == str(port)
    assert f"DEFAULT_PORT = {port}\n" in (ROOT / HEALTH_CHECK).read_text()


def test_the_image_starts_the_launcher_and_stops_it_as_it_expects() -> None:
    assert instruction("ENTRYPOINT") == '["python", "launcher.py"]'
    assert instruction("STOPSIGNAL") == "SIGTERM"


def test_the_image_checks_health_and_gives_the_first_start_time() -> None:
    assert instruction("HEALTHCHECK").endswith(f'CMD ["python", "{HEALTH_CHECK}"]')
    assert "--start-period=30m " in instruction("HEALTHCHECK")


# ── what goes into the image ─────────────────────────────────────────────────────────────────────


def allowed_paths() -> list[str]:
    """What .dockerignore lets through, which is all that it does: the rest is kept out."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert (rules[0], rules[-1]) == ("*", "**/__pycache__")
    assert all(rule.startswith("!") for rule in rules[1:-1])
    return [rule.removeprefix("!") for rule in rules[1:-1]]


def test_all_that_is_copied_is_there() -> None:
    sources = [source for said in arguments("COPY") for source in said.split()[:-1]]
    assert sources == ["requirements.txt", "."]
    for path in [*sources, *allowed_paths()]:
        assert (ROOT / path).exists(), path


@pytest.fixture(scope="module")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that `COPY . .` takes."""
    tree = tmp_path_factory.mktemp("image")
    for name in allowed_paths():
        source, target = ROOT / name, tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return tree


def test_what_goes_into_the_image_can_serve(image_tree: Path) -> None:
    modules = [kind.entry.partition(":")[0] for kind in ROOM_KINDS.values()]
    script = f"import launcher, {', '.join(modules)}; print(launcher.__file__)"
    done = run(sys.executable, "-c", script, cwd=image_tree)
    assert done.stdout.strip() == str(image_tree / "launcher.py"), done.stderr


def test_what_goes_into_the_image_has_the_built_in_models_and_the_health_check(
    image_tree: Path,
) -> None:
    for directory in BUILT_IN_MODELS.values():
        assert (image_tree / directory.relative_to(ROOT) / "model.safetensors").is_file()
    assert (image_tree / HEALTH_CHECK).is_file()


if __name__ == "__main__":
    head, _, tail = compose_parts()
    COMPOSE_FILE.write_text(f"{head}{BEGIN}{variable_lines()}{END}{tail}", encoding="utf-8")
