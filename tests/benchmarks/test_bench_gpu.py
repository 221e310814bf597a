"""The GPU benchmark runs to its end anywhere, records as it goes, and notices what is wrong."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_gpu
from benchmarks.gpu import equality, int4, kernel, whisper
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.record import Record, Row, Stage, Unavailable, Values, Wrong
from gpu_worker.attention.backend import AttentionRules
from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.families.whisper import Whisper
from gpu_worker.kv_cache import KVGeometry
from gpu_worker.linears.int4 import Int4
from gpu_worker.linears.int4_cpu import TorchInt4Linear
from scheduler.plan import Admission

FACTS = {"commit": "a", "device": "b", "torch": "c", "transformers": "d"}
REHEARSAL = Machine(torch.device("cpu"), is_rehearsal=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small models compute faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recorded(directory: Path) -> dict[str, Any]:
    """The only record of a directory."""
    (path,) = directory.iterdir()
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def names(record: Record) -> list[str]:
    """The rows in their order."""
    return [row["row"] for row in record.rows]


def stage_of(*rows: Row, seconds: float = 60.0) -> Stage:
    """A stage of these rows."""
    return Stage("s", seconds, lambda: rows)


def raising(error: Exception) -> Row:
    """A row that breaks."""

    def measure() -> Values:
        raise error

    return Row(type(error).__name__, measure)


# ── the whole run ────────────────────────────────────────────────────────────────────────────────


def test_without_a_gpu_every_row_says_why_it_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_gpu.main(["--output", str(tmp_path)]) == 0
    record = recorded(tmp_path)
    assert {row["stage"] for row in record["rows"]} == {
        "equality", "kernel", "decode", "eager", "overlap", "compiled", "int4", "peers", "prefix",
        "whisper",
    }  # fmt: skip
    assert {row["skipped"] for row in record["rows"]} == {"no CUDA device"}
    assert {"commit", "device", "driver", "torch", "transformers"} <= record.keys()


def test_a_rehearsal_measures_decoding_with_every_number(tmp_path: Path) -> None:
    arguments = ["--rehearse", "--stages", "decode", "--output", str(tmp_path)]
    assert bench_gpu.main(arguments) == 0
    prefill, *decodes = recorded(tmp_path)["rows"]
    assert prefill["tokens"] == 4 * 40
    assert [row["row"] for row in decodes] == ["batch 4", "batch 2", "batch 1"]
    for row in decodes:
        assert row["tokens_per_second"] > 0
        assert 0 < row["share_of_measured_bandwidth"] < 1


def test_a_rehearsal_measures_overlap_at_every_batch_size(tmp_path: Path) -> None:
    arguments = ["--rehearse", "--stages", "overlap", "--output", str(tmp_path)]
    assert bench_gpu.main(arguments) == 0
    equality_row, *rows = recorded(tmp_path)["rows"]
    assert 0 < equality_row["equal_tokens"] <= equality_row["of"]
    assert [row["row"] for row in rows] == ["batch 4", "batch 2", "batch 1"]
    for row in rows:
        assert row["ahead_ms"] / row["in_turn_ms"] == pytest.approx(row["ahead_over_in_turn"])
        assert 0 <= row["turns_that_waited"] <= 1


def test_a_rehearsal_measures_4_bit_weights_with_every_number(tmp_path: Path) -> None:
    arguments = ["--rehearse", "--stages", "int4", "--output", str(tmp_path)]
    assert bench_gpu.main(arguments) == 0
    rows = {row["row"]: row for row in recorded(tmp_path)["rows"]}
    layers, rest = list(rows)[: len(int4.NUM_ROWS)], list(rows)[len(int4.NUM_ROWS) :]
    assert layers == [f"layer, {num_rows} rows" for num_rows in int4.NUM_ROWS]
    assert rest == ["prefill", "batch 4", "batch 2", "batch 1"]
    assert all(rows[name]["times_as_fast_as_dense"] > 0 for name in layers)
    assert all(rows[name]["tokens_per_second"] > 0 for name in rest)


def test_a_4_bit_layer_that_loses_its_zeros_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = TorchInt4Linear.compute

    def shifted(self: TorchInt4Linear, x: torch.Tensor) -> torch.Tensor:
        return compute(self, x) + x.sum(-1, keepdim=True)

    monkeypatch.setattr(int4, "Int4", partial(Int4, is_native=False))
    monkeypatch.setattr(TorchInt4Linear, "compute", shifted)
    with pytest.raises(Wrong, match="relative error"):
        int4.compare(REHEARSAL, 8)


def test_a_rehearsal_measures_whisper_in_both_shapes_with_every_number(tmp_path: Path) -> None:
    arguments = ["--rehearse", "--stages", "whisper", "--output", str(tmp_path)]
    assert bench_gpu.main(arguments) == 0
    equality_row, *rows = recorded(tmp_path)["rows"]
    assert equality_row["equal_answers"] == 16
    parts = ["encode 1", "encode 2", "decode 4", "decode 2", "decode 1", "saturated"]
    assert [row["row"] for row in rows] == [
        f"{shape}, {part}" for shape in ("large-v3", "turbo") for part in parts
    ]
    for row in rows:
        speed = {"encode": "windows_per_second", "decode": "ms_per_step"}
        key = speed.get(row["row"].split()[1], "sound_seconds_per_second")
        assert row[key] > 0
        assert 0 < row.get("share_of_measured_bandwidth", 0.5) < 1


def test_a_stage_that_does_not_exist_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench_gpu.main(["--stages", "decode,warp", "--output", str(tmp_path)])
    assert "no such stage: warp" in capsys.readouterr().err


# ── the record ───────────────────────────────────────────────────────────────────────────────────


def test_every_row_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    seen: list[int] = []

    def measure() -> Values:
        seen.append(len(json.loads(path.read_text("utf-8"))["rows"]) if path.exists() else 0)
        return {"value": 1}

    Record(path, FACTS).run(stage_of(*[Row(str(n), measure) for n in range(3)]))
    assert seen == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_row_that_breaks_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json", FACTS)
    record.run(stage_of(raising(RuntimeError("boom")), Row("next", lambda: {"value": 2})))
    assert [row.get("error") for row in record.rows] == ["RuntimeError: boom", None]
    assert record.rows[1]["value"] == 2
    assert record.has_failed


@pytest.mark.parametrize(
    ("error", "key", "is_failure"), [(Unavailable("no GPU"), "skipped", False),
                                     (Wrong("no GPU"), "wrong", True)]
)  # fmt: skip
def test_only_what_is_wrong_fails_the_run(
    tmp_path: Path, error: Exception, key: str, is_failure: bool
) -> None:
    record = Record(tmp_path / "record.json", FACTS)
    record.run(stage_of(raising(error)))
    assert record.rows[0][key] == "no GPU"
    assert record.has_failed is is_failure


def test_rows_beyond_the_time_of_a_stage_are_skipped(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json", FACTS)
    record.run(stage_of(*[Row(str(n), dict) for n in range(2)], seconds=-1.0))
    assert [row["skipped"] for row in record.rows] == ["after -1 s"] * 2


def test_a_stage_measured_again_replaces_its_own_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    Record(path, FACTS).run(stage_of(Row("x", lambda: {"v": 1}), Row("y", lambda: {"v": 2})))
    again = Record(path, FACTS)
    again.run(stage_of(Row("x", lambda: {"v": 3})))
    assert {row["row"]: row["v"] for row in again.rows} == {"x": 3, "y": 2}
    other = Record(path, {**FACTS, "commit": "another"})
    other.run(stage_of(Row("z", dict)))
    assert names(other) == ["z"]


# ── its checks notice what is wrong ──────────────────────────────────────────────────────────────


def test_plain_attention_passes_a_case_of_every_rule() -> None:
    for name in ("sliding window", "sinks and window", "other value heads", "chunks of positions"):
        assert kernel.check(REHEARSAL, kernel.CASES[name], torch.float32)["relative_error"] < 1e-6


class _Blind(TorchAttention):
    """Attention that does not know windows."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rules: AttentionRules,
    ) -> torch.Tensor:
        blind = dataclasses.replace(rules, window=None)
        return super().attend(layer, query, key, value, blind)


