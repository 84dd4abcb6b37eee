"""Ratings against a naive fit, known strengths, and votes that cannot be rated."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("evalica", reason="ratings need evalica (pip install '.[arena]')")

from tinyft.evaluation.ratings import WINNERS, NotConnected, lmsys_rows, plot_ratings, rate, table  # noqa: E402

NAMES = "abcdef"


def vote(a: str, b: str, winner: str) -> dict:
    return {"model_a": a, "model_b": b, "winner": winner}


def draw_votes(strengths: dict[str, float], count: int, rng: np.random.Generator, ties: float = 0.0) -> list[dict]:
    names, votes = list(strengths), []
    for _ in range(count):
        a, b = (names[i] for i in rng.choice(len(names), 2, replace=False))
        first = rng.random() < strengths[a] / (strengths[a] + strengths[b])
        tied = rng.random() < ties
        votes.append(vote(a, b, str(rng.choice(WINNERS[2:])) if tied else "model_a" if first else "model_b"))
    return votes


def likeliest(votes: list[dict], rounds: int = 20_000) -> dict[str, float]:
    """Ratings by Hunter's MM algorithm (2004): p_i = wins_i / sum over i's votes of 1 / (p_i + p_j)."""
    names = sorted({entry[side] for entry in votes for side in ("model_a", "model_b")})
    wins = dict.fromkeys(names, 0.0)
    met: dict[tuple[str, str], int] = {}
    for entry in votes:
        a, b, winner = entry["model_a"], entry["model_b"], entry["winner"]
        share = {"model_a": 1.0, "model_b": 0.0}.get(winner, 0.5)
        wins[a] += share
        wins[b] += 1 - share
        met[a, b] = met.get((a, b), 0) + 1
    p = dict.fromkeys(names, 1.0)
    for _ in range(rounds):
        below = dict.fromkeys(names, 0.0)
        for (a, b), count in met.items():
            below[a] += count / (p[a] + p[b])
            below[b] += count / (p[a] + p[b])
        new = {name: wins[name] / below[name] for name in names}
        middle = math.exp(sum(map(math.log, new.values())) / len(new))
        new = {name: value / middle for name, value in new.items()}
        done = all(abs(math.log(new[name] / p[name])) < 1e-13 for name in names)
        p = new
        if done:
            break
    return {name: 1000 + 400 * math.log10(value) for name, value in p.items()}


def ring(names: str) -> list[dict]:
    """A tie of each with the next: no likeliest strength is infinite."""
    return [vote(a, b, "tie") for a, b in zip(names, names[1:] + names[0], strict=True)]


@given(st.lists(st.tuples(st.permutations(NAMES), st.sampled_from(WINNERS)), max_size=40))
def test_a_naive_fit_finds_the_same_ratings(drawn):
    votes = ring(NAMES) + [vote(order[0], order[1], winner) for order, winner in drawn]
    ratings = rate(votes, np.random.default_rng(0), resamples=1)
    expected = likeliest(votes)
    assert {row.model: row.rating for row in ratings.rows} == pytest.approx(expected, abs=1e-3)
    assert list(ratings.rows) == sorted(ratings.rows, key=lambda row: -row.rating)
    assert sum(row.rating for row in ratings.rows) / len(NAMES) == pytest.approx(1000)
    assert not ratings.one_sided


@given(st.lists(st.tuples(st.permutations(NAMES[:3]), st.sampled_from(WINNERS)), max_size=20))
def test_which_side_a_model_stands_on_does_not_matter(drawn):
    votes = ring(NAMES[:3]) + [vote(order[0], order[1], winner) for order, winner in drawn]
    other = {"model_a": "model_b", "model_b": "model_a"}
    turned = [vote(v["model_b"], v["model_a"], other.get(v["winner"], v["winner"])) for v in votes]
    rows, rows_turned = (rate(each, np.random.default_rng(0), resamples=1).rows for each in (votes, turned))
    assert {row.model: row.rating for row in rows} == pytest.approx({row.model: row.rating for row in rows_turned})


def test_known_strengths_lie_in_their_intervals(rng):
    """Of 60 intervals meant to hold the truth in 90 of 100 cases, between 47 and 60 do."""
    held = 0
    for _ in range(10):
        true = dict(zip(NAMES, np.exp(rng.normal(size=6)), strict=True))
        middle = np.mean(np.log10(list(true.values())))
        ratings = rate(draw_votes(true, 400, rng), rng, level=0.9, resamples=150)
        held += sum(row.low <= 1000 + 400 * (math.log10(true[row.model]) - middle) <= row.high for row in ratings.rows)
        assert all(row.low < row.rating < row.high for row in ratings.rows)
    assert 47 <= held <= 60


def test_counts_and_order(rng):
    votes = [vote("x", "y", "model_a")] * 3 + [vote("y", "x", "model_a"), vote("x", "z", "tie"),
                                              vote("z", "y", "tie (bothbad)")]
    ratings = rate(votes, rng, resamples=50)
    assert [(row.model, row.n_votes) for row in ratings.rows] == [("x", 5), ("z", 2), ("y", 5)]
    assert ratings.n_votes == 6 and ratings.ties == pytest.approx(1 / 3)
    assert ratings.n_resamples == 50 and 0 < ratings.n_helped < 50


def test_400_points_are_ten_wins_to_a_loss(rng):
    ratings = rate([vote("x", "y", "model_a")] * 10 + [vote("x", "y", "model_b")], rng, resamples=1)
    assert [row.rating for row in ratings.rows] == pytest.approx([1200, 800])


def test_a_seed_gives_the_same_intervals():
    votes = draw_votes({"a": 1.0, "b": 2.0, "c": 3.0}, 100, np.random.default_rng(1), ties=0.2)
    first, second = (rate(votes, np.random.default_rng(5), resamples=40) for _ in range(2))
    assert first == second


def test_only_wins_are_rated_with_a_tie_more_and_said(rng):
    votes = [vote("best", "x", "model_a")] * 4 + [vote("y", "best", "model_b")] * 2 + ring("xy")[:1]
    ratings = rate(votes, rng, resamples=20)
    assert ratings.one_sided == "best over x, y" and ratings.n_helped == 20
    assert {row.model: row.rating for row in ratings.rows} == pytest.approx(
        likeliest(votes + [vote("best", "x", "tie"), vote("y", "best", "tie"), vote("x", "y", "tie")]), abs=1e-3)
    assert "best over x, y" in table(ratings)
    assert all("unknown" in line and " to " not in line for line in table(ratings).splitlines()[1:4])


def test_a_loser_of_all_votes_is_named_too(rng):
    votes = ring("abc") + [vote("a", "worst", "model_a")]
    assert rate(votes, rng, resamples=1).one_sided == "a, b, c over worst"


def test_resamples_without_a_link_are_counted(rng):
    votes = [vote("a", "b", "tie")] * 50 + [vote("b", "c", "tie")]
    ratings = rate(votes, rng, resamples=300)
    assert 60 < ratings.n_helped < 160  # a draw of 51 lacks one vote in (50 / 51)^51 = 36 % of cases
    assert f"{ratings.n_helped} of 300 resamples" in table(ratings)
    assert not ratings.one_sided


def test_groups_that_no_vote_compares_are_refused(rng):
    with pytest.raises(NotConnected, match="no vote compares a, b or c, d with the others"):
        rate([vote("a", "b", "tie"), vote("c", "d", "model_a")], rng)
    with pytest.raises(NotConnected, match="no votes yet"):
        rate([], rng)


@pytest.mark.parametrize(("bad", "message"), [
    (vote("a", "a", "tie"), "vote 2: model_a is 'a' and model_b 'a', expected the names of two models"),
    (vote("a", "", "tie"), "vote 2: model_a is 'a' and model_b ''"),
    ({"model_a": "a", "winner": "tie"}, "vote 2: model_a is 'a' and model_b None"),
    (vote("a", "b", "A"), "vote 2: winner is 'A', expected one of model_a, model_b, tie"),
])
def test_what_is_no_vote_is_named(bad, message, rng):
    with pytest.raises(ValueError, match=message):
        rate([vote("a", "b", "tie"), bad], rng)


@pytest.mark.parametrize("options", [{"level": 1.0}, {"level": 0.0}, {"resamples": 0}])
def test_options_out_of_range(options, rng):
    with pytest.raises(ValueError, match="rate: "):
        rate([vote("a", "b", "tie")], rng, **options)


def test_table_and_plot(rng, tmp_path):
    ratings = rate(draw_votes({"small $1$": 1.0, "large_model": 3.0}, 1200, rng), rng, resamples=50)
    lines = table(ratings).splitlines()
    assert lines[0].split() == ["model", "rating", "95", "%", "interval", "votes"]
    assert lines[1].startswith("large_model") and lines[1].endswith("1200")
    assert lines[3].startswith("1,200 votes, 0% of them ties") and len(lines) == 4
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert plot_ratings(ratings, tmp_path / "ratings.png", "votes of $5")
    assert (tmp_path / "ratings.png").read_bytes().startswith(b"\x89PNG")


def test_rows_in_the_fields_of_lmsys():
    line = {"id": "v1", "prompt": "Hello?", "reply_a": "Hi", "reply_b": "Ho", "judge": "me", **vote("a", "b", "tie")}
    times = ["2026-01-02T03:04:05Z", "2026-01-02T04:04:05+01:00", "2026-01-02T03:04:05", 1767323045, 1767323045.0]
    rows = lmsys_rows([{**line, "time": time} for time in times])
    assert rows[0] == {
        "question_id": "v1", "model_a": "a", "model_b": "b", "winner": "tie", "judge": "me", "turn": 1, "anony": True,
        "conversation_a": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi"}],
        "conversation_b": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Ho"}],
        "language": "unknown", "tstamp": 1767323045.0}
    assert all(row == rows[0] for row in rows)
