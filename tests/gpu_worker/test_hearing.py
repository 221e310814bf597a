"""A window's answer is begun anew, in its slot, while it is bad; nobody hears of the bad ones."""

import math
from dataclasses import replace
from random import Random

import pytest

from gpu_worker.hearing import LOOP_TOKENS, MIN_LOOP_TOKENS, WindowSequence
from scheduler.outcome import SampledToken
from scheduler.plan import NO_INPUT, Chunk, EncoderInput, StepPlan, StepResult, TokenScore
from scheduler.scheduler import Scheduler
from scheduler.sequence import State
from shared.sampling import SamplingParams, TranscriptRules

EN, DE, TASK, END, FIRST_TIME = 301, 302, 303, 300, 400
RULES = TranscriptRules(
    heads=((EN, DE), (TASK,)), end_token_id=END, no_speech_id=305, first_time_id=FIRST_TIME
)
SOUND = EncoderInput(8, features=b"x" * 8)
LADDER = (0.0, 0.2, 0.4)
VARIED = tuple(range(33, 93))  # of which each is a letter: nothing repeats
LOOP = tuple(b" no") * 60


def text_of(token_ids: list[int]) -> str:
    return "".join(chr(token_id) for token_id in token_ids if token_id < 256)


def window(
    temperatures: tuple[float, ...] = LADDER,
    num_aligned: int = 0,
    max_tokens: int = 240,
    name: str = "w#0",
    sound: bytes = SOUND.features,
) -> WindowSequence:
    return WindowSequence(
        name,
        (1, 2),
        max_tokens,
        SamplingParams(seed=7, temperature=0.0, top_p=0.9),
        replace(SOUND, features=sound),
        rules=RULES,
        temperatures=temperatures,
        num_aligned=num_aligned,
        text_of=text_of,
    )


class Model:
    """Says each attempt's tokens, each as likely as it is told to be."""

    def __init__(self, *attempts: tuple[tuple[int, ...], float], no_speech: float = 0.1) -> None:
        self.attempts = list(attempts)
        self.no_speech = no_speech
        self.plans: list[StepPlan] = []
        self.num_attempts = 0

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        (chunk,) = plan.chunks
        if chunk.num_aligned:
            size = 4 * (len(chunk.token_ids) - chunk.first_aligned) * chunk.num_aligned
            return StepResult((), alignments=(b"m" * size,))
        if chunk.output_index == 0:
            self.num_attempts += 1
        said, logprob = self.attempts[self.num_attempts - 1]
        answer = (EN, TASK, *said)
        silence = ((305,), (math.log(self.no_speech),)) if chunk.output_index == 0 else ((), ())
        return StepResult((answer[chunk.output_index],), scores=(TokenScore(logprob, *silence),))


def slots(count: int) -> Scheduler:
    return Scheduler(
        num_blocks=count,
        block_size=300,
        max_sequences=count,
        max_tokens_per_step=40,
        prefix_caching=False,
        rows_are_slots=True,
    )


def served(sequence: WindowSequence, model: Model) -> list[SampledToken]:
    """What is told of the window, all of it in one step."""
    scheduler = slots(2)
    scheduler.add(sequence)
    told: list[SampledToken] = []
    while not scheduler.is_idle:
        assert not told, "all is told at once"
        plan = scheduler.schedule()
        told += scheduler.apply(plan, model.execute(plan))
        scheduler.check()
    return told


def answer(*tokens: int) -> tuple[int, ...]:
    return (FIRST_TIME, *tokens, FIRST_TIME + 5, END)


def test_a_good_answer_is_told_at_its_end() -> None:
    sequence, model = window(), Model((answer(*VARIED), -0.5))
    told = served(sequence, model)
    assert [token.token_id for token in told] == [EN, TASK, *answer(*VARIED)]
    assert [token.number for token in told] == list(range(len(told)))
    assert all(t.score is not None and not t.score.top_ids for t in told)
    assert (sequence.state, model.num_attempts) == (State.STOPPED, 1)
    assert sequence.heard is not None
    assert sequence.heard.avg_logprob == pytest.approx(-0.5)
    assert sequence.heard.no_speech_prob == pytest.approx(0.1)
    assert sequence.heard.temperature == 0.0


