"""Servers that several end-to-end tests share."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tokenizers import Tokenizer

from benchmarks.formula.running import running_formula
from benchmarks.formula.settings import FormulaSettings
from tests.e2e.models import DEMO_DIRECTORY, save_endless_model
from tests.e2e.server import RunningServer, running_server


@pytest.fixture(scope="session", autouse=True)
def _start_quickly(nursery: None) -> None:
    """Servers need not import torch again."""


@pytest.fixture(scope="session")
def demo_server() -> Iterator[RunningServer]:
    """The server on the demo model, with room for 32 sequences a step.

    In float32: a bfloat16 result depends, in its last bit, on how many rows a product has, so that
    answers could differ from their solo run where two tokens are nearly as likely.
    """
    arguments = ["--hf-model", "demo", "--continuous-batching-batch-size", "32"]
    with running_server(*arguments, "--torch-dtype", "float32") as server:
        yield server


@pytest.fixture
def client(demo_server: RunningServer) -> Iterator[openai.OpenAI]:
    """The official client, without its retries: what fails must be seen."""
    url = f"{demo_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def t5_server() -> Iterator[RunningServer]:
    """The server on the built-in T5, in float32 and with slots of fixed lengths."""
    lengths = [
        *("--static-cache", "--continuous-batching-batch-size", "8"),
        *("--static-cache-encoder-max-length", "64", "--static-cache-decoder-max-length", "48"),
    ]
    with running_server("--hf-model", "demo-t5", "--torch-dtype", "float32", *lengths) as server:
        yield server


@pytest.fixture(scope="session")
def formula_server() -> Iterator[RunningServer]:
    """The server whose answers are a formula: of any text, and ending at any token."""
    settings = FormulaSettings(text="mixed", end_probability=0.03)
    with running_formula("--continuous-batching-batch-size", "8", settings=settings) as server:
        yield server


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers run to their length: streams long enough to interfere with."""
    vocabulary = Tokenizer.from_file(str(DEMO_DIRECTORY / "tokenizer.json"))
    directory = tmp_path_factory.mktemp("endless")
    return save_endless_model(directory, vocabulary.get_vocab_size())
