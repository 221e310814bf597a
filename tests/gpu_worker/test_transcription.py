"""The rules of transcripts mask what transformers' own processors mask, at every step."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from gpu_worker.transcription import Transcripts
from scheduler.plan import Chunk
from shared.sampling import SamplingParams, TranscriptRules
from tests.builders import make_admission

VOCAB, END, SOT, LANGUAGES, TASK, NO_SPEECH, NO_TIMES, FIRST_TIME = (
    80,
    30,
    31,
    (32, 33),
    34,
    35,
    36,
    40,
)
RULES = TranscriptRules(
    heads=(LANGUAGES, (TASK,)),
    end_token_id=END,
    suppressed=(3, 5, SOT, *LANGUAGES, TASK, NO_SPEECH, NO_TIMES),
    suppressed_at_first=(7, END),
    no_speech_id=NO_SPEECH,
    first_time_id=FIRST_TIME,
    max_first_time=10,
)
NUM_ROWS, NUM_STEPS = 64, 40
DEVICE = torch.device("cpu")


def sampling(rules: TranscriptRules | None) -> SamplingParams:
    return SamplingParams(seed=0, temperature=0.0, transcript=rules)


def begun(rules: TranscriptRules | None = RULES) -> Transcripts:
    """Rows that have said nothing but their prompt."""
    transcripts = Transcripts(NUM_ROWS, VOCAB, DEVICE)
    for row in range(NUM_ROWS):
        transcripts.begin(make_admission(row, sampling(rules), token_ids=(SOT,)))
    return transcripts


def feed(transcripts: Transcripts, tokens: list[int], index: int) -> None:
    """Lets each row's last token be observed, twice."""
    chunks = [Chunk(row, index, (token,), (), index, True) for row, token in enumerate(tokens)]
    transcripts.observe(chunks)
    transcripts.observe(chunks)


def reference(said: torch.Tensor, logits: torch.Tensor, begin: int) -> torch.Tensor:
    """What transformers makes of the logits."""
    config = GenerationConfig(
        eos_token_id=END, no_timestamps_token_id=NO_TIMES, max_initial_timestamp_index=10
    )
    times = WhisperTimeStampLogitsProcessor(config, begin_index=begin)
    times.timestamp_begin = FIRST_TIME
    for processor in (
        SuppressTokensAtBeginLogitsProcessor(list(RULES.suppressed_at_first), begin),
        SuppressTokensLogitsProcessor(list(RULES.suppressed)),
        times,
    ):
        logits = processor(said, logits)
    return logits


@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_every_mask_is_that_of_transformers(sharpness: float) -> None:
    generator = torch.Generator().manual_seed(11)
    transcripts = begun()
    said = torch.tensor([[SOT, LANGUAGES[0], TASK]] * NUM_ROWS)
    for index, token in enumerate((LANGUAGES[0], TASK), start=1):
        feed(transcripts, [token] * NUM_ROWS, index)
    begin, seen = said.shape[1], set()
    for step in range(NUM_STEPS):
        logits = sharpness * torch.randn(NUM_ROWS, VOCAB, generator=generator)
        expected = reference(said, logits.clone(), begin)
        found = transcripts.filtered(logits, range(NUM_ROWS))
        assert torch.equal(found.isneginf(), expected.isneginf()), step
        kept = ~expected.isneginf()
        assert torch.equal(found[kept], expected[kept])
        tokens = torch.multinomial(found.softmax(-1), 1, generator=generator)
        seen |= set(tokens[:, 0].tolist())
        said = torch.cat((said, tokens), 1)
        feed(transcripts, tokens[:, 0].tolist(), step + 3)
    assert len(seen) > 50, "few tokens were tried"


def test_the_heads_come_first_and_are_nothing_else() -> None:
    transcripts = begun()
    for index, allowed in enumerate(RULES.heads):
        found = transcripts.filtered(torch.randn(NUM_ROWS, VOCAB), range(NUM_ROWS))
        left = [(~row.isneginf()).nonzero()[:, 0].tolist() for row in found]
        assert {token_id for row in left for token_id in row} == set(allowed)
        feed(transcripts, [allowed[-1]] * NUM_ROWS, index + 1)


def test_the_language_is_the_likeliest_whatever_the_temperature() -> None:
    logits = torch.randn(NUM_ROWS, VOCAB)
    filtered = begun().filtered(logits, range(NUM_ROWS))
    likeliest = [max(LANGUAGES, key=lambda token_id: row[token_id]) for row in logits.tolist()]
    assert len(set(likeliest)) == 2
    broken = begun().filtered(torch.full_like(logits, torch.nan), range(NUM_ROWS))
    assert broken.isnan().any(-1).all(), "what is no number must be seen"
    for row, token_id in enumerate(likeliest):
        assert torch.isfinite(filtered[row]).nonzero().flatten().tolist() == [token_id]


def test_without_times_only_what_is_suppressed_is_missing() -> None:
    transcripts = begun(replace(RULES, heads=(), first_time_id=None))
    logits = torch.randn(NUM_ROWS, VOCAB)
    for index, banned in enumerate(((*RULES.suppressed, 7, END), RULES.suppressed)):
        found = transcripts.filtered(logits, range(NUM_ROWS))
        assert set(found[0].isneginf().nonzero()[:, 0].tolist()) == set(banned)
        feed(transcripts, [10] * NUM_ROWS, index + 1)


def test_rows_without_rules_are_left_alone() -> None:
    transcripts = begun(None)
    logits = torch.randn(NUM_ROWS, VOCAB)
    assert torch.equal(transcripts.filtered(logits, range(NUM_ROWS)), logits)


def test_the_first_token_tells_how_likely_silence_was() -> None:
    transcripts = begun()
    raw = torch.randn(NUM_ROWS, VOCAB)
    filtered = transcripts.filtered(raw, range(NUM_ROWS))
    token_ids = filtered.argmax(-1)
    scores = transcripts.scores(raw, filtered, token_ids, range(NUM_ROWS))
    read = list(scores.read(iter(scores.values.view(-1).tolist())))
    for row, score in enumerate(read):
        assert score is not None
        assert score.top_ids == (NO_SPEECH,)
        expected = raw[row].softmax(-1)[NO_SPEECH].log().item()
        assert math.isclose(score.top_logprobs[0], expected, rel_tol=1e-5)
        own = filtered[row].log_softmax(-1)[token_ids[row]].item()
        assert math.isclose(score.logprob, own, rel_tol=1e-5, abs_tol=1e-6)
    feed(transcripts, token_ids.tolist(), 1)
    later = transcripts.scores(raw, raw, token_ids, range(NUM_ROWS))
    assert later.counts == (0,) * NUM_ROWS