def test_a_kernel_that_ignores_a_rule_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(_: Machine, geometry: KVGeometry, num_blocks: int, __: int) -> TorchAttention:
        return _Blind(geometry, num_blocks)

    monkeypatch.setattr(kernel, "make_backend", blind)
    with pytest.raises(Wrong, match="relative error"):
        kernel.check(REHEARSAL, kernel.CASES["sliding window"], torch.float32)


def test_answers_of_a_small_model_are_compared_token_by_token() -> None:
    values = equality.compare(REHEARSAL, "llama")
    assert values["of"] == len(equality.PROMPT_LENGTHS) * equality.ANSWER_TOKENS
    assert values["equal_tokens"] > 0.9 * values["of"]


def test_a_sound_that_is_encoded_otherwise_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Whisper.encode

    def halved(self: Whisper, admissions: Sequence[Admission]) -> torch.Tensor:
        return 0.5 * encode(self, admissions)

    monkeypatch.setattr(Whisper, "encode", halved)
    with pytest.raises(Wrong, match="of request"):
        whisper.compare(REHEARSAL)


def test_a_single_other_token_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = equality._serve

    def serve_wrongly(
        model: Any, prompts: list[tuple[int, ...]], **settings: Any
    ) -> list[list[int]]:
        answers = serve(model, prompts, **settings)
        answers[3][5] += 1
        return answers

    monkeypatch.setattr(equality, "_serve", serve_wrongly)
    with pytest.raises(Wrong, match="prompt of 16 tokens: token 5 is"):
        equality.compare(REHEARSAL, "llama")
