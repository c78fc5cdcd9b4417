"""Result of an evaluation: one type and one JSON form for starts, problems and open prompts.

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

results.json, evaluation.json and the pieces of a resumable evaluation have this form, with the same
keys in every mode. `id` is the seed of a start, or the text of a problem or prompt. `group` (task
or problem family) and `output` (text of a language model) may be empty.
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
"""Possible differences of two successes."""

Metric = Literal["success", "score"]


@dataclass(frozen=True)
class EvaluationResult:
    """Values of one policy on `n` items, in the order of the items.

    `values` are 1.0 (success) and 0.0, or scores. `temperature` is None for greedy decoding.
    `groups` are the tasks or problem families of the items, `outputs` the texts of a language
    model; both may be empty. `ids` are empty in results of an earlier version. `measures` are other
    numbers of every item ("return", "control_steps", "tokens"), NaN where an item has none.
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
        """Number of items."""
        return len(self.values)

    @property
    def success(self) -> Bool[np.ndarray, "n"]:
        """True for items with a value above one half."""
        return np.array(self.values) > 0.5

    @property
    def scores(self) -> Float[np.ndarray, "n"]:
        """Values of the items."""
        return np.array(self.values, np.float64)

    @property
    def num_successes(self) -> int:
        return int(self.success.sum())

    @property
    def success_rate(self) -> SuccessRate:
        """Counts and rate, for results of successes only."""
        assert self.metric == "success"
        return SuccessRate(self.num_successes, self.n, self.temperature)

    @property
    def mean(self) -> float:
        """Success rate or mean score."""
        return self.success_rate.rate if self.metric == "success" else float(self.scores.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval: Wilson's for successes, bootstrap over items for scores."""
        if self.metric == "success":
            return self.success_rate.interval
        return bootstrap_interval(self.scores)

    @property
    def decoding(self) -> Literal["greedy", "sampled"]:
        return "greedy" if self.temperature is None else "sampled"

    def measure(self, name: str) -> Float[np.ndarray, "n"]:
        """A measure of all items."""
        return np.array(self.measures[name], np.float64)

    def mean_measure(self, name: str) -> float:
        """Mean over the items that have the measure; NaN where none has it."""
        values = self.measure(name)
        measured = values[~np.isnan(values)]
        return float(measured.mean()) if len(measured) else math.nan

    def by_group(self) -> dict[str, EvaluationResult]:
        """Results by task or problem family, the largest group first."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.groups):
            rows.setdefault(name, []).append(row)
        order = sorted(rows, key=lambda name: (-len(rows[name]), name))
        return {name: self.select(rows[name]) for name in order}

    def select(self, rows: Sequence[int]) -> EvaluationResult:
        """The result on some of the items."""

        def pick[Value](column: tuple[Value, ...]) -> tuple[Value, ...]:
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
        """The result without texts, for results.json."""
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
        """The JSON form of the module's docstring; NaN becomes null."""
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
        """n, mean, interval and text; the mean of no items is None."""
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
        """Read the JSON form, or that of a robot evaluation of an earlier version.

        Raises:
            ValueError: `values` have neither form.
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
        """Validation and serialization by pydantic use the JSON form."""
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
    """Make a result of successes; `columns` are further fields of `EvaluationResult`."""
    values = tuple(float(bool(outcome)) for outcome in outcomes)
    return EvaluationResult("success", tuple(ids), values, temperature, **columns)


@dataclass(frozen=True)
class ResultComparison:
    """Comparison of a second result with a first one on the same items.

    `gained` and `lost` count the items whose value rose or fell. `interval` is the 95 % paired
    bootstrap interval of the mean difference. `p_value` is that of McNemar's exact two-sided test,
    None for scores. `noun` names the items in text.
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
    """Compare `second` with `first` item by item.

    Raises:
        ValueError: the items or metrics differ.
    """
    same_items = first.ids == second.ids or not (first.ids and second.ids)
    if not same_items or first.n != second.n or first.metric != second.metric or not first.n:
        raise ValueError(
            f"results on {first.n} and {second.n} items cannot be paired: evaluate both on the "
            "same "
            f"{noun}"
        )
    decoding: str = second.decoding
    if first.decoding != second.decoding:
        decoding = f"{second.decoding} against {first.decoding}"
    change = second.scores - first.scores
    gained = int((change > 0).sum())
    lost = int((change < 0).sum())
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
    """Merge the results of N processes; process i evaluated items i, i + N, i + 2 N ...

    A measure missing in a process that has items is dropped.
    """
    if len(shares) == 1:
        return shares[0]

    def interleave[Value](columns: Sequence[tuple[Value, ...]]) -> tuple[Value, ...]:
        total = sum(map(len, columns))
        return tuple(columns[i % len(columns)][i // len(columns)] for i in range(total))

    filled = [share for share in shares if share.n] or shares[:1]
    names = [name for name in filled[0].measures if all(name in s.measures for s in filled)]
    return replace(
        filled[0],
        ids=interleave([share.ids for share in shares]),
        values=interleave([share.values for share in shares]),
        groups=interleave([share.groups for share in shares]),
        outputs=interleave([share.outputs for share in shares]),
        measures={
            name: interleave([share.measures.get(name, ()) for share in shares]) for name in names
        },
    )


def stage_result(stages: Mapping[str, Any], when: str, decoding: str) -> EvaluationResult | None:
    """The evaluation `when` ("before", "after") in the stages of results.json; None without it."""
    values = stages.get(f"evaluation_{when}", {}).get(decoding)
    return None if values is None else EvaluationResult.from_dict(values)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _from_earlier_version(values: Mapping[str, Any]) -> EvaluationResult:
    """Read the form without `items`: "rate", "wilson_95" and "outcomes" ("0110", or a list)."""
    outcomes = [outcome in ("1", True) for outcome in values["outcomes"]]
    decoding = str(values.get("decoding", "greedy"))
    temperature = None if decoding == "greedy" else float(decoding.rpartition(" ")[2])
    condition = values.get("condition", NOMINAL)
    return success_result((), outcomes, temperature, condition=condition)
