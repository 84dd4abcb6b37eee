"""What the harness found, for people: a table of one model or two, and a chart."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..files import replacing

# Of SQuAD's eight numbers the two that papers quote; the others are in results.json.
LEFT_OUT = {"squadv2": ("HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1", "best_exact", "best_f1")}
PERCENT = ("squadv2",)  # tasks whose scores go to 100
ROW_HEIGHT = 0.32  # inches
COLOURS = ("tab:grey", "tab:blue")


@dataclass(frozen=True)
class Row:
    """One number of one task: (value, standard error) of each model; an error is NaN where the harness gives none.

    difference: of the last model and the first. guessing: what a model reaches that takes any choice. depth: how far
    down in groups of tasks it stands.
    """

    task: str
    metric: str
    items: int
    values: tuple[tuple[float, float], ...]
    difference: tuple[float, float] | None
    guessing: float
    higher_is_better: bool
    depth: int = 0


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows of one model's results, or of two models' on the same tasks, in the harness' form, with samples.

    A group stands before its tasks.
    """
    first, rows = results[0], []
    for task, depth in _ordered(first):
        found = first["results"][task]
        numbers = _numbers(found)
        for metric, chosen in numbers:
            if metric in LEFT_OUT.get(task, ()):
                continue
            name = metric if sum(other == metric for other, _ in numbers) == 1 else f"{metric} ({chosen})"
            values = tuple((float(each["results"][task][f"{metric},{chosen}"]),
                            _error(each["results"][task], metric, chosen)) for each in results)
            rows.append(Row(task, name, _items(first, task), values, _difference(results, task, metric, chosen, values),
                            _guessing(first, task, metric), first["higher_is_better"].get(task, {}).get(metric, True),
                            depth))
    return rows


def _numbers(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(metric, filter) of all numbers of a task."""
    names = [key.partition(",") for key, value in found.items() if isinstance(value, (int, float))]
    return [(metric, chosen) for metric, _, chosen in names if chosen and not metric.endswith("_stderr")]


def _ordered(results: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Tasks and groups, each group before what is in it, with how many groups that have a number stand above each."""
    groups, found = results.get("group_subtasks", {}), results["results"]
    members = {member for names in groups.values() for member in names}
    ordered: dict[str, int] = {}

    def walk(name: str, depth: int) -> None:
        if name in ordered:
            return
        has_number = name in found and bool(_numbers(found[name]))
        if name in found:
            ordered[name] = depth
        for member in groups.get(name, ()):
            walk(member, depth + has_number)

    for name in [*groups, *found]:
        if name not in members:
            walk(name, 0)
    return list(ordered.items())


def _leaves(results: Mapping[str, Any], task: str) -> list[str]:
    """The tasks of a group; a task itself."""
    members = results.get("group_subtasks", {}).get(task)
    return [leaf for member in members for leaf in _leaves(results, member)] if members else [task]


def _items(results: Mapping[str, Any], task: str) -> int:
    """How many questions were asked; of a group, in all its tasks."""
    return sum(results["n-samples"].get(leaf, {"effective": 0})["effective"] for leaf in _leaves(results, task))


def _error(found: Mapping[str, Any], metric: str, chosen: str) -> float:
    error = found.get(f"{metric}_stderr,{chosen}")
    return float(error) if isinstance(error, (int, float)) else math.nan


def _difference(results: Sequence[Mapping[str, Any]], task: str, metric: str, chosen: str,
                values: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Last minus first, and its standard error.

    Both models were asked the same questions, so where a number is a mean over them, the error is that of the mean of
    the differences: smaller than if they were unrelated (Miller, "Adding Error Bars to Evals", 2024, section 4.2).
    """
    if len(results) < 2:
        return None
    (before, before_error), (after, after_error) = values[0], values[-1]
    one, other = (_by_item(each, task, metric, chosen) for each in (results[0], results[-1]))
    shared = [other[item] - one[item] for item in one if item in other]
    n = len(shared)
    if n > 1 and math.isclose(sum(shared) / n, after - before, abs_tol=1e-9):
        mean = sum(shared) / n
        return mean, math.sqrt(sum((value - mean) ** 2 for value in shared) / (n - 1) / n)
    return after - before, math.hypot(before_error, after_error)


def _by_item(results: Mapping[str, Any], task: str, metric: str, chosen: str) -> dict[tuple[str, int], float]:
    return {(leaf, sample["doc_id"]): float(sample[metric]) for leaf in _leaves(results, task)
            for sample in results.get("samples", {}).get(leaf, ())
            if sample["filter"] == chosen and isinstance(sample.get(metric), (int, float))}


def _guessing(results: Mapping[str, Any], task: str, metric: str) -> float:
    """The accuracy of taking any choice; NaN where there is nothing to choose from."""
    config, samples = results["configs"].get(task, {}), results.get("samples", {}).get(task, ())
    if config.get("output_type") != "multiple_choice" or metric not in ("acc", "acc_norm") or not samples:
        return math.nan
    return sum(1 / len(sample["arguments"]) for sample in samples) / len(samples)


def table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The rows as text: values ± standard errors."""
    compared, guessed = len(names) > 1, not all(math.isnan(row.guessing) for row in rows)
    cells = [["task", "metric", "items", *names, *["difference"] * compared, *["guessing"] * guessed]]
    for row in rows:
        cells.append(["  " * row.depth + row.task, row.metric + ("" if row.higher_is_better else " ↓"), str(row.items),
                      *(_with_error(*value) for value in row.values),
                      *[_with_error(*row.difference, sign="+") if row.difference else ""] * compared,
                      *["" if math.isnan(row.guessing) else f"{row.guessing:.3f}"] * guessed])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{cell:{'<' if i < 2 else '>'}{width}}" for i, (cell, width)
                       in enumerate(zip(line, widths, strict=True))).rstrip() for line in cells]
    if not all(row.higher_is_better for row in rows):
        lines.append("↓ less is better")
    return "\n".join(lines)


