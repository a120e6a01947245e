"""Medians and quartiles, and the one shape in which a figure is stored and printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Figure:
    """One line of `latest.json`. `ratio` is reference / value: above 1 means that emp-pipe is cheaper (or faster, or smaller).

    `bar` is the least ratio wanted, `aim` the most that `value` may be; None: reported only. Quartiles are [first, third]."""

    name: str
    value: float | None
    unit: str
    reference: float | None = None
    ratio: float | None = None
    pairs: int = 0
    value_quartiles: Sequence[float] = ()
    reference_quartiles: Sequence[float] = ()
    ratio_quartiles: Sequence[float] = ()
    bar: float | None = None
    aim: float | None = None
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the bar or the aim is reached; None where there is none, or nothing was measured."""
        if self.bar is not None and self.ratio is not None:
            return self.ratio >= self.bar
        if self.aim is not None and self.value is not None:
            return self.value <= self.aim
        return None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def of_pairs(name: str, unit: str, values: Sequence[float], references: Sequence[float], *, bar: float | None = None) -> Figure:
    """Return the figure of runs that were measured pairwise: the ratio is the median of the pairs' ratios."""
    figure = Figure(name, statistics.median(values), unit, pairs=len(values), value_quartiles=quartiles(values), bar=bar)
    if references:
        ratios = [reference / value for value, reference in zip(values, references, strict=True)]
        figure.reference = statistics.median(references)
        figure.reference_quartiles = quartiles(references)
        figure.ratio = statistics.median(ratios)
        figure.ratio_quartiles = quartiles(ratios)
    return figure


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the first and the third quartile; with one value, that value twice."""
    if len(values) < 2:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]
