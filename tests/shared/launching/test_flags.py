"""Flags and environment: who wins, and that every mistake names where it was made."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import pytest

from shared.config import BUILT_IN_MODELS, LauncherConfig, ServerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.flag import flag
from shared.launching import flags


@dataclass(frozen=True)
class SwitchConfig:
    """A room with one switch."""

    hqq: bool = flag(
        False, "int4 weights: 25 % of the size", env=("HQQ", "INT4"), aliases=("--int4",)
    )
    torch_compile_mode: str = flag("", "as in the real one")


@dataclass(frozen=True)
class SwitchedConfig:
    launcher: LauncherConfig = dataclasses.field(default_factory=LauncherConfig)
    worker: SwitchConfig = SwitchConfig()


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the parser read `SwitchedConfig`."""
    monkeypatch.setattr(flags, "ServerConfig", SwitchedConfig)


def parse(*argv: str, **environ: str) -> ServerConfig:
    """Parses as the launcher does."""
    return flags.read(argv, environ).config


def switch(*argv: str, **environ: str) -> bool:
    """The value of `--hqq`."""
    config: Any = parse(*argv, **environ)
    return bool(config.worker.hqq)


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
    assert len(fields) > 40
    for field in fields:
        assert all(option in text for option in flags.names_of(field))
        assert (
            f"(default: {flags.default_of(field)}, env: {', '.join(flags.variables(field))})"
            in text
        )


def test_help_begins_with_what_most_starts_need(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    titles = ["Basics", "Launcher", "HTTP server", "Model", "Tokenizer processes", "Worker"]
    places = [text.index(f"\n{title}:\n") for title in titles]
    assert places == sorted(places)
    assert "--hf-model" in text[places[0] : places[1]]
    assert "--queue-timeout" in text[places[2] : places[3]]


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


def test_settings_know_where_each_value_is_from() -> None:
    origins = flags.read(["--port=1"], {"LOGLEVEL": "debug", "HOST": ""}).origins
    assert origins["port"] == "command line"
    assert origins["loglevel"] == "environment variable LOGLEVEL"
    assert origins["host"] == flags.DEFAULT
    assert set(origins) == {field.name for field in flags.flag_fields()}


def test_the_variable_that_won_is_named() -> None:
    assert flags.read([], {"HOSTNAME": "::1"}).origins["host"] == "environment variable HOSTNAME"


def test_secrets_are_never_described() -> None:
    described = flags.described(flags.read(["--api-key", "one,two"], {}))
    assert "--api-key ***  (command line)\n" in described
    assert "one" not in re.findall(r"^--api-key (.*)$", described, re.MULTILINE)[0]
    assert '--api-key ""  (default: everybody may call)\n' in flags.described(flags.read([], {}))


def test_what_has_no_effect_is_told_once_for_each_name() -> None:
    argv = ["--attn-implementation", "eager", "--reload"]
    environ = {"HOTLOAD": "true", "CACHE_TYPE": "x", "ATTN_IMPLEMENTATION": ""}
    given = flags.read(argv, environ).without_effect
    assert given == ("--attn-implementation", "--reload", "CACHE_TYPE", "HOTLOAD")
    assert flags.read([], {}).without_effect == ()


def test_a_compile_mode_alone_has_no_effect() -> None:
    (given,) = flags.read(["--torch-compile-mode", "Max-Autotune"], {}).without_effect
    assert given == "--torch-compile-mode without --torch-compile"
    assert not flags.read(["--torch-compile-mode=default", "--torch-compile"], {}).without_effect


def test_how_to_profile_counts_without_the_flag_because_a_signal_may_begin_it() -> None:
    argv = ["--torch-profiling-steps", "7", "--torch-profiling-directory", "/tmp/traces"]
    assert flags.read(argv, {}).without_effect == ()


def test_the_first_of_several_names_is_the_models() -> None:
    frontend = parse("--served-model-name", "chat, gpt-4o ,model-b").frontend
    assert frontend.model_name == "chat"
    assert frontend.model_aliases == ("gpt-4o", "model-b")
    assert parse("--served-model-name", "chat").frontend.model_aliases == ()


def test_several_keys_are_separated_by_commas() -> None:
    assert parse(API_KEY="a, b").frontend.api_keys == ("a", "b")
    assert parse().frontend.api_keys == ()
