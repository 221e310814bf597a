"""Correctness and speed on a CUDA device, in about ten minutes, into one JSON record.

Stages, each to be chosen by `--stages a,b`: `equality` with generate() in twelve architectures,
`kernel` against dense attention, `decode` of an 8-billion model under CUDA graphs and `eager`
without, `overlap` of steps with the host's work, `compiled` by torch.compile, `int4` by `--hqq`,
`peers` (transformers' continuous batching), `prefix` cache, `whisper` in two shapes.
The record is on disk after every row; rows that this machine cannot measure say why.

    python -m benchmarks.bench_gpu
"""

import argparse
import datetime as dt
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import decode, equality, int4, kernel, overlap, peers, prefix, whisper
from benchmarks.gpu.machine import ROOT, Machine
from benchmarks.gpu.record import Record, Stage


def stages(machine: Machine) -> list[Stage]:
    """Every stage, in the order in which a fault of one makes the next pointless."""
    return [
        equality.stage(machine),
        kernel.stage(machine),
        decode.stage(machine, cuda_graphs=True),
        decode.stage(machine, cuda_graphs=False),
        overlap.stage(machine),
        decode.compiled_stage(machine),
        int4.stage(machine),
        peers.stage(machine),
        prefix.stage(machine),
        whisper.stage(machine),
    ]


def record_path(directory: Path, device_name: str) -> Path:
    """gpu-<device>-<date>.json."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return directory / f"gpu-{slug}-{dt.datetime.now(dt.UTC).date()}.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the chosen stages; 1 when a check failed or a row broke."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stages", default="", help="names, with commas; default: all")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--commit", default="", help="default: as git says")
    parser.add_argument(
        "--rehearse", action="store_true", help="all rows, small and on the CPU: tests this file"
    )
    arguments = parser.parse_args(argv)
    machine = Machine(torch.device("cpu" if arguments.rehearse else "cuda"), arguments.rehearse)
    if arguments.rehearse:
        torch.set_num_threads(1)  # small models compute faster so
    known = stages(machine)
    wanted = set(arguments.stages.split(",")) if arguments.stages else {s.name for s in known}
    if unknown := wanted - {stage.name for stage in known}:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    path = record_path(arguments.output, machine.name)
    record = Record(path, machine.facts(arguments.commit))
    for stage in known:
        if stage.name in wanted:
            record.run(stage)
            machine.free()
    print(path)
    return int(record.has_failed)


if __name__ == "__main__":
    sys.exit(main())
