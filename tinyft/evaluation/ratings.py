"""Ratings from votes: Bradley and Terry's model, with bootstrap intervals, on the scale of Elo.

A model of strength p_i wins against one of strength p_j with probability p_i / (p_i + p_j) (Bradley and Terry 1952); a
tie is half a win for each. The strengths are those under which the votes are likeliest, which the package evalica
finds. Shown is 1000 + 400 log10 p_i, where the strengths' geometric mean is 1: of two models 400 apart the better one
is expected to win ten times as often as it loses, as with Elo's and LMSYS' ratings, and the mean rating is 1000.
Ratings compare the models of one arena; a 1000 of one says nothing about the 1000 of another.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np

from ..files import replacing

WINNERS = ("model_a", "model_b", "tie", "tie (bothbad)")  # LMSYS' words
MEAN, SCALE = 1000.0, 400.0


class NotConnected(ValueError):
    """Groups of models that no vote compares: their ratings have no common scale."""


class Row(NamedTuple):
    """A model's rating with its interval, and in how many votes it stood."""

    model: str
    rating: float
    low: float
    high: float
    n_votes: int


@dataclass(frozen=True)
class Ratings:
    """`rows` are best first. `ties` is the share of votes that are ties of either kind.

    one_sided: who won all votes against the others, as "a, b over c", or "". Then no finite strengths are likeliest,
    every pair that was compared has been given a tie more, and `low` and `high` mean nothing. n_helped: of how many
    resamples that holds.
    """

    rows: tuple[Row, ...]
    n_votes: int
    ties: float
    level: float
    n_resamples: int
    n_helped: int
    one_sided: str = ""


def rate(votes: Sequence[dict], rng: np.random.Generator, *, level: float = 0.95, resamples: int = 1000) -> Ratings:
    """Rate all models of the votes: dicts with model_a, model_b and winner, one of `WINNERS`.

    level: how often an interval is meant to hold the rating; its ends are percentiles of the ratings from `resamples`
    draws of as many votes with replacement (Efron 1979). NotConnected where there are no votes, or where no vote
    links two groups of models; ValueError for a vote that is none.
    """
    if not 0 < level < 1:
        raise ValueError(f"rate: level is {level}, expected a share between 0 and 1")
    if resamples < 1:
        raise ValueError(f"rate: resamples is {resamples}, expected at least 1")
    models, won = _count(votes)
    compared = won.sum(axis=2)
    groups = _groups(compared + compared.T > 0, models)
    if len(groups) > 1:
        raise NotConnected(f"no vote compares {' or '.join(', '.join(group) for group in groups)} with the others; "
                           "ratings need votes that link all models, at least through a third")
    one_sided = _one_sided(won, models)
    best, _ = _strengths(won, compared)
    drawn, n_helped = np.empty((resamples, len(models))), 0
    # Votes of the same kind are alike: how often each kind is drawn is all that matters.
    for i, counts in enumerate(rng.multinomial(len(votes), won.ravel() / won.sum(), size=resamples)):
        drawn[i], helped = _strengths(counts.reshape(won.shape).astype(float), compared)
        n_helped += helped
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    n_votes = (compared + compared.T).sum(axis=1)
    rows = [Row(models[i], float(best[i]), float(low[i]), float(high[i]), int(n_votes[i])) for i in range(len(models))]
    rows.sort(key=lambda row: (-row.rating, row.model))
    ties = float(won[:, :, 2].sum() / len(votes))
    return Ratings(tuple(rows), len(votes), ties, level, resamples, n_helped, one_sided)


def _count(votes: Sequence[dict]) -> tuple[list[str], np.ndarray]:
    """(models in alphabetical order, how often [model_a, model_b, outcome] stands in the votes): (M), (M, M, 3)."""
    if not votes:
        raise NotConnected("there are no votes yet, and so nothing to rate")
    for number, vote in enumerate(votes, 1):
        a, b, winner = vote.get("model_a"), vote.get("model_b"), vote.get("winner")
        if not (isinstance(a, str) and isinstance(b, str) and a and b) or a == b:
            raise ValueError(f"vote {number}: model_a is {a!r} and model_b {b!r}, expected the names of two models")
        if winner not in WINNERS:
            raise ValueError(f"vote {number}: winner is {winner!r}, expected one of {', '.join(WINNERS)}")
    models = sorted({vote[side] for vote in votes for side in ("model_a", "model_b")})
    number = {model: i for i, model in enumerate(models)}
    won = np.zeros((len(models), len(models), 3))
    for vote in votes:
        won[number[vote["model_a"]], number[vote["model_b"]], min(WINNERS.index(vote["winner"]), 2)] += 1
    return models, won


def _strengths(won: np.ndarray, compared: np.ndarray) -> tuple[np.ndarray, bool]:
    """(ratings (M), whether they needed help) of counts (M, M, 3).

    Likeliest strengths are finite only if no group of models won all its votes against the rest (Ford 1957). Where one
    did, or where a resample lacks a link, each pair in `compared` gets a tie more, half a win either way.
    """
    try:  # here, since it brings pandas and SciPy
        from evalica import Winner, bradley_terry
    except ImportError:
        raise ValueError("ratings need evalica, which is not installed: pip install -e '.[arena]'") from None
    helped = not _reached(_beat(won)).all()
    if helped:
        won = won.copy()
        won[:, :, 2] += np.triu(compared + compared.T > 0)
    a, b, outcome = won.nonzero()
    winners = [(Winner.X, Winner.Y, Winner.Draw)[i] for i in outcome]
    # It stops when a round changes no strength by more than `tolerance`, where their geometric mean is 1.
    scores = bradley_terry(a.tolist(), b.tolist(), winners, weights=won[a, b, outcome], tolerance=1e-8, limit=10_000)
    return MEAN + SCALE * np.log10(scores.scores.loc[range(len(won))].to_numpy()), helped