def test_the_end_counts_and_its_lack_counts_as_well() -> None:
    """Whisper's reference divides by one more than there are tokens without the end."""
    sequence, model = window(temperatures=(0.0,), max_tokens=6), Model((VARIED, -0.5))
    served(sequence, model)
    assert sequence.state is State.LENGTH
    assert sequence.heard is not None
    assert sequence.heard.avg_logprob == pytest.approx(-0.5 * 4 / 5)


@pytest.mark.parametrize("bad", [(answer(*VARIED), -1.5), (answer(*LOOP[:45]), -0.5)])
def test_a_bad_answer_is_begun_anew_hotter_in_its_slot(bad: tuple[tuple[int, ...], float]) -> None:
    sequence, model = window(), Model(bad, (answer(*VARIED), -0.4))
    told = served(sequence, model)
    assert [token.token_id for token in told] == [EN, TASK, *answer(*VARIED)]
    assert sequence.heard is not None
    assert sequence.heard.temperature == 0.2
    first, second = (a for plan in model.plans for a in plan.admissions)
    assert (first.row, first.encoder_input) == (second.row, SOUND)
    assert second.encoder_input == NO_INPUT, "it is encoded once"
    assert second.token_ids == (1, 2)
    assert second.sampling.temperature == 0.2
    assert second.sampling.top_p == 0.9
    assert second.sampling.seed != first.sampling.seed
    assert second.sampling.transcript is not None
    assert second.sampling.transcript.heads == ((EN,), (TASK,)), "the language is found out once"
    starts = [plan.chunks[0].start for plan in model.plans if plan.admissions]
    assert starts == [0, 0]


def test_nothing_is_begun_anew_where_nobody_speaks() -> None:
    sequence, model = window(num_aligned=4), Model((answer(*VARIED), -1.5), no_speech=0.9)
    served(sequence, model)
    assert model.num_attempts == 1
    assert sequence.alignment == b""


@pytest.mark.parametrize(
    ("attempts", "chosen"),
    [
        ([(VARIED[:5], -1.3), (VARIED[:6], -1.1), (VARIED[:7], -1.2)], 1),
        ([(LOOP[:45], -0.1), (VARIED[:6], -1.9), (LOOP[:48], -0.2)], 1),
        ([(LOOP[:45], -0.3), (LOOP[:47], -0.2), (LOOP[:46], -0.4)], 1),
        ([(LOOP[:45], -0.3), (LOOP[:47], -0.2), (VARIED, -0.9)], 2),
    ],
)
def test_where_all_fail_the_best_counts(
    attempts: list[tuple[tuple[int, ...], float]], chosen: int
) -> None:
    sequence = window()
    model = Model(*((answer(*said), logprob) for said, logprob in attempts))
    told = served(sequence, model)
    assert tuple(token.token_id for token in told[2:]) == answer(*attempts[chosen][0])
    assert sequence.heard is not None
    assert sequence.heard.temperature == LADDER[chosen]
    assert model.num_attempts == len(LADDER)


def test_a_loop_is_cut_where_it_is_seen() -> None:
    sequence, model = window(), Model((answer(*LOOP), -0.1), (answer(*VARIED), -0.4))
    served(sequence, model)
    num_before = next(n for n, plan in enumerate(model.plans) if n and plan.admissions)
    assert MIN_LOOP_TOKENS <= num_before <= LOOP_TOKENS
    alone, endless = window(temperatures=(0.0,)), Model((answer(*LOOP), -0.1))
    told = served(alone, endless)
    assert alone.state is State.LENGTH
    assert len(told) == num_before


def test_the_chosen_answer_is_aligned_before_it_is_told() -> None:
    sequence, model = window(num_aligned=4), Model((answer(*VARIED), -1.5), (answer(65), -0.4))
    told = served(sequence, model)
    assert [token.token_id for token in told] == [EN, TASK, *answer(65)]
    *_, last = model.plans
    (chunk,) = last.chunks
    assert chunk.token_ids == (1, 2, EN, TASK, FIRST_TIME, 65, FIRST_TIME + 5)
    assert (chunk.start, chunk.first_aligned, chunk.num_aligned) == (0, 4, 4)
    assert not chunk.samples
    assert sequence.alignment_shape == (3, 4)
    assert len(sequence.alignment) == 4 * 3 * 4
    assert sequence.state is State.STOPPED


