"""The result of one evaluation: robot starts, problems and open prompts in one type and one JSON
shape.

    {"metric": "success" or "score",    what `mean` is the mean of
     "condition": "as trained",         the perturbation, where there was one
     "decoding": "greedy",              or "sampled"
     "temperature": null,               of sampled decoding; null: greedy
     "n": 16,                           items: start states, problems or prompts
     "mean": 0.5,
     "interval_95": [0.28, 0.72],
     "interval": "wilson",              or "bootstrap", of scores
     "text": "50.0 % (8/16, 95 % Wilson interval 28.0 to 72.0, greedy)",
     "measures": {"return": 0.4},       means over the items; null: measured on none of them
     "groups": {"add1": {"n": 16, "mean": ..., "interval_95": ..., "text": ...}},
     "items": {"id": [...], "value": [...], "group": [...], "output": [...],
               "measures": {"return": [...]}}}

results.json, evaluation.json and the pieces that a run keeps hold this shape, with the same keys in
every mode. `id` is the seed of a start, or the words of a problem or prompt. `group` (the task or
the family of problems) and `output` (what a language model wrote) may be empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from vla.statistics import SuccessRate, bootstrap_interval, describe_decoding, mcnemar_exact

NOMINAL = "as trained"
"""The condition in which nothing is perturbed."""
SIGNS = (-1, 0, 1)
"""The differences that two successes can have."""

Metric = Literal["success", "score"]


@dataclass(frozen=True)
class EvaluationResult:
    """The values of one policy on `n` items, in the order of the items.

    `values` are 1.0 (success) and 0.0, or scores. `temperature` None is greedy decoding. `groups`
    names the task or family of every item, `outputs` holds what a language model wrote; both may be
    empty. So may `ids`, in results of an earlier version. `measures` are other numbers of every
    item ("return", "control_steps", "tokens"), NaN where an item has none.
    """

    metric: Metric
    ids: tuple[int | str, ...]
    values: tuple[float, ...]
    temperature: float | None
    condition: str = NOMINAL
    groups: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    measures: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = {"ids": self.ids, "groups": self.groups, "outputs": self.outputs, **self.measures}
        optional = ("ids", "groups", "outputs")
        for name, column in columns.items():
            assert len(column) == self.n or (name in optional and not column), name

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def success(self) -> Bool[np.ndarray, "n"]:
        return np.array(self.values) > 0.5

    @property
    def scores(self) -> Float[np.ndarray, "n"]:
        return np.array(self.values, np.float64)

    @property
    def num_successes(self) -> int:
        return int(self.success.sum())

    @property
    def success_rate(self) -> SuccessRate:
        """The counts of a result of successes."""
        assert self.metric == "success"
        return SuccessRate(self.num_successes, self.n, self.temperature)

    @property
    def mean(self) -> float:
        return self.success_rate.rate if self.metric == "success" else float(self.scores.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: Wilson's of successes, the bootstrap's over items of scores."""
        if self.metric == "success":
            return self.success_rate.interval
        return bootstrap_interval(self.scores)

    @property
    def decoding(self) -> Literal["greedy", "sampled"]:
        return "greedy" if self.temperature is None else "sampled"

    def measure(self, name: str) -> Float[np.ndarray, "n"]:
        return np.array(self.measures[name], np.float64)

    def mean_measure(self, name: str) -> float:
        """The mean over the items that have the measure; NaN where none has."""
        values = self.measure(name)
        there = values[~np.isnan(values)]
        return float(there.mean()) if len(there) else math.nan

    def by_group(self) -> dict[str, EvaluationResult]:
        """The result of every task or family, the largest first."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.groups):
            rows.setdefault(name, []).append(row)
        order = sorted(rows, key=lambda name: (-len(rows[name]), name))
        return {name: self.select(rows[name]) for name in order}

    def select(self, rows: Sequence[int]) -> EvaluationResult:
        """The result on some of the items."""

        def pick(column: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(column[row] for row in rows) if column else ()

        return replace(
            self,
            ids=pick(self.ids),
            values=pick(self.values),
            groups=pick(self.groups),
            outputs=pick(self.outputs),
            measures={name: pick(column) for name, column in self.measures.items()},
        )

    def without_outputs(self) -> EvaluationResult:
        """The numbers alone, for a file that people read."""
        return replace(self, outputs=())

    def __str__(self) -> str:
        if self.metric == "success":
            return str(self.success_rate)
        low, high = self.interval
        decoding = describe_decoding(self.temperature)
        return (
            f"{self.mean:.3f} (95 % bootstrap interval {low:.3f} to {high:.3f}, n = {self.n}, "
            f"{decoding})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of the module's docstring; NaN is null."""
        number = int if self.metric == "success" else _finite
        return {
            "metric": self.metric,
            "condition": self.condition,
            "decoding": self.decoding,
            "temperature": self.temperature,
            **self.summary(),
            "interval": "wilson" if self.metric == "success" else "bootstrap",
            "measures": {name: _finite(self.mean_measure(name)) for name in self.measures},
            "groups": {name: each.summary() for name, each in self.by_group().items()},
            "items": {
                "id": list(self.ids),
                "value": [number(value) for value in self.values],
                "group": list(self.groups),
                "output": list(self.outputs),
                "measures": {
                    name: [_finite(value) for value in column]
                    for name, column in self.measures.items()
                },
            },
        }

    def summary(self) -> dict[str, Any]:
        """n, mean, interval and text; without an item there is no mean."""
        if not self.n:
            return {"n": 0, "mean": None, "interval_95": None, "text": "no items"}
        return {
            "n": self.n,
            "mean": self.mean,
            "interval_95": list(self.interval),
            "text": str(self),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationResult:
        """A result from its JSON shape, or from that of an earlier version's robot evaluation.

        Raises ValueError where it is neither.
        """
        if "outcomes" in values:
            return _from_earlier_version(values)
        missing = {"metric", "condition", "temperature", "items"} - set(values)
        if missing:
            raise ValueError(
                f"an evaluation result without {', '.join(sorted(missing))} is of another version: "
                "evaluate again"
            )
        items = values["items"]
        return cls(
            values["metric"],
            tuple(items["id"]),
            tuple(map(_number, items["value"])),
            values["temperature"],
            values["condition"],
            tuple(items["group"]),
            tuple(items["output"]),
            {name: tuple(map(_number, column)) for name, column in items["measures"].items()},
        )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Pydantic reads and writes the JSON shape."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.from_dict(value),
            serialization=core_schema.plain_serializer_function_ser_schema(cls.to_dict),
        )


