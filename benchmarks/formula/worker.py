"""The worker's room with the formula for a model: the real loop, scheduler and messages."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer as Vocabulary

from benchmarks.formula.alphabet import alphabet
from benchmarks.formula.formula import Formula
from benchmarks.formula.records import WorkerRecord, write_record
from benchmarks.formula.runner import VECTOR_SIZE, FormulaRunner
from benchmarks.formula.scores import Likelihoods
from benchmarks.formula.settings import FormulaSettings, load_settings
from gpu_worker.intake import IntakeLimits
from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.recovery import IsolatingRunner
from gpu_worker.runner import Runner
from gpu_worker.worker import Worker
from scheduler.scheduler import Scheduler
from shared.config import WorkerConfig
from shared.mailbox import Mailbox
from shared.parts import EmbeddingFacts, ModelFacts

MAX_MODEL_LEN = 4096  # unless the flags say otherwise
BLOCKS_PER_ROW = MAX_MODEL_LEN // BLOCK_SIZE

Around = Callable[[Runner], Runner]  # puts a runner of its own around the formula's


def run(config: WorkerConfig, mailbox: Mailbox, around: Around = lambda runner: runner) -> None:
    """Serves the formula until the launcher says stop."""
    settings = load_settings(config.identity.run_directory)
    record = WorkerRecord()
    worker = make_worker(config, settings, mailbox, record, around)
    vocab_size = _vocabulary(config).get_vocab_size()
    facts = ModelFacts(
        _max_model_len(config), vocab_size, {}, {}, embeddings=EmbeddingFacts(VECTOR_SIZE)
    )
    mailbox.report_ready(facts)
    worker.run()
    write_record(settings.record, record)


def make_worker(
    config: WorkerConfig,
    settings: FormulaSettings,
    mailbox: Mailbox,
    record: WorkerRecord,
    around: Around,
) -> Worker:
    """The real worker around the formula, which says tokens of the served model's vocabulary."""
    directory = Path(config.model.path)
    vocabulary = _vocabulary(config)
    end_token_id: int = json.loads((directory / "config.json").read_text())["eos_token_id"]
    num_rows, num_blocks = config.continuous_batching_batch_size, _num_blocks(config, settings)
    runner = FormulaRunner(
        Formula(
            alphabet(vocabulary, settings.text, end_token_id),
            end_token_id,
            settings.end_probability,
        ),
        Likelihoods(vocabulary.get_vocab().values()),
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_sequences=num_rows,
        step_seconds=settings.step_ms / 1000,
        note_step=record.note_step,
    )
    limits = IntakeLimits(
        max_model_len=_max_model_len(config),
        vocab_size=vocabulary.get_vocab_size(),
        end_token_ids=frozenset({end_token_id}),
        embedding_size=VECTOR_SIZE,
    )
    return Worker(
        mailbox,
        _scheduler(config, num_blocks),
        IsolatingRunner(around(runner)),
        limits,
        microsleep_seconds=config.continuous_batching_microsleep,
    )


def _scheduler(config: WorkerConfig, num_blocks: int) -> Scheduler:
    return Scheduler(
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_sequences=config.continuous_batching_batch_size,
        max_tokens_per_step=config.max_num_batched_tokens,
        max_early_aborts=2 * config.max_concurrent,
        prefix_caching=config.prefix_caching,
    )


def _vocabulary(config: WorkerConfig) -> Vocabulary:
    return Vocabulary.from_file(str(Path(config.model.path) / "tokenizer.json"))


def _max_model_len(config: WorkerConfig) -> int:
    return config.model.max_model_len or MAX_MODEL_LEN


def _num_blocks(config: WorkerConfig, settings: FormulaSettings) -> int:
    """As asked for; else room for every row, and for one sequence of the longest context."""
    longest = -(-_max_model_len(config) // BLOCK_SIZE)
    return settings.num_blocks or longest + BLOCKS_PER_ROW * config.continuous_batching_batch_size