def _beat(won: np.ndarray) -> np.ndarray:
    """(M, M): whether the first has won against the second or tied with it."""
    return (won[:, :, 0] + won[:, :, 1].T + won[:, :, 2] + won[:, :, 2].T) > 0


def _reached(edges: np.ndarray) -> np.ndarray:
    """(M, M): whether a path leads from the first to the second."""
    reached = edges | np.eye(len(edges), dtype=bool)
    for _ in range(len(edges).bit_length()):  # paths of twice the length each time
        reached = reached @ reached
    return reached


def _groups(edges: np.ndarray, models: list[str]) -> list[list[str]]:
    """Models that paths in both directions link stand in one group."""
    reached = _reached(edges)
    both = reached & reached.T
    return [[models[j] for j in both[i].nonzero()[0]] for i in range(len(models)) if not both[i, :i].any()]


def _one_sided(won: np.ndarray, models: list[str]) -> str:
    """A group that lost and tied no vote against the rest, as "a over b, c"; "" if there is none."""
    reached = _reached(_beat(won))
    for group in _groups(_beat(won), models):
        inside = np.isin(models, group)
        if not inside.all() and not reached[~inside][:, inside].any():
            rest = [model for model in models if model not in group]
            return f"{', '.join(group)} over {', '.join(rest)}"
    return ""


def table(ratings: Ratings) -> str:
    """The ratings as text, with what has to be known to read them."""
    width = max(len("model"), *(len(row.model) for row in ratings.rows))
    interval = f"{100 * ratings.level:g} % interval"
    lines = [f"{'model':{width}}  rating  {interval:>16}  votes"]
    for row in ratings.rows:
        ends = "unknown" if ratings.one_sided else f"{row.low:.0f} to {row.high:.0f}"
        lines.append(f"{row.model:{width}}  {row.rating:6.0f}  {ends:>16}  {row.n_votes:5d}")
    votes = "1 vote" if ratings.n_votes == 1 else f"{ratings.n_votes:,} votes"
    lines.append(f"{votes}, {ratings.ties:.0%} of them ties; Bradley-Terry, {SCALE:g} points are ten wins to a loss")
    if ratings.one_sided:
        lines.append(f"All votes went one way: {ratings.one_sided}. How far apart these are cannot be told from wins "
                     "alone; each pair that was compared has been given a tie more, so read the order, not the "
                     "distance.")
    elif ratings.n_helped:
        lines.append(f"{ratings.n_helped:,} of {ratings.n_resamples:,} resamples had only wins or no link somewhere "
                     "and were given a tie for each pair: with more votes the intervals become more reliable.")
    return "\n".join(lines)


def plot_ratings(ratings: Ratings, path: str | os.PathLike, title: str = "") -> bool:
    """A dot with its interval for each model, best on top, as PNG; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = ratings.rows[::-1]
    figure = Figure(figsize=(7.5, 1.3 + 0.36 * len(rows)), dpi=120, layout="tight")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        if not ratings.one_sided:
            axes.plot([row.low, row.high], [y, y], color="0.7", linewidth=2, solid_capstyle="butt")
        axes.plot(row.rating, y, color="tab:blue", marker="o", markersize=6)
        axes.annotate(f"{row.rating:.0f}", (row.rating, y), xytext=(0, 6), textcoords="offset points", ha="center",
                      fontsize=8, color="tab:blue")
    axes.set_yticks(range(len(rows)), [row.model for row in rows], parse_math=False)
    axes.set_ylim(-0.6, len(rows) - 0.2)
    interval = "intervals unknown" if ratings.one_sided else f"{100 * ratings.level:g} % interval"
    axes.set_xlabel(f"rating, {interval} ({ratings.n_votes:,} votes)")
    axes.set_title(title, parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    with replacing(path) as beside:
        figure.savefig(beside, format="png")
    return True


def lmsys_rows(votes: Sequence[dict]) -> list[dict]:
    """Votes with the field names of LMSYS' data set chatbot_arena_conversations.

    A vote has id, time (ISO 8601, UTC where it names no zone, or Unix seconds), prompt, model_a, model_b, reply_a,
    reply_b, winner and perhaps judge. LMSYS' fields on moderation (openai_moderation, toxic_chat_tag) are left out,
    since nothing was moderated; no language is detected.
    """
    return [{
        "question_id": vote["id"], "model_a": vote["model_a"], "model_b": vote["model_b"], "winner": vote["winner"],
        "judge": vote.get("judge", ""),
        "conversation_a": _conversation(vote["prompt"], vote["reply_a"]),
        "conversation_b": _conversation(vote["prompt"], vote["reply_b"]),
        "turn": 1, "anony": True, "language": "unknown", "tstamp": _seconds(vote["time"]),
    } for vote in votes]


def _conversation(prompt: str, reply: str) -> list[dict]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


def _seconds(time: str | float) -> float:
    """Unix seconds of an ISO 8601 time, or of what are seconds already. ValueError for anything else."""
    if not isinstance(time, str):
        return float(time)
    time = time.removesuffix("Z") + "+00:00" * time.endswith("Z")  # Python 3.10 knows no Z
    moment = datetime.fromisoformat(time)
    return (moment if moment.tzinfo else datetime.fromisoformat(f"{time}+00:00")).timestamp()
