"""What is taken over from the environment, and what each kind of room gets."""

import pytest

from shared.launching.environment import (
    COMPILED_SPIN_COUNT,
    SPIN_COUNT,
    child_environment,
    usable_environment,
)


def test_only_the_worker_has_threads_and_they_do_not_spin_for_long() -> None:
    worker = child_environment("worker", {})
    assert (worker["OMP_WAIT_POLICY"], worker["GOMP_SPINCOUNT"]) == ("PASSIVE", SPIN_COUNT)
    assert child_environment("worker", {}, compiles=True)["GOMP_SPINCOUNT"] == COMPILED_SPIN_COUNT
    assert "OMP_NUM_THREADS" not in worker
    assert child_environment("worker", {"GOMP_SPINCOUNT": "7"})["GOMP_SPINCOUNT"] == "7"
    for kind in ("frontend", "tokenizer", "detokenizer"):
        assert child_environment(kind, {"OMP_NUM_THREADS": "8"})["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("hostname", "is_kept"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("192.0.2.7", False),
        ("3f2a9c", False),
        ("", False),
    ],
)
def test_a_hostname_that_is_no_address_of_this_machine_is_not_used(
    hostname: str, is_kept: bool
) -> None:
    usable = usable_environment({"HOSTNAME": hostname, "PORT": "7"})
    assert usable == ({"HOSTNAME": hostname, "PORT": "7"} if is_kept else {"PORT": "7"})


def test_weights_are_never_sent_for_conversion_unless_asked() -> None:
    assert child_environment("worker", {})["DISABLE_SAFETENSORS_CONVERSION"] == "true"
    asked = {"DISABLE_SAFETENSORS_CONVERSION": "false"}
    assert child_environment("worker", asked)["DISABLE_SAFETENSORS_CONVERSION"] == "false"


def test_what_torch_compiles_is_kept_beside_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv("HOME", "/home/somebody")
    usual = child_environment("worker", {})[name]
    assert usual == "/home/somebody/.cache/transformers-openai-api/torch-compile"
    assert child_environment("worker", {}, "/kernels")[name] == "/kernels/torch-compile"
    assert child_environment("worker", {name: "/own"}, "/kernels")[name] == "/own"
    assert name not in child_environment("frontend", {}, "/kernels")
