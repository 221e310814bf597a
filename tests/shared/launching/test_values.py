"""Texts with rules of their own: lists of names, origins, sampling as JSON."""

import pytest

from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.launching import flags


def refusal(*argv: str) -> str:
    """The sentence of a command line that is refused."""
    with pytest.raises(FatalError) as caught:
        flags.read(argv, {})
    assert caught.value.exit_status == EXIT_CONFIGURATION
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"temperature": 0}',
        '{"temperature": 2, "top_p": 0.5, "top_k": -1, "min_p": 1, "repetition_penalty": 10}',
    ],
)
def test_sampling_within_its_bounds_is_taken_as_it_is(text: str) -> None:
    config = flags.read(["--override-generation-config", text], {}).config
    assert config.worker.override_generation_config == text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ""),
        ("temperature=1", "a JSON object"),
        ("[1]", "a JSON object"),
        ("[" * 100_000, "a JSON object"),
        ('{"temperature": 2.1}', "temperature: '2.1' is not a number from 0.0 to 2.0"),
        ('{"temperature": "hot"}', "temperature"),
        ('{"temperature": true}', "temperature"),
        ('{"temperature": NaN}', "temperature"),
        ('{"top_p": -0.1}', "top_p"),
        ('{"top_k": -2}', "top_k: '-2' is not a whole number from -1"),
        ('{"top_k": 1.5}', "top_k"),
        ('{"min_p": 1.1}', "min_p"),
        ('{"repetition_penalty": 0}', "repetition_penalty"),
        ('{"max_tokens": 5}', "max_tokens cannot be set; only temperature, "),
    ],
)
def test_sampling_out_of_its_bounds_names_the_field(text: str, named: str) -> None:
    if named:
        sentence = refusal("--override-generation-config", text)
        assert sentence.startswith("--override-generation-config: ")
        assert named in sentence
    else:
        config = flags.read(["--override-generation-config", text], {}).config
        assert config.worker.override_generation_config == text


def test_a_long_text_is_not_repeated_whole() -> None:
    assert len(refusal("--override-generation-config", "[" * 100_000)) < 300


@pytest.mark.parametrize("text", ["a\0b", "a\udcffb"])
@pytest.mark.parametrize("flag", ["--host", "--run-directory", "--hf-model", "--api-key"])
def test_characters_that_the_rooms_cannot_be_told_are_refused(flag: str, text: str) -> None:
    assert refusal(flag, text).startswith(f"{flag}: it ")


@pytest.mark.parametrize("text", ["*", "https://a.example", "http://localhost:3000, https://b.c"])
def test_origins_are_schemes_and_hosts(text: str) -> None:
    assert flags.read(["--cors-origins", text], {}).config.frontend.cors_origins == text


@pytest.mark.parametrize("text", ["a.example", "https://a.example/", "https://a.example/x", "**"])
def test_what_no_browser_sends_as_its_origin_is_refused(text: str) -> None:
    assert refusal("--cors-origins", text).startswith(f"--cors-origins: {text!r} is not ")


@pytest.mark.parametrize("flag", ["--api-key", "--served-model-name"])
@pytest.mark.parametrize("text", [",", "sesame,", "sesame,,open"])
def test_an_empty_name_between_commas_is_refused_and_not_shown(flag: str, text: str) -> None:
    sentence = refusal(flag, text)
    assert sentence.startswith(f"{flag}: ")
    assert "sesame" not in sentence
