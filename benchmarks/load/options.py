"""The command line, with the names of `vllm bench serve` where it has them."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load.sounds import OWN_FIELDS, TRANSCRIPTIONS
from benchmarks.load.statistics import METRICS, PER_REQUEST

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# vLLM's names.
BACKENDS = {CHAT: "openai-chat", COMPLETIONS: "openai", TRANSCRIPTIONS: "openai-audio"}
WHOLE_METRICS = ("e2el",)  # what an answer in one piece has
FILE_DATASETS = ("custom", "sharegpt")
NUM_PROMPTS, SPAWN_RATE, DURATION = 100, 1.0, 60.0


def main_parser(description: str) -> argparse.ArgumentParser:
    """Every flag; those that are not given and depend on another one are None."""
    parser = argparse.ArgumentParser(
        usage="python -m benchmarks.load_test [options]",  # the whole list would bury an error
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_server(parser.add_argument_group("server"))
    _add_traffic(parser.add_argument_group("traffic: arrivals"))
    _add_users(parser.add_argument_group("traffic: users, in place of arrivals"))
    _add_prompts(parser.add_argument_group("prompts"))
    _add_datasets(parser.add_argument_group("prompts: the dataset's own"))
    _add_sounds(parser.add_argument_group("sounds, in place of prompts"))
    _add_figures(parser.add_argument_group("figures"))
    _add_files(parser.add_argument_group("files"))
    return parser


# ── values ───────────────────────────────────────────────────────────────────────────────────────


def number(
    kind: Callable[[str], float], low: float, high: float = math.inf
) -> Callable[[str], Any]:
    """A type for argparse: a number of a kind within bounds."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"not a number: {text!r}") from error
        if not low <= value <= high:  # false for NaN too
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} to {high:g}")
        return value

    return parse


COUNT = number(int, 1)
LENGTH = number(int, 0)
POSITIVE = number(float, 1e-9)


def names(text: str) -> list[str]:
    """Metrics, with commas between them."""
    wanted = text.split(",")
    if unknown := set(wanted) - set(METRICS):
        raise argparse.ArgumentTypeError(
            f"no such metric: {', '.join(sorted(unknown))}; there are {', '.join(METRICS)}"
        )
    return wanted


def percentiles(text: str) -> list[float]:
    """Numbers from 0 to 100, with commas between them."""
    return [number(float, 0, 100)(part) for part in text.split(",")]


def goal(text: str) -> tuple[str, float]:
    """A metric of single requests, a colon and milliseconds."""
    metric, _, milliseconds = text.partition(":")
    if metric not in PER_REQUEST:
        known = ", ".join(PER_REQUEST)
        raise argparse.ArgumentTypeError(f"{text!r} is not METRIC:MILLISECONDS with one of {known}")
    return metric, number(float, 0)(milliseconds)


def pair(text: str) -> tuple[str, str]:
    """A key, an equals sign and a value."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def base_url(text: str) -> str:
    """An address without its path: that it ends in /v1 is a habit of other clients."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with http:// or https://")
    return text.rstrip("/").removesuffix("/v1")


