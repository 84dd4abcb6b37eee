"""What a judge's verdicts amount to: means and shares with intervals, coverage, and a picture."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing
from .judge import Compared, Verdict
from .reply_files import Answered
from .statistics import bootstrap_interval, wilson_interval
from .verdicts import HIGHEST, LOWEST

NAME_WIDTH = 26
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
FEWEST_FOR_INTERVAL = 5  # resamples of fewer values are much too alike: those of one have no width at all


# ---- scores


def summarise_scores(verdicts: Sequence[Verdict], rng: np.random.Generator) -> dict:
    """Mean, its interval and the coverage. lowest, highest: the mean if all that isn't judged were worth 0, or 100."""
    scores = [verdict.value for verdict in verdicts if verdict.value is not None]
    n, refused, total = len(verdicts), sum(bool(verdict.refused) for verdict in verdicts), math.fsum(scores)
    return {"entries": n, "judged": len(scores), "unparseable": n - len(scores) - refused, "refused": refused,
            "mean": total / len(scores) if scores else None, "interval": _interval(scores, rng),
            "lowest": (total + LOWEST * (n - len(scores))) / n if n else None,
            "highest": (total + HIGHEST * (n - len(scores))) / n if n else None}


def summarise_difference(before: Sequence[Verdict], after: Sequence[Verdict], rng: np.random.Generator) -> dict:
    """How much better the second replies are, by the questions whose replies are both judged."""
    differences = [new.value - old.value for old, new in zip(before, after, strict=True)
                   if None not in (old.value, new.value)]
    return {"entries": len(before), "judged": len(differences),
            "mean": math.fsum(differences) / len(differences) if differences else None,
            "interval": _interval(differences, rng),
            "better": sum(difference > 0 for difference in differences),
            "worse": sum(difference < 0 for difference in differences)}


def _interval(values: Sequence[float], rng: np.random.Generator) -> list[float] | None:
    """The interval of a mean, or None where too few values are known to say anything about it."""
    return list(bootstrap_interval(values, rng)) if len(values) >= FEWEST_FOR_INTERVAL else None


def _shown_interval(interval: Sequence[float] | None, form: str = ".1f") -> str:
    return "[unknown]" if interval is None else f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def by_family(items: Sequence[Answered], verdicts: Sequence[Any], summarise) -> dict[str, dict]:
    """`summarise` of each family's verdicts, in alphabetical order; {} where no entry has one.

    Families named "group/name" are counted by group as well.
    """
    families: dict[str, list] = {}
    for item, verdict in zip(items, verdicts, strict=True):
        for family in {item.family, item.family.rpartition("/")[0] or item.family}:
            families.setdefault(family, []).append(verdict)
    if not any(families):
        return {}
    return {family or "(none)": summarise(families[family]) for family in sorted(families)}


def mean_line(summary: dict) -> str:
    """mean 61.3 [57.0, 65.5] of 96 judged out of 100; 4 unparseable"""
    if summary["mean"] is None:
        said = f"no mean: 0 judged out of {summary['entries']}"
    else:
        said = (f"mean {summary['mean']:.1f} {_shown_interval(summary['interval'])} of {summary['judged']} judged "
                f"out of {summary['entries']}")
    missing = [f"{summary[what]} {what}" for what in ("unparseable", "refused") if summary[what]]
    if missing and summary["mean"] is not None:
        missing.append(f"between {summary['lowest']:.1f} and {summary['highest']:.1f} whatever they are worth")
    return said + ("; " + ", ".join(missing) if missing else "")


def report_scores(items: Sequence[Answered], columns: dict[str, Sequence[Verdict]], seed: int
                  ) -> tuple[dict, list[str]]:
    """What `columns` of verdicts amount to, by column and family, and the same as lines of text.

    With the columns before and after there is their difference as well. Each interval is drawn with a generator of its
    own, so that none depends on what else is counted.
    """

    def summarise(verdicts: Sequence[Verdict]) -> dict:
        return summarise_scores(verdicts, np.random.default_rng(seed))

    summary = {name: {"all": summarise(verdicts), "families": by_family(items, verdicts, summarise)}
               for name, verdicts in columns.items()}
    lines = [*_score_table(summary), "", *(f"{name}: {mean_line(found['all'])}" for name, found in summary.items())]
    if len(columns) == 2:
        old, new = columns
        summary["difference"] = found = summarise_difference(columns[old], columns[new], np.random.default_rng(seed))
        if found["judged"]:
            lines.append(f"{new} - {old}: {found['mean']:+.1f} {_shown_interval(found['interval'], '+.1f')} of "
                         f"{found['judged']} judged in both; {found['better']} better, {found['worse']} worse")
    return summary, lines


def _score_table(summary: dict[str, dict]) -> list[str]:
    columns = {name: found["families"] | {"all": found["all"]} for name, found in summary.items()}
    width = _width(next(iter(columns.values())))
    lines = [f"{'family':{width}}{'entries':>8}" + "".join(f"{name:>10}{'95% interval':>16}{'judged':>8}"
                                                                 for name in columns)]
    for family in next(iter(columns.values())):
        rows = [families[family] for families in columns.values()]
        lines.append(f"{family:{width}}{rows[0]['entries']:>8}" + "".join(map(_score_cells, rows)))
    return lines


def _width(names: Iterable[str]) -> int:
    return max(NAME_WIDTH, *(len(name) + 2 for name in names), 0)


