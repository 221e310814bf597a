"""One picture of a run: how latencies are distributed, and the load over time."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.load.outcome import Run
from benchmarks.load.statistics import open_requests, samples, token_rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "ttft": "Time to first token",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}
NUM_BARS = 40
MARKED_PERCENTILES = {50: "#2a9d8f", 90: "#e9a23b", 99: "#d1495b"}


def missing_package() -> str | None:
    """A sentence that names what a plot needs and is not installed."""
    if importlib.util.find_spec("matplotlib"):
        return None
    return "--plot needs matplotlib: pip install matplotlib, or -r requirements-dev.txt"


def save_plot(path: Path, run: Run, title: str) -> None:
    """Writes a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 — only plots need the package

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title)
    axes: list[Any] = list(figure.subplots(2, 2).flat)
    for axis, (metric, name) in zip(axes, PANELS.items(), strict=False):
        _draw_distribution(axis, samples(run.completed, metric), name)
    _draw_load(axes[-1], run)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def _draw_distribution(axis: "Axes", seconds: Sequence[float], name: str) -> None:
    """The share of values up to each, with lines at some percentiles."""
    axis.set(title=name, xlabel="ms", ylabel="share of values", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    if not seconds:
        axis.text(0.5, 0.5, "no values", ha="center", transform=axis.transAxes)
        return
    values = sorted(1e3 * value for value in seconds)
    shares = [(rank + 1) / len(values) for rank in range(len(values))]
    axis.step([values[0], *values], [0, *shares], where="post", color="#264653")
    for percentile, color in MARKED_PERCENTILES.items():
        value = float(np.percentile(values, percentile))
        axis.axvline(value, color=color, linestyle="--", label=f"P{percentile}  {value:,.1f} ms")
    axis.legend(loc="lower right")


def _draw_load(axis: "Axes", run: Run) -> None:
    """Output tokens of each second, and how many requests are open."""
    axis.set(title="Load over time", xlabel="s", ylabel="output tokens/s", xlim=(0, run.duration))
    width = run.duration / NUM_BARS
    lefts = [bar * width for bar in range(NUM_BARS)]
    axis.bar(lefts, token_rates(run, NUM_BARS), width=width, align="edge", color="#8ab6d6")
    axis.grid(alpha=0.3)
    others = axis.twinx()
    moments = [(run.started, 0), *open_requests(run.outcomes)]
    seconds = [at - run.started for at, _ in moments]
    others.step(
        seconds, [count for _, count in moments], where="post", color="#d1495b", lw=1, alpha=0.7
    )
    others.set_ylabel("open requests", color="#d1495b")
    others.set_ylim(bottom=0)
    others.locator_params(axis="y", integer=True)
