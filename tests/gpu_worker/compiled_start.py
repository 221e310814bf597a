"""A start under `--torch-compile`, for a process of its own: a decoder, a T5 and a Whisper.

It says what torch's compiler counted, as JSON.
"""

import json
import sys
from dataclasses import replace

from torch._dynamo.utils import counters

from gpu_worker.loading import serve
from gpu_worker.slot_loading import serve_slots
from tests.builders import make_model
from tests.gpu_worker.encoder_decoders import make_t5
from tests.gpu_worker.engine import SETTINGS
from tests.gpu_worker.test_whisper import make_whisper


def main() -> None:
    """Compiles all three."""
    settings = replace(SETTINGS, torch_compile=True)
    serve(make_model("llama", num_hidden_layers=1), settings)
    for model in (make_t5("t5", num_layers=1, num_decoder_layers=1), make_whisper("turbo")):
        serve_slots(
            model,
            settings,
            end_token_ids=frozenset(),
            device_name="cpu",
            report=lambda _: None,
        )
    counted = {"graphs": counters["stats"]["unique_graphs"], **counters["inductor"]}
    sys.stdout.write(json.dumps(counted))


if __name__ == "__main__":
    main()