def json_object(text: str) -> dict[str, Any]:
    """Fields for a request's body."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return fields


# ── groups of flags ──────────────────────────────────────────────────────────────────────────────

Group = Any  # argparse's own type for a group is private


def _add_server(group: Group) -> None:
    group.add_argument(
        "--base-url", type=base_url, default="http://127.0.0.1:7088", help="default: %(default)s"
    )
    group.add_argument("--endpoint", choices=[CHAT, COMPLETIONS], help="default: chat")
    group.add_argument("--model", help="default: the first of /v1/models")
    group.add_argument("--api-key", help="sent as a bearer token")
    group.add_argument(
        "--timeout",
        type=POSITIVE,
        default=600.0,
        metavar="SECONDS",
        help="of one request (default: 600)",
    )


def _add_traffic(group: Group) -> None:
    group.add_argument("--num-prompts", type=COUNT, help=f"requests to send ({NUM_PROMPTS})")
    group.add_argument("--max-concurrency", type=COUNT, help="requests open at a time (no limit)")
    group.add_argument(
        "--request-rate",
        type=POSITIVE,
        metavar="RATE",
        help="arrivals a second; inf, the default, sends when --max-concurrency allows",
    )
    group.add_argument(
        "--burstiness",
        type=POSITIVE,
        metavar="SHAPE",
        help="of the gamma distribution of gaps: 1, the default, is a Poisson "
        "process, less comes in bursts, more is steadier",
    )


def _add_users(group: Group) -> None:
    group.add_argument("--users", type=COUNT, help="each sends one request after the other")
    group.add_argument(
        "--spawn-rate",
        type=POSITIVE,
        metavar="RATE",
        help=f"users that join a second ({SPAWN_RATE:g})",
    )
    group.add_argument(
        "--duration",
        type=POSITIVE,
        metavar="SECONDS",
        help=f"after that users send nothing new, and end ({DURATION:g})",
    )


# A dataset's own flags, with their types, defaults and meanings.
DATASET_FLAGS: dict[str, dict[str, tuple[Callable[[str], Any], Any, str]]] = {
    "random": {
        "random-input-len": (COUNT, 1024, "tokens of a prompt, template included"),
        "random-output-len": (COUNT, 128, "tokens of an answer at most"),
        "random-prefix-len": (LENGTH, 0, "tokens before those that all prompts share"),
        "random-range-ratio": (number(float, 0, 0.999), 0.0,
                               "lengths vary from (1 - r) to (1 + r) times the given"),
    },
    "prefix_repetition": {
        "prefix-repetition-prefix-len": (COUNT, 256, "tokens of a prefix"),
        "prefix-repetition-suffix-len": (COUNT, 256, "tokens of a prompt's own"),
        "prefix-repetition-num-prefixes": (COUNT, 10, "different prefixes"),
        "prefix-repetition-output-len": (COUNT, 128, "tokens of an answer at most"),
    },
    "custom": {
        "custom-output-len": (COUNT, None, 'instead of a line\'s "output_tokens", or else 256'),
    },
    "sharegpt": {
        "sharegpt-output-len": (COUNT, None, "instead of the length of the file's own answer"),
    },
}  # fmt: skip


def _add_prompts(group: Group) -> None:
    group.add_argument("--dataset-name", choices=list(DATASET_FLAGS), help="default: random")
    group.add_argument(
        "--dataset-path",
        type=Path,
        metavar="FILE",
        help='custom: JSON lines with a "prompt"; sharegpt: its JSON',
    )
    group.add_argument("--seed", type=int, default=0, help="of prompts and arrivals (0)")
    group.add_argument(
        "--num-warmups",
        type=LENGTH,
        default=0,
        metavar="N",
        help="requests before the run that are not counted (0)",
    )
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        help="ask for answers of full length, as vLLM's own does for random",
    )
    group.add_argument("--temperature", type=number(float, 0), help="default: the server's")
    group.add_argument(
        "--extra-body",
        type=json_object,
        default={},
        metavar="JSON",
        help="more fields for every request",
    )


def _add_datasets(group: Group) -> None:
    for flags in DATASET_FLAGS.values():
        for flag, (kind, default, meaning) in flags.items():
            shown = "" if default is None else f" ({default:g})"
            group.add_argument(f"--{flag}", type=kind, metavar="N", help=meaning + shown)


def _add_sounds(group: Group) -> None:
    group.add_argument(
        "--audio",
        type=Path,
        metavar="PATH",
        help=f"a file, or a directory of files, for {TRANSCRIPTIONS}; round and round",
    )
    group.add_argument("--stream", action="store_true", help="transcripts as streams, with a TTFT")


def _add_figures(group: Group) -> None:
    group.add_argument(
        "--percentile-metrics",
        type=names,
        metavar="LIST",
        help=f"default: {','.join(METRICS)}; of sounds without --stream: e2el",
    )
    group.add_argument(
        "--metric-percentiles",
        type=percentiles,
        default=[90.0, 99.0],
        metavar="LIST",
        help="default: 90,99",
    )
    group.add_argument(
        "--goodput",
        type=goal,
        nargs="+",
        action="extend",
        default=[],
        metavar="METRIC:MS",
        help="count the answers that meet all: ttft:200 tpot:50",
    )


def _add_files(group: Group) -> None:
    group.add_argument("--save-result", action="store_true", help="write the figures as JSON")
    group.add_argument(
        "--save-detailed", action="store_true", help="with every request's; implies --save-result"
    )
    group.add_argument("--result-dir", type=Path, help="implies --save-result (.)")
    group.add_argument("--result-filename", help="implies --save-result")
    group.add_argument("--label", help="of the run, in the table, the file and its name")
    group.add_argument(
        "--metadata",
        type=pair,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="kept with the figures",
    )
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="PNG of the latencies and the load"
    )


# ── what fits together ───────────────────────────────────────────────────────────────────────────


def parse(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line with every default; ends with one sentence when it makes no sense."""
    parser = main_parser(description)
    asked = parser.parse_args(argv)
    try:
        _settle_traffic(asked)
        _settle_sounds(asked)
        _settle_dataset(asked)
    except ValueError as error:
        parser.error(str(error))
    asked.goodput = dict(asked.goodput)
    asked.save_result |= bool(asked.save_detailed or asked.result_dir or asked.result_filename)
    return asked


