"""The load test from its command line to its exit status."""

import argparse
import gc
import json
import math
import resource
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import uvloop
from rich.console import Console

from benchmarks.load import plots, report
from benchmarks.load.arrivals import arrival_times, join_times
from benchmarks.load.calibration import measure_word_length
from benchmarks.load.client import Client, Item, Target, Unreachable, first_model, open_session
from benchmarks.load.options import FILE_DATASETS, parse
from benchmarks.load.outcome import Outcome, Run
from benchmarks.load.progress import Progress
from benchmarks.load.prompts import (
    DatasetError,
    Prompt,
    WordLength,
    custom_prompts,
    random_prompts,
    repeated_prefixes,
    sharegpt_prompts,
)
from benchmarks.load.sounds import SoundTarget, read_sounds
from benchmarks.load.statistics import details, figures, sound_figures
from benchmarks.load.traffic import Ask, Traffic

FAILED, NOT_BEGUN, INTERRUPTED = 1, 2, 130
MAX_OPEN_FILES = 65_536


class LoadTest:
    """One run as the command line asks for it."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.model: str = asked.model or ""
        self.traffic: Traffic[Any] | None = None  # until the load begins
        self._asked = asked

    async def run(self) -> None:
        """Finds the model, warms the server up and sends the load."""
        asked = self._asked
        async with open_session(asked.api_key, asked.timeout) as session:
            self.model = self.model or await first_model(session, asked.base_url)
            fields = body_fields(asked)
            if asked.audio:
                sounds = SoundTarget(asked.base_url, self.model, asked.stream, fields)
                await self._send(Client(session, sounds).ask, read_sounds(asked.audio))
                return
            target = Target(asked.base_url, asked.endpoint, self.model, fields)
            ask = Client(session, target).ask
            await self._send(ask, await self._prompts(ask))

    async def _send(self, ask: Callable[[Item], Awaitable[Outcome]], items: Iterator[Item]) -> None:
        await self._warm_up(ask, items)
        await self._load(ask, items)

    async def _prompts(self, ask: Ask) -> Iterator[Prompt]:
        if self._asked.dataset_name in FILE_DATASETS:
            return file_prompts(self._asked)
        return word_prompts(self._asked, await measure_word_length(ask))

    async def _warm_up(
        self, ask: Callable[[Item], Awaitable[Outcome]], items: Iterator[Item]
    ) -> None:
        chosen = islice(items, self._asked.num_warmups)
        at_once = arrival_times(math.inf, 1.0, 0)
        concurrency = self._asked.max_concurrency or self._asked.users
        await Traffic(ask).send_arrivals(chosen, at_once, concurrency)

    async def _load(self, ask: Callable[[Item], Awaitable[Outcome]], items: Iterator[Item]) -> None:
        asked = self._asked
        # Items are made before the clock starts, but for users, who take as many as they can.
        chosen = list(islice(items, asked.num_prompts)) if asked.num_prompts else []
        with frozen_heap(), Progress(asked.num_prompts) as progress:
            traffic = Traffic(ask, on_change=progress.show)
            self.traffic = traffic
            if asked.users:
                joins = join_times(asked.users, asked.spawn_rate)
                await traffic.send_users(items, joins, asked.duration)
            else:
                times = arrival_times(asked.request_rate, asked.burstiness, asked.seed)
                await traffic.send_arrivals(chosen, times, asked.max_concurrency)


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Spares garbage collections, which delay every stream, from walking what exists by now."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def body_fields(asked: argparse.Namespace) -> dict[str, Any]:
    """What every request's body has beside the prompt; --extra-body has the last word."""
    fields: dict[str, Any] = {}
    if asked.ignore_eos:
        fields["ignore_eos"] = True
    if asked.temperature is not None:
        fields["temperature"] = asked.temperature
    return {**fields, **asked.extra_body}


def word_prompts(asked: argparse.Namespace, length: WordLength) -> Iterator[Prompt]:
    """Of the datasets that are made here."""
    if asked.dataset_name == "random":
        return random_prompts(
            asked.seed,
            length,
            input_len=asked.random_input_len,
            output_len=asked.random_output_len,
            prefix_len=asked.random_prefix_len,
            range_ratio=asked.random_range_ratio,
        )
    return repeated_prefixes(
        asked.seed,
        length,
        prefix_len=asked.prefix_repetition_prefix_len,
        suffix_len=asked.prefix_repetition_suffix_len,
        num_prefixes=asked.prefix_repetition_num_prefixes,
        output_len=asked.prefix_repetition_output_len,
    )


def file_prompts(asked: argparse.Namespace) -> Iterator[Prompt]:
    """Of the datasets that are files."""
    if asked.dataset_name == "custom":
        return custom_prompts(asked.dataset_path, asked.custom_output_len)
    return sharegpt_prompts(asked.seed, asked.dataset_path, asked.sharegpt_output_len)


def publish(asked: argparse.Namespace, model: str, run: Run) -> None:
    """Prints the tables and the line of JSON, and writes the files that were asked for."""
    found = report.heading(asked, model) | figures(
        run, asked.percentile_metrics, asked.metric_percentiles, asked.goodput
    )
    if asked.request_rate and not math.isinf(asked.request_rate):
        found["max_send_delay_ms"] = 1e3 * run.max_send_delay
    if asked.audio:
        found |= sound_figures(run)
    report.print_report(Console(), asked, found)
    if asked.save_result:
        path = report.save(asked, found | (details(run) if asked.save_detailed else {}))
        print(f"figures: {path}")
    if asked.plot:
        plots.save_plot(asked.plot, run, report.title(asked, found))
        print(f"plot: {asked.plot}")
    print(json.dumps(found))


def allow_open_files() -> None:
    """As many connections as the system lets this process have; the usual 1,024 are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Runs the load; an interrupted one reports what was answered until then."""
    asked = parse(description, argv)
    if asked.plot and (sentence := plots.missing_package()):
        return not_begun(sentence)
    allow_open_files()
    test = LoadTest(asked)
    is_interrupted = False
    try:
        uvloop.run(test.run())
    except KeyboardInterrupt:
        is_interrupted = True
    except (Unreachable, DatasetError) as error:
        return not_begun(str(error))
    run = test.traffic.run if test.traffic else None
    if run is None or not run.outcomes:
        return not_begun("no request was answered")
    publish(asked, test.model, run)
    if is_interrupted:
        print("interrupted: requests that were open are not in the figures", file=sys.stderr)
        return INTERRUPTED
    return FAILED if run.failed or not run.completed else 0


def not_begun(sentence: str) -> int:
    """Says why there is no load."""
    print(sentence, file=sys.stderr)
    return NOT_BEGUN
