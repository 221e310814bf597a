"""The file of `--config`: what it may hold, who beats it, and how its mistakes are named."""

from pathlib import Path

import pytest

from shared.config import ServerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.launching import flags


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that does not exist yet."""
    return tmp_path / "settings.yaml"


def parse(file: Path, text: str, *argv: str, **environ: str) -> ServerConfig:
    """The configuration of a start with this file."""
    file.write_text(text)
    return flags.read(["--config", str(file), *argv], environ).config


def refusal(file: Path, text: str) -> str:
    """The sentence about a file that is refused."""
    with pytest.raises(FatalError) as caught:
        parse(file, text)
    assert caught.value.exit_status == EXIT_CONFIGURATION
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_kind_of_value_can_be_given(file: Path) -> None:
    config = parse(
        file,
        """
        hf-model: demo
        port: 1
        queue_timeout: 2.5
        prefix-caching: no
        static_cache: "TRUE"
        loglevel: debug
        cors-origins: [https://a.example, https://b.example]
        override-generation-config: {temperature: 0.5}
        run-directory:
        """,
    )
    assert (config.worker.model.hf_model, config.launcher.port) == ("demo", 1)
    assert config.frontend.queue_timeout == 2.5
    assert (config.worker.prefix_caching, config.worker.static_cache) == (False, True)
    assert config.launcher.loglevel == "DEBUG"
    assert config.frontend.cors_origins == "https://a.example,https://b.example"
    assert config.worker.override_generation_config == '{"temperature": 0.5}'
    assert config.launcher.run_directory == ""


def test_json_is_understood(file: Path) -> None:
    assert parse(file, '{"max_n": 3, "hf-model": "demo"}').frontend.max_n == 3


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_file_sets_nothing(file: Path, text: str) -> None:
    assert parse(file, text).worker == ServerConfig().worker


def test_command_line_and_environment_beat_the_file(file: Path) -> None:
    config = parse(file, "port: 1\nmax-n: 1\nmax-queue: 1", "--port=3", PORT="2", MAX_N="2")
    assert (config.launcher.port, config.frontend.max_n, config.frontend.max_queue) == (3, 2, 1)


def test_the_environment_may_name_the_file(file: Path) -> None:
    file.write_text("port: 1")
    settings = flags.read([], {"CONFIG_FILE": str(file)})
    assert settings.config.launcher.port == 1
    assert settings.origins["port"] == f"file {file}"
    assert settings.origins["config"] == "environment variable CONFIG_FILE"


def test_an_unknown_key_is_refused_with_the_nearest_flag(file: Path) -> None:
    assert "max-concurent is no flag; did you mean max-concurrent?" in refusal(
        file, "max-concurent: 1"
    )
    assert "hf_modell is no flag; did you mean hf-model?" in refusal(file, "hf_modell: demo")
    assert "zzzzz is no flag (see --help)" in refusal(file, "zzzzz: 1")


@pytest.mark.parametrize("key", ["config", "print-config"])
def test_a_file_does_not_speak_of_itself(file: Path, key: str) -> None:
    assert f"{key} is no flag" in refusal(file, f"{key}: x")


def test_a_bad_value_names_file_and_key(file: Path) -> None:
    assert refusal(file, "port: seven") == f"{file}: port: 'seven' is not a whole number"
    assert refusal(file, "static-cache: 3").startswith(f"{file}: static-cache: ")
    assert refusal(file, "max_n: true").startswith(f"{file}: max-n: ")


def test_text_that_yaml_would_change_must_be_quoted(file: Path) -> None:
    assert "api-key: put the value in quotes" in refusal(file, "api-key: 0123")
    assert parse(file, 'api-key: "0123"').frontend.api_keys == ("0123",)


def test_a_flag_that_is_given_twice_is_refused(file: Path) -> None:
    assert "max_n is given twice" in refusal(file, "max-n: 1\nmax_n: 2")


@pytest.mark.parametrize(
    "text",
    [
        "port: [1",
        "- port",
        "just text",
        "\tport: 1",
        "a: !!python/x 1",
        "? {a: b}\n: 1",
        "a: 1\n---\n",
    ],
)
def test_what_is_no_mapping_is_refused(file: Path, text: str) -> None:
    assert refusal(file, text).startswith(f"--config {file}: ")


@pytest.mark.parametrize(
    "text",
    [
        "port: 7000\nport: 7001",
        '{"port": 7000, "port": 7000}',
        "port:\nport: 7001",
        "override-generation-config: {top_k: 1, top_k: 2}",
    ],
)
def test_a_key_that_is_there_twice_is_refused(file: Path, text: str) -> None:
    assert refusal(file, text).endswith(" is given twice")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("api-key: {a: 1}", "api-key"),
        ("hf-model: {a: 1}", "hf-model"),
        ("port: {a: 1}", "port"),
        ("cors-origins: &a [*a]", "cors-origins"),
        ("port: &a [1]\ncors-origins: [*a]", "cors-origins"),
        ("override-generation-config: &a {top_k: *a}", "override-generation-config: top_k"),
    ],
)
def test_a_value_of_another_form_is_refused_by_its_key(file: Path, text: str, key: str) -> None:
    assert refusal(file, text).startswith(f"{file}: {key}: give a ")


@pytest.mark.parametrize("value", ["2020-01-01", "!!binary aGk=", '"0.5"', "true", "1:30", ".inf"])
def test_sampling_in_a_file_is_made_of_numbers(file: Path, value: str) -> None:
    sentence = refusal(file, f"override-generation-config: {{temperature: {value}}}")
    assert sentence.startswith(f"{file}: override-generation-config: temperature: ")


@pytest.mark.parametrize("value", ["2020-01-01", "!!binary aGk=", "!!python/int 1"])
def test_a_date_or_bytes_must_be_quoted(file: Path, value: str) -> None:
    for flag in ("hf-model", "port"):
        assert "put the value in quotes" in refusal(file, f"{flag}: {value}")


@pytest.mark.parametrize("depth", [3, 5_000, 100_000])
def test_what_is_nested_deeply_is_refused_before_it_is_read(file: Path, depth: int) -> None:
    assert "nested too deeply" in refusal(file, "[" * depth)
    assert "nested too deeply" in refusal(file, f"cors-origins: {'[' * depth}{']' * depth}")


def test_a_file_that_is_too_long_for_flags_is_refused(file: Path) -> None:
    assert "more than 1048576 bytes" in refusal(file, "#" * (2**20 + 1))
    assert parse(file, "#" * 2**20) == flags.read(["--config", str(file)], {}).config


def test_text_with_a_nul_is_refused_by_its_key(file: Path) -> None:
    for key in ("run-directory", "host", "api-key"):
        assert refusal(file, f'{{"{key}": "a\\u0000b"}}').startswith(
            f"{file}: {key}: it holds a NUL"
        )


def test_the_variable_that_names_the_file_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "nothing")
    with pytest.raises(FatalError, match=f"^CONFIG_FILE {path}: No such file"):
        flags.read([], {"CONFIG_FILE": path})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=r"--config .*nothing: No such file"):
        flags.read(["--config", str(tmp_path / "nothing")], {})