def _settle_traffic(asked: argparse.Namespace) -> None:
    of_arrivals = ("num_prompts", "max_concurrency", "request_rate", "burstiness")
    if asked.users is not None:
        _refuse(asked, of_arrivals, "--users send as fast as they are answered")
        asked.spawn_rate = asked.spawn_rate or SPAWN_RATE
        asked.duration = asked.duration or DURATION
        return
    _refuse(asked, ("spawn_rate", "duration"), "needs --users")
    asked.request_rate = asked.request_rate or math.inf
    if math.isinf(asked.request_rate):
        _refuse(asked, ("burstiness",), "needs a finite --request-rate")
    asked.num_prompts = asked.num_prompts or NUM_PROMPTS
    asked.burstiness = asked.burstiness or 1.0


def _settle_sounds(asked: argparse.Namespace) -> None:
    if asked.audio is None:
        if asked.stream:
            raise ValueError("--stream: needs --audio; texts are always streamed")
        asked.endpoint = asked.endpoint or CHAT
        asked.dataset_name = asked.dataset_name or "random"
        asked.percentile_metrics = asked.percentile_metrics or list(METRICS)
        return
    of_prompts = [flag.replace("-", "_") for flags in DATASET_FLAGS.values() for flag in flags]
    for_texts = ("endpoint", "dataset_name", "dataset_path", *of_prompts)
    _refuse(asked, for_texts, "--audio sends sounds in place of prompts")
    if asked.ignore_eos:
        raise ValueError("--ignore-eos: a transcript ends where its sound does")
    if own := [name for name in OWN_FIELDS if name in asked.extra_body]:
        raise ValueError(f"--extra-body: with --audio, {own[0]} is set by its own flags")
    _settle_metrics_of_sounds(asked)
    asked.endpoint, asked.dataset_name = TRANSCRIPTIONS, str(asked.audio)


def _settle_metrics_of_sounds(asked: argparse.Namespace) -> None:
    known = METRICS if asked.stream else WHOLE_METRICS
    goals = [metric for metric, _ in asked.goodput]
    for flag, wanted in (("percentile-metrics", asked.percentile_metrics), ("goodput", goals)):
        if missing := [metric for metric in wanted or () if metric not in known]:
            raise ValueError(f"--{flag}: {missing[0]} of a sound needs --stream")
    asked.percentile_metrics = asked.percentile_metrics or list(known)


def _settle_dataset(asked: argparse.Namespace) -> None:
    if asked.audio is not None:
        return
    has_file = asked.dataset_name in FILE_DATASETS
    if has_file and asked.dataset_path is None:
        raise ValueError(f"--dataset-name {asked.dataset_name} needs --dataset-path")
    if not has_file:
        _refuse(asked, ("dataset_path",), f"needs --dataset-name {' or '.join(FILE_DATASETS)}")
    for dataset, flags in DATASET_FLAGS.items():
        for flag, (_, default, _) in flags.items():
            name = flag.replace("-", "_")
            if dataset != asked.dataset_name:
                _refuse(asked, (name,), f"needs --dataset-name {dataset}")
            elif getattr(asked, name) is None:
                setattr(asked, name, default)


def _refuse(asked: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    for name in names:
        if getattr(asked, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: {reason}")