def _with_error(value: float, error: float, sign: str = "") -> str:
    if math.isnan(value):
        return "not run"
    large = abs(value) >= 1000
    shown = f"{value:{sign}.3g}" if large else f"{value:{sign}.3f}"
    return shown if math.isnan(error) else f"{shown} ± {f'{error:.2g}' if large else f'{error:.3f}'}"


def plot(rows: Sequence[Row], names: Sequence[str], path: str | os.PathLike, title: str = "") -> bool:
    """Bars of all that goes from 0 to 1, with a standard error each way and a mark for guessing; False if nothing does.

    Of a group only the whole is drawn. ImportError without matplotlib.
    """
    from matplotlib.figure import Figure  # here, since it takes longer to import than all the rest of tinyft

    drawn = [row for row in rows if row.depth == 0 and _scale(row) and all(value >= 0 for value, _ in row.values)]
    if not drawn:
        return False
    height = 1.2 + ROW_HEIGHT * len(drawn) * max(1, 0.75 * len(names))
    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    axes, height = figure.subplots(), 0.8 / len(names)
    places = range(len(drawn) - 1, -1, -1)
    for number, name in enumerate(names):
        found = [(row.values[number][0] / _scale(row), row.values[number][1] / _scale(row)) for row in drawn]
        at = [place + 0.4 - height * (number + 0.5) for place in places]
        axes.barh(at, [value for value, _ in found], height * 0.92, label=name, color=COLOURS[number - len(names)],
                  xerr=[0 if math.isnan(error) else error for _, error in found],
                  error_kw={"ecolor": "0.25", "elinewidth": 0.8})
    guessed = [(row.guessing, place) for row, place in zip(drawn, places, strict=True) if not math.isnan(row.guessing)]
    if guessed:
        axes.plot(*zip(*guessed, strict=True), linestyle="none", marker="|", markersize=14, color="tab:red",
                  label="guessing")
    axes.set_yticks(list(places), [f"{row.task} ({row.metric}, {row.items})" for row in drawn], fontsize=8,
                    parse_math=False)
    axes.set(xlim=(0, 1), ylim=(-0.6, len(drawn) - 0.4), xlabel="score, and one standard error each way")
    axes.set_title(title, parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names) + 1)
    with replacing(path) as beside:
        figure.savefig(beside, format="png")
    return True


def _scale(row: Row) -> float:
    """What a number is at most; 0 if that isn't known."""
    if row.task in PERCENT:
        return 100.0
    return 1.0 if row.higher_is_better and all(0 <= value <= 1 for value, _ in row.values) else 0.0