def success_result(
    ids: Sequence[int | str],
    outcomes: Sequence[bool | int] | Bool[np.ndarray, "n"],
    temperature: float | None,
    **columns: Any,
) -> EvaluationResult:
    """A result of successes; `columns` are fields of `EvaluationResult`."""
    values = tuple(float(bool(outcome)) for outcome in outcomes)
    return EvaluationResult("success", tuple(ids), values, temperature, **columns)


@dataclass(frozen=True)
class ResultComparison:
    """A second result against a first one on the same items.

    `gained` and `lost` count the items whose value rose and fell. `interval` is the 95 % paired
    bootstrap interval of the mean difference. `p_value` is McNemar's exact two-sided test of
    successes; None for scores. `noun` names the items in text.
    """

    metric: Metric
    condition: str
    decoding: str
    difference: float
    interval: tuple[float, float]
    gained: int
    lost: int
    n: int
    p_value: float | None
    noun: str = "starts"

    def __str__(self) -> str:
        changed = f"{self.gained} {self.noun} gained, {self.lost} lost of {self.n}"
        if self.p_value is None:
            low, high = (f"{bound:+.3f}" for bound in self.interval)
            return f"{self.difference:+.3f} (95 % bootstrap interval {low} to {high}; {changed})"
        low, high = (f"{100 * bound:+.1f}" for bound in self.interval)
        p_value = f"p = {self.p_value:.2g}" if self.p_value >= 1e-300 else "p < 1e-300"
        return (
            f"{100 * self.difference:+.1f} points (95 % interval {low} to {high}; {changed}; "
            f"McNemar exact {p_value})"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "condition": self.condition,
            "decoding": self.decoding,
            "difference": self.difference,
            "interval_95": list(self.interval),
            "gained": self.gained,
            "lost": self.lost,
            "n": self.n,
            "mcnemar_exact_p": self.p_value,
            "text": str(self),
        }


def compare_results(
    first: EvaluationResult, second: EvaluationResult, noun: str = "starts"
) -> ResultComparison:
    """`second` against `first`, item by item. Raises ValueError where their items differ."""
    alike = first.ids == second.ids or not (first.ids and second.ids)
    if not alike or first.n != second.n or first.metric != second.metric or not first.n:
        raise ValueError(
            f"results on {first.n} and {second.n} items cannot be paired: evaluate both on the same "
            f"{noun}"
        )
    decoding = second.decoding
    if first.decoding != second.decoding:
        decoding = f"{second.decoding} against {first.decoding}"
    change = second.scores - first.scores
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    successes = first.metric == "success"
    return ResultComparison(
        first.metric,
        second.condition,
        decoding,
        (gained - lost) / first.n if successes else float(change.mean()),
        bootstrap_interval(change, levels=SIGNS if successes else None),
        gained,
        lost,
        first.n,
        mcnemar_exact(lost, gained) if successes else None,
        noun,
    )


def merge_shares(shares: Sequence[EvaluationResult]) -> EvaluationResult:
    """The result on all items, of which process i evaluated items i, i + N, i + 2 N ...

    A measure that a process with items lacks is left out.
    """
    if len(shares) == 1:
        return shares[0]

    def whole(columns: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        total = sum(map(len, columns))
        return tuple(columns[i % len(columns)][i // len(columns)] for i in range(total))

    filled = [share for share in shares if share.n] or shares[:1]
    names = [name for name in filled[0].measures if all(name in s.measures for s in filled)]
    return replace(
        filled[0],
        ids=whole([share.ids for share in shares]),
        values=whole([share.values for share in shares]),
        groups=whole([share.groups for share in shares]),
        outputs=whole([share.outputs for share in shares]),
        measures={
            name: whole([share.measures.get(name, ()) for share in shares]) for name in names
        },
    )


def stage_result(stages: Mapping[str, Any], when: str, decoding: str) -> EvaluationResult | None:
    """The result of the evaluation `when` ("before", "after") among the stages of results.json;
    None where there is none."""
    values = stages.get(f"evaluation_{when}", {}).get(decoding)
    return None if values is None else EvaluationResult.from_dict(values)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _from_earlier_version(values: Mapping[str, Any]) -> EvaluationResult:
    """The shape before `items`: "rate", "wilson_95" and "outcomes" ("0110", or a list)."""
    outcomes = [outcome in ("1", True) for outcome in values["outcomes"]]
    told = str(values.get("decoding", "greedy"))
    temperature = None if told == "greedy" else float(told.rpartition(" ")[2])
    condition = values.get("condition", NOMINAL)
    return success_result((), outcomes, temperature, condition=condition)
