"""What a run's figures look like: tables for people, JSON under vLLM's names for programs."""

import argparse
import datetime as dt
import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.load.options import BACKENDS

BUSY_PERCENT = 80.0  # of one core; from there on the client's own delay shows in the latencies
TITLES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}
MEANINGS = {
    "ttft": "TTFT: from sending to the first text (content or reasoning).",
    "tpot": "TPOT: (E2EL - TTFT) / (output tokens - 1).",
    "itl": "ITL: between two pieces of text that were read, of one or more tokens.",
    "e2el": "E2EL: from sending to the end of the answer.",
}
Figures = dict[str, Any]


def heading(asked: argparse.Namespace, model: str) -> Figures:
    """What was asked for, as the beginning of the JSON."""
    is_rated = asked.request_rate is not None and not math.isinf(asked.request_rate)
    return {
        "date": dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S"),
        "backend": BACKENDS[asked.endpoint],
        "label": asked.label,
        "model_id": model,
        "base_url": asked.base_url,
        "dataset_name": asked.dataset_name,
        "num_prompts": asked.num_prompts,
        **dict(asked.metadata),
        "request_rate": asked.request_rate if is_rated or asked.users else "inf",
        "burstiness": asked.burstiness,
        "max_concurrency": asked.max_concurrency,
        "users": asked.users,
        "spawn_rate": asked.spawn_rate,
        "seed": asked.seed,
    }


def save(asked: argparse.Namespace, figures: Figures) -> Path:
    """Writes the JSON file and says where it is."""
    directory = asked.result_dir or Path()
    directory.mkdir(parents=True, exist_ok=True)
    path: Path = directory / (asked.result_filename or file_name(figures))
    path.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    return path


def file_name(figures: Figures) -> str:
    """In vLLM's form: label, rate, concurrency, model and date."""
    traffic = f"{figures['users']}users" if figures["users"] else f"{figures['request_rate']}qps"
    if figures["max_concurrency"]:
        traffic += f"-concurrency{figures['max_concurrency']}"
    model = figures["model_id"].rsplit("/", 1)[-1]
    label = figures["label"] or figures["backend"]
    return f"{label}-{traffic}-{model}-{figures['date']}.json"


def print_report(console: Console, asked: argparse.Namespace, figures: Figures) -> None:
    """The tables, what their words mean and what to be wary of."""
    console.print(_totals(asked, figures))
    if figures["completed"]:
        console.print(_latencies(asked, figures))
        for metric in asked.percentile_metrics:
            console.print(MEANINGS[metric], style="dim")
    if figures["problems"]:
        console.print(_problems(figures))
    for warning in warnings(figures):
        console.print(warning, style="yellow")


def warnings(figures: Figures) -> list[str]:
    """What makes some figures mean less than they seem to."""
    found = []
    if figures["estimated"]:
        found.append(
            f"~ The server sent no usage with {figures['estimated']} answers: their tokens are "
            "estimated, one for 4 characters."
        )
    if figures["without_text"]:
        found.append(f"{figures['without_text']} answers had no text, and so no TTFT.")
    if figures.get("without_length"):
        found.append(
            f"The length of {figures['without_length']} sounds is unknown, and not counted."
        )
    if figures["client_cpu_percent"] > BUSY_PERCENT:
        found.append("The client was busy nearly all the time: its own delay is in the latencies.")
    return found


def _totals(asked: argparse.Namespace, figures: Figures) -> Table:
    table = Table(title=title(asked, figures), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in _total_rows(asked, figures):
        table.add_row(name, value)
    return table


def _total_rows(asked: argparse.Namespace, figures: Figures) -> list[tuple[str, str]]:
    rows = [
        ("Completed requests", f"{figures['completed']:,}"),
        ("Refused (429, 503)", f"{figures['refused']:,}"),
        ("Failed", f"{figures['failed']:,}"),
        ("Duration", f"{figures['duration']:.2f} s"),
        ("Requests a second", f"{figures['request_throughput']:.2f}"),
    ]
    if asked.goodput:
        goals = ", ".join(f"{TITLES[name]} ≤ {value:g} ms" for name, value in asked.goodput.items())
        rows.append((f"    with {goals}", f"{figures['request_goodput']:.2f}"))
    if asked.audio:
        rows.append(("Sound", f"{figures['total_audio_seconds']:,.1f} s"))
        rows.append(("Seconds of sound a second", f"{figures['rtfx']:,.2f}"))
    if not asked.audio or asked.stream:
        rows += _token_rows(figures)
    rows.append(("Most requests at a time", f"{figures['max_concurrent_requests']:,}"))
    rows.append(("Client's CPU", f"{figures['client_cpu_percent']:.0f} % of a core"))
    if "max_send_delay_ms" in figures:
        rows.append(("Latest send after its arrival", f"{figures['max_send_delay_ms']:.1f} ms"))
    return rows


def _token_rows(figures: Figures) -> list[tuple[str, str]]:
    mark = "~" if figures["estimated"] else ""
    return [
        ("Input tokens", f"{mark}{figures['total_input_tokens']:,}"),
        ("Output tokens", f"{mark}{figures['total_output_tokens']:,}"),
        ("Output tokens a second", f"{mark}{figures['output_throughput']:,.1f}"),
        ("    in the best second", f"{mark}{figures['max_output_tokens_per_s']:,.1f}"),
        ("All tokens a second", f"{mark}{figures['total_token_throughput']:,.1f}"),
    ]


def title(asked: argparse.Namespace, figures: Figures) -> str:
    """What was measured, on two lines."""
    label = f"{asked.label}: " if asked.label else ""
    return f"{label}{figures['model_id']} at {asked.base_url}\n{_traffic(asked)}"


def _traffic(asked: argparse.Namespace) -> str:
    if asked.users:
        return f"{asked.users} users, {asked.spawn_rate:g} more a second, {asked.duration:g} s"
    limit = f"at most {asked.max_concurrency} at a time" if asked.max_concurrency else "all at once"
    if math.isinf(asked.request_rate):
        return f"{asked.num_prompts} requests, {limit}"
    limit = f", {limit}" if asked.max_concurrency else ""
    return f"{asked.num_prompts} requests, {asked.request_rate:g} a second{limit}"


def _latencies(asked: argparse.Namespace, figures: Figures) -> Table:
    columns = ["mean", "median", "std", *(f"p{p:g}" for p in asked.metric_percentiles)]
    table = Table("milliseconds")
    for column in columns:
        table.add_column(column.replace("p", "P"), justify="right")
    for metric in asked.percentile_metrics:
        is_marked = metric == "tpot" and figures["estimated"]
        name = f"~{TITLES[metric]}" if is_marked else TITLES[metric]
        values = [figures[f"{column}_{metric}_ms"] for column in columns]
        table.add_row(name, *("–" if value is None else f"{value:,.2f}" for value in values))
    return table


def _problems(figures: Figures) -> Table:
    table = Table("problem", "count", "first message", title_style="red")
    for kind, problem in figures["problems"].items():
        table.add_row(kind, str(problem["count"]), problem["first_message"])
    if figures["refused"]:
        table.caption = (
            f"refusals took {figures['median_refusal_ms']:.1f} ms in the median, "
            f"{figures['p99_refusal_ms']:.1f} ms at P99"
        )
    return table