def test_a_window_whose_alignment_fails_fails() -> None:
    sequence, model = window(num_aligned=4), Model((answer(65), -0.4))
    scheduler = slots(1)
    scheduler.add(sequence)
    told: list[SampledToken] = []
    while not scheduler.is_idle:
        plan = scheduler.schedule()
        is_aligning = bool(plan.chunks[0].num_aligned)
        result = StepResult.failure(plan.chunks[0]) if is_aligning else model.execute(plan)
        told += scheduler.apply(plan, result)
    assert sequence.state is State.FAILED
    assert [token.token_id for token in told] == [-1]


def test_an_abort_between_two_attempts_frees_the_slot() -> None:
    scheduler = slots(1)
    sequence, model = window(), Model((answer(65), -3.0), (answer(66), -0.4))
    scheduler.add(sequence)
    while not sequence.begins_anew:
        plan = scheduler.schedule()
        scheduler.apply(plan, model.execute(plan))
    assert scheduler.abort("w#0") == [sequence]
    scheduler.check()
    assert scheduler.is_idle
    other = window()
    scheduler.add(other)
    assert scheduler.schedule().admissions[0].encoder_input == SOUND


class Crowd:
    """Says a script of each window, by what the encoder read and how often the row was begun."""

    def __init__(self, scripts: dict[bytes, list[tuple[int, ...]]]) -> None:
        self._scripts = scripts
        self._rows: dict[int, tuple[bytes, int]] = {}  # the window of each row, and its attempt

    def execute(self, plan: StepPlan) -> StepResult:
        for move in plan.moves:
            self._rows[move.admission.row] = self._rows.pop(move.source)
        for admission in plan.admissions:
            sound = admission.encoder_input.features
            known = self._rows.get(admission.row)
            self._rows[admission.row] = (sound, 0) if sound else (known[0], known[1] + 1)  # type: ignore[index]
        sampled = [self._token(chunk) for chunk in plan.chunks if chunk.samples]
        aligning = [chunk for chunk in plan.chunks if chunk.num_aligned]
        sizes = [4 * c.num_aligned * (len(c.token_ids) - c.first_aligned) for c in aligning]
        matrices = tuple(bytes([1]) * size for size in sizes)
        return StepResult(
            tuple(token_id for token_id, _ in sampled),
            scores=tuple(TokenScore(logprob, (), ()) for _, logprob in sampled),
            alignments=matrices,
        )

    def _token(self, chunk: Chunk) -> tuple[int, float]:
        sound, attempt = self._rows[chunk.row]
        said = self._scripts[sound][attempt]
        is_last = attempt == len(self._scripts[sound]) - 1
        return (EN, TASK, *said)[chunk.output_index], -0.5 if is_last else -2.0


def test_a_crowd_that_comes_fails_and_leaves_is_told_as_each_alone() -> None:
    random = Random(11)
    scripts, windows = {}, []
    for number in range(60):
        lengths = [random.randint(1, 30) for _ in range(random.randint(1, len(LADDER)))]
        sound = b"%08d" % number
        scripts[sound] = [answer(*random.sample(VARIED, length)) for length in lengths]
        windows.append(
            window(num_aligned=random.choice((0, 0, 3)), name=f"w#{number}", sound=sound)
        )
    scheduler, crowd, told = slots(7), Crowd(scripts), list[SampledToken]()
    arriving, gone, num_moves = list(windows), set[str](), 0
    while arriving or not scheduler.is_idle:
        for sequence in arriving[:1]:
            scheduler.add(sequence)
        arriving = arriving[1:]
        here = [sequence for sequence in windows if scheduler.holds(sequence.request_id)]
        if here and random.random() < 0.03:
            gone |= {
                victim.request_id for victim in scheduler.abort(random.choice(here).request_id)
            }
        plan = scheduler.schedule()
        num_moves += len(plan.moves)
        told += scheduler.apply(plan, crowd.execute(plan))
        scheduler.check()
    assert num_moves > 0
    assert 2 < len(gone) < 30
    for sequence in windows:
        said = tuple(t.token_id for t in told if t.sequence is sequence)
        (sound,) = [n for n in scripts if n == b"%08d" % int(sequence.request_id[2:])]
        is_gone = sequence.request_id in gone
        assert said == (() if is_gone else (EN, TASK, *scripts[sound][-1]))
        assert is_gone or bool(sequence.alignment) == bool(sequence.num_aligned)
