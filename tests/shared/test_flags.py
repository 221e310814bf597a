"""Flags and environment: who wins, and that every mistake names where it was made."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from shared import flags
from shared.config import BUILT_IN_MODELS, ServerConfig, flag
from shared.errors import EXIT_CONFIGURATION, FatalError


@dataclass(frozen=True)
class SwitchConfig:
    """A room with one switch."""

    hqq: bool = flag(
        False, "int4 weights: 25 % of the size", env=("HQQ", "INT4"), aliases=("--int4",)
    )


@dataclass(frozen=True)
class SwitchedConfig:
    room: SwitchConfig = SwitchConfig()


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the parser read `SwitchedConfig`."""
    monkeypatch.setattr(flags, "ServerConfig", SwitchedConfig)


def parse(*argv: str, **environ: str) -> ServerConfig:
    """Parses as the launcher does."""
    return flags.parse(argv, environ)


def switch(*argv: str, **environ: str) -> bool:
    """The value of `--hqq`."""
    config: Any = parse(*argv, **environ)
    return bool(config.room.hqq)


def refusal(*argv: str, **environ: str) -> str:
    """The sentence of a command line that is refused."""
    with pytest.raises(FatalError) as caught:
        parse(*argv, **environ)
    assert caught.value.exit_status == EXIT_CONFIGURATION
    return str(caught.value)


def test_nothing_given_is_every_default() -> None:
    assert parse() == ServerConfig()


def test_the_originals_defaults_are_kept() -> None:
    config = parse()
    assert (config.launcher.host, config.launcher.port) == ("0.0.0.0", 7088)
    assert config.launcher.loglevel == "INFO"
    assert config.worker.model.hf_model == "mesolitica/malaysian-llama2-7b-32k-instructions"
    assert config.worker.continuous_batching_batch_size == 20
    assert config.worker.continuous_batching_microsleep == 0.001
    assert config.frontend.max_concurrent == 100


def test_values_have_the_type_of_their_field() -> None:
    config = parse("--port", "1", "--request-timeout", "2", "--served-model-name", "3")
    assert (config.launcher.port, config.frontend.request_timeout) == (1, 2.0)
    assert isinstance(config.frontend.request_timeout, float)
    assert config.frontend.model_name == "3"


def test_the_environment_beats_the_default() -> None:
    assert parse(PORT="1234").launcher.port == 1234


def test_the_command_line_beats_the_environment() -> None:
    assert parse("--port=1", PORT="2").launcher.port == 1


def test_the_command_line_wins_even_over_a_broken_environment() -> None:
    assert parse("--port=1", PORT="nonsense").launcher.port == 1


def test_an_empty_variable_is_not_set() -> None:
    assert parse(PORT="", HOST="").launcher == ServerConfig().launcher


def test_host_beats_hostname() -> None:
    assert parse(HOST="::1", HOSTNAME="10.0.0.1").launcher.host == "::1"
    assert parse(HOSTNAME="10.0.0.1").launcher.host == "10.0.0.1"


def test_a_replaced_variable_name_replaces() -> None:
    assert parse(RUN_DIRECTORY="/a", RUNTIME_DIRECTORY="/b").launcher.run_directory == "/a"
    assert parse(RUNTIME_DIRECTORY="/b").launcher.run_directory == "/b"


def test_a_flag_that_rooms_share_reaches_each_of_them() -> None:
    config = parse("--hf-model", "demo", "--max-model-len", "77")
    models = [config.frontend.model, config.tokenizer.model, config.worker.model]
    assert {(model.hf_model, model.max_model_len) for model in models} == {("demo", 77)}
    assert config.worker.model.path == str(BUILT_IN_MODELS["demo"])
    assert config.frontend.model_name == "demo"


@pytest.mark.parametrize("number", ["x", "1.5", "", "0x10"])
def test_a_bad_whole_number_names_its_flag(number: str) -> None:
    assert refusal("--port", number) == f"--port: {number!r} is not a whole number"


def test_a_bad_number_names_its_flag() -> None:
    assert refusal("--request-timeout", "soon") == "--request-timeout: 'soon' is not a number"