def _score_cells(row: dict) -> str:
    if row["mean"] is None:
        return f"{'-':>10}{'-':>16}{0:>8}"
    return f"{row['mean']:>10.1f}{_shown_interval(row['interval']):>16}{row['judged']:>8}"


# ---- comparisons


def summarise_comparisons(compared: Sequence[Compared]) -> dict:
    """Wins of the first replies, the share that they are with ties as halves, and what the order has done.

    interval: of the share, Wilson's. first_shown of preferences: answers that name the reply shown first, of those that
    name one; changed: questions where the other order gave another outcome, of both_orders that are judged in both.
    """
    outcomes = [pair.outcome for pair in compared if pair.outcome is not None]
    asked = [pair for pair in compared if pair.in_order is not None]
    judged = [pair for pair in asked if pair.outcome is not None]
    refused = sum(bool(pair.in_order.refused or pair.exchanged.refused) for pair in asked if pair.outcome is None)
    said = [verdict.value for pair in judged for verdict in (pair.in_order, pair.exchanged)]
    wins, ties, losses = (outcomes.count(outcome) for outcome in ("win", "tie", "loss"))
    return {"entries": len(compared), "judged": len(outcomes),
            "unparseable": len(compared) - len(outcomes) - refused, "refused": refused,
            "wins": wins, "ties": ties, "losses": losses, "same": len(compared) - len(asked),
            "share": (wins + ties / 2) / len(outcomes) if outcomes else None,
            "interval": list(wilson_interval(wins + ties / 2, len(outcomes))) if outcomes else None,
            "first_shown": said.count("first"), "preferences": len(said) - said.count("tie"),
            "changed": sum(not _consistent(pair) for pair in judged), "both_orders": len(judged)}


def report_comparisons(items: Sequence[Answered], compared: Sequence[Compared], names: tuple[str, str]
                       ) -> tuple[dict, list[str]]:
    """What comparisons amount to, all and by family, and the same as lines of text. names: of the two models."""
    families = by_family(items, compared, summarise_comparisons)
    summary = {"all": summarise_comparisons(compared), "families": families}
    width = _width(families)
    lines = [f"{family:{width}}{row['wins']:>6} wins{row['ties']:>6} ties{row['losses']:>6} losses of "
             f"{row['entries']}" for family, row in families.items()] + [""] * bool(families)
    return summary, lines + comparison_lines(summary["all"], *names)


def _consistent(pair: Compared) -> bool:
    exchanged = {"first": "second", "second": "first", "tie": "tie"}[pair.exchanged.value]
    return pair.in_order.value == exchanged


def comparison_lines(summary: dict, name: str, other: str) -> list[str]:
    """A summary in words."""
    missing = "".join(f"; {summary[what]} {what}" for what in ("unparseable", "refused") if summary[what])
    lines = [f"{name} against {other}: {summary['wins']} wins, {summary['ties']} ties, {summary['losses']} losses; "
             f"{summary['judged']} judged out of {summary['entries']}{missing}"]
    if summary["share"] is not None:
        low, high = summary["interval"]
        lines.append(f"share of wins, ties as halves: {summary['share']:.1%} [{low:.1%}, {high:.1%}]")
    if summary["same"]:
        lines.append(f"{summary['same']} of the ties: both replies are the same, and nobody was asked")
    if summary["both_orders"]:
        lines.append(f"position: the reply shown first was preferred in {summary['first_shown']} of "
                     f"{summary['preferences']} preferences; {summary['changed']} of {summary['both_orders']} outcomes "
                     "changed with the order")
    return lines


# ---- a picture


def check_drawing() -> None:
    """ValueError without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("drawing needs matplotlib: pip install -e '.[judge]'") from None


def plot_scores(path: Path, verdicts: dict[str, Sequence[Verdict]], title: str) -> None:
    """A histogram of each column's scores, in bars of ten."""
    columns = {name: [verdict.value for verdict in some if verdict.value is not None]
               for name, some in verdicts.items()}
    figure, axes = _figure(title)
    edges = np.arange(LOWEST, HIGHEST + 1, 10)
    axes.hist(list(columns.values()), bins=edges, label=[f"{name}, {len(scores)} replies"
                                                         for name, scores in columns.items()])
    axes.set(xlabel="score", ylabel="replies", xticks=edges)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_comparisons(path: Path, families: dict[str, dict], title: str) -> None:
    """Shares of wins, ties and losses by family, as bars."""
    figure, axes = _figure(title, height=1.6 + 0.35 * len(families))
    names, begin = list(families), np.zeros(len(families))
    judged = np.array([max(1, families[name]["judged"]) for name in names])
    for outcome, colour in (("wins", "C0"), ("ties", "0.8"), ("losses", "C1")):
        share = 100 * np.array([families[name][outcome] for name in names]) / judged
        axes.barh(_literal(names), share, left=begin, color=colour, label=outcome)
        begin += share
    axes.set(xlabel="% of those judged", xlim=(0, 100))
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    _save(figure, path)


def _figure(title: str, height: float = 4.2):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, height), dpi=120, layout="tight")
    figure.suptitle(*_literal([title]), fontsize=10)
    return figure, figure.subplots()


def _literal(texts: Iterable[str]) -> list[str]:
    """Texts that matplotlib won't take for formulas."""
    return [text.replace("$", r"\$") for text in texts]


def _save(figure, path: Path) -> None:
    with replacing(path) as beside:
        figure.savefig(beside, format=path.suffix.lower().removeprefix(".") or "png")
