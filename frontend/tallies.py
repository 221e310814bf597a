"""What is counted, in the columns of the sheet: each frontend adds to its own row, all are shown.

In place of the library's own counters, which one process alone sees and which take locks; they are
read when the page is made, by the collector interface of prometheus_client.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from frontend.sheet import Sheet

_OTHER = "other"


@dataclass(frozen=True)
class Title:
    """A metric's name and text, and the labels that all its series have, with their values."""

    name: str
    text: str
    labels: Sequence[str]
    values: Sequence[str]


class Tally:
    """A number that grows."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self._column = sheet.claim_counted(1)

    def inc(self, amount: float = 1) -> None:
        """Adds to this frontend's part."""
        self._sheet.own[self._column] += amount

    @property
    def total(self) -> float:
        """Of all frontends."""
        return self._sheet.total(self._column)


class TallyFamily(Collector):
    """One tally, under a metric's name."""

    def __init__(self, title: Title, sheet: Sheet) -> None:
        self.tally = Tally(sheet)
        self._title = title

    def collect(self) -> Iterator[Metric]:
        """The one series."""
        title = self._title
        family = CounterMetricFamily(title.name, title.text, labels=title.labels)
        family.add_metric(title.values, self.tally.total)
        yield family


class LabelledTallies(Collector):
    """A tally for each of some values of one more label, and one for all others.

    One that is zero is not shown.
    """

    def __init__(self, title: Title, label: str, values: Iterable[str], sheet: Sheet) -> None:
        self._title = title
        self._label = label
        self._tallies = {value: Tally(sheet) for value in (*values, _OTHER)}

    def __call__(self, value: str) -> Tally:
        """The tally of this value."""
        return self._tallies[value if value in self._tallies else _OTHER]

    def collect(self) -> Iterator[Metric]:
        """The series that have counted something."""
        title = self._title
        labels = [*title.labels, self._label]
        family = CounterMetricFamily(title.name, title.text, labels=labels)
        for value, tally in self._tallies.items():
            if total := tally.total:
                family.add_metric([*title.values, value], total)
        yield family


class Distribution(Collector):
    """How often values were within each of some upper edges, and their sum."""

    def __init__(self, title: Title, edges: Iterable[float], sheet: Sheet) -> None:
        self._title = title
        self._edges = tuple(edges)
        self._sheet = sheet
        self._num_columns = len(self._edges) + 2  # of counts, the last above all edges; the sum
        self._first = sheet.claim_counted(self._num_columns)

    def observe(self, value: float) -> None:
        """Takes one value."""
        row = self._sheet.own
        row[self._first + bisect_left(self._edges, value)] += 1
        row[self._first + len(self._edges) + 1] += value

    def add(self, counts: Sequence[int], total: float) -> None:
        """Takes many values, counted by their edges already."""
        row = self._sheet.own
        for column, count in enumerate(counts, start=self._first):
            row[column] += count
        row[self._first + len(counts)] += total

    def collect(self) -> Iterator[Metric]:
        """The whole histogram."""
        title, first = self._title, self._first
        *counts, total = map(self._sheet.total, range(first, first + self._num_columns))
        names = [*map(floatToGoString, self._edges), "+Inf"]
        buckets = [*zip(names, accumulate(counts), strict=True)]
        family = HistogramMetricFamily(title.name, title.text, labels=title.labels)
        family.add_metric(title.values, buckets, total)
        yield family


class TokenTallies:
    """What is counted for every token of every stream: kept here until `write`, as that is faster.

    Tokens so far, and the times between them in seconds.
    """

    def __init__(self, tokens: Tally, gaps: Distribution, edges: Iterable[float]) -> None:
        self.num_tokens = 0  # not yet written
        self._tokens = tokens
        self._gaps = gaps
        self._edges = tuple(edges)
        self._forget()

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Takes further tokens of an answer that came together, and the time since the last."""
        gap = seconds / num_tokens
        self.num_tokens += num_tokens
        self._counts[bisect_left(self._edges, gap)] += 1
        self._seconds += gap

    def write(self) -> None:
        """Makes known to all frontends what has been counted."""
        if self.num_tokens:
            self._tokens.inc(self.num_tokens)
            self._gaps.add(self._counts, self._seconds)
            self._forget()

    def _forget(self) -> None:
        self.num_tokens = 0
        self._counts = [0] * (len(self._edges) + 1)  # the last: above all edges
        self._seconds = 0.0