@pytest.mark.parametrize(
    ("option", "number"),
    [
        ("--port", "-1"),
        ("--port", "65536"),
        ("--max-concurrent", "0"),
        ("--continuous-batching-batch-size", "0"),
        ("--max-model-len", "-5"),
        ("--kv-cache-memory-fraction", "1.5"),
        ("--kv-cache-memory-fraction", "nan"),
        ("--request-timeout", "nan"),
    ],
)
def test_a_number_out_of_its_range_names_its_flag(option: str, number: str) -> None:
    assert refusal(option, number).startswith(f"{option}: '{number}' is not ")


def test_a_bad_variable_is_named_not_its_flag() -> None:
    assert refusal(PORT="x") == "PORT: 'x' is not a whole number"
    assert refusal(TORCH_DTYPE="int3").startswith("TORCH_DTYPE: 'int3' is not one of auto, ")


def test_a_choice_that_does_not_exist_is_refused_with_those_that_do() -> None:
    sentence = "--accelerator-type: 'tpu' is not one of cuda, cpu"
    assert refusal("--accelerator-type", "tpu") == sentence


@pytest.mark.parametrize("argv", [["--nonsense"], ["--nonsense=1"], ["stray"], ["--por", "1"]])
def test_an_unknown_argument_is_refused_by_name(argv: list[str]) -> None:
    assert argv[0] in refusal(*argv)


def test_a_flag_without_its_value_is_refused_by_name() -> None:
    assert "--port" in refusal("--port")


@pytest.mark.usefixtures("switched")
@pytest.mark.parametrize("text", ["true", "TRUE", "1", "yes", "on"])
def test_a_switch_is_turned_on(text: str) -> None:
    assert switch("--hqq")
    assert switch("--hqq", text)
    assert switch(HQQ=text)


@pytest.mark.usefixtures("switched")
@pytest.mark.parametrize("text", ["false", "False", "0", "no", "off"])
def test_a_switch_is_turned_off(text: str) -> None:
    assert not switch("--no-hqq", HQQ="true")
    assert not switch("--hqq", text, HQQ="true")
    assert not switch(HQQ=text)


@pytest.mark.usefixtures("switched")
def test_the_last_of_contradicting_switches_wins() -> None:
    assert switch("--no-hqq", "--hqq")
    assert not switch("--hqq", "--no-hqq")


@pytest.mark.usefixtures("switched")
def test_a_switch_that_is_neither_on_nor_off_is_refused() -> None:
    assert refusal("--hqq", "maybe") == "--hqq: 'maybe' is not true or false"
    assert refusal(HQQ="maybe") == "HQQ: 'maybe' is not true or false"


@pytest.mark.usefixtures("switched")
def test_another_name_of_a_switch_means_the_same() -> None:
    assert switch("--int4")
    assert switch("--int4", "true", HQQ="false")
    assert not switch("--hqq", "--no-int4")
    assert not switch("--int4", "--no-hqq")
    assert switch(INT4="true")


def test_the_originals_other_name_of_profiling_is_kept() -> None:
    assert parse("--torch-autograd-profiling").worker.torch_profiling
    assert parse(TORCH_AUTOGRAD_PROFILING="true").worker.torch_profiling


def test_help_names_every_flag_with_its_default_and_variables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # argparse breaks long lines even inside a word
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    fields = list(flags.flag_fields())
    assert len(fields) > 15
    for field in fields:
        assert all(option in text for option in flags.names_of(field))
        assert f"(default: {field.default!r}, env: {', '.join(flags.variables(field))})" in text


@pytest.mark.usefixtures("switched")
def test_help_may_speak_of_percent(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    assert "25 % of the size" in capsys.readouterr().out


def test_every_flag_has_one_meaning() -> None:
    by_name: dict[str, list[tuple[Any, ...]]] = {}
    for room in dataclasses.fields(ServerConfig):
        for field in dataclasses.fields(type(getattr(ServerConfig(), room.name))):
            if "help" in field.metadata:
                by_name.setdefault(field.name, []).append((field.default, field.type))
    assert all(len(set(meanings)) == 1 for meanings in by_name.values())
    assert set(by_name) <= {field.name for field in flags.flag_fields()}


def test_every_flag_is_parsed_from_its_variable() -> None:
    for field in flags.flag_fields():
        number = "1" if field.type is float else "7"  # neither is anybody's default
        value = next(v for v in (*field.metadata["choices"], number) if v != field.default)
        if field.type is bool:
            value = str(not field.default)
        for name in flags.variables(field):
            assert parse(**{name: value}) != ServerConfig(), name
