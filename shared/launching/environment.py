"""The environment as it is taken over, and as each kind of room gets it. The launcher reads it."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from shared.launching.listener import is_own_address

ROOT = Path(__file__).resolve().parents[2]
# How long an idle OpenMP thread of the worker spins before it sleeps, in turns of a loop: a quarter
# of a millisecond to one. Sleeping at once doubles a step's time on two threads; torch's own
# default, far longer, keeps cores from the other rooms. Compiled code comes to its next layer
# sooner, so that its threads may sleep sooner, too. See docs/log.md.
SPIN_COUNT, COMPILED_SPIN_COUNT = "20000", "3000"
CACHE_DIRECTORY = "~/.cache/transformers-openai-api"  # as the worker's own CPU kernels have it


def usable_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without a HOSTNAME that cannot be listened on.

    Shells and containers set it to the machine's name, and nobody means that as an address.
    """
    usable = dict(environ)
    if not is_own_address(usable.get("HOSTNAME", "")):
        usable.pop("HOSTNAME", None)
    return usable


def child_environment(
    kind: str, environ: Mapping[str, str], cache_directory: str = "", *, compiles: bool = False
) -> dict[str, str]:
    """The launcher's own, with this project first on the path and no thread pool left spinning.

    What torch.compile makes is kept in a folder of the cache, from start to start.
    """
    child = dict(environ)
    child["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environ.get("PYTHONPATH")])])
    child["TOKENIZERS_PARALLELISM"] = "false"
    child.setdefault("HF_HUB_VERBOSITY", "error")  # each failed try is no news: the end is
    if kind == "worker":
        child.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        child.setdefault("GOMP_SPINCOUNT", COMPILED_SPIN_COUNT if compiles else SPIN_COUNT)
        # Or transformers asks a service on the Hub to convert what --allow-pickle-weights loads.
        child.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")
        with suppress(RuntimeError):  # without a home directory torch takes a place of its own
            cache = Path(cache_directory or CACHE_DIRECTORY).expanduser()
            child.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "torch-compile"))
    else:
        child["OMP_NUM_THREADS"] = "1"
    return child
