"""SQuAD 2.0's scores: does a reply match an answer, and does the model know when there is none?

As defined by Rajpurkar et al. 2016 ("SQuAD: 100,000+ Questions for Machine Comprehension of Text", section 6.1) and
2018 ("Know What You Don't Know: Unanswerable Questions for SQuAD"), with the names and the call form of the metric
squad_v2 in Hugging Face's evaluate, so that lm-eval's squadv2 runs without fetching it.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words one space apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are the same once normalised, else 0."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall of words, each counted as often as it stands in both.

    Where one of them is empty, it is 1 if both are.
    """
    predicted, expected = normalize(prediction).split(), normalize(answer).split()
    if not (predicted and expected):
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))


class SquadV2:
    """The metric squad_v2."""

    def compute(self, predictions: Sequence[dict], references: Sequence[dict], *,
                no_answer_threshold: float = 1.0) -> dict[str, float]:
        """Scores in percent, and counts.

        predictions: dicts of id, prediction_text and no_answer_probability; above the threshold, the model is taken to
        say that there is no answer. references: dicts of id and answers, a dict whose text lists all that count as
        right; an empty list is a question without an answer, to which only an empty prediction is right.
        exact and f1 are means over all questions, of the best match each; HasAns_* and NoAns_* over those with and
        without an answer, left out where there are none; best_exact and best_f1 with the threshold at which they are
        highest. ValueError where ids don't match.
        """
        predicted = _by_id(predictions, "predictions")
        answers = {key: row["answers"]["text"] for key, row in _by_id(references, "references").items()}
        if predicted.keys() != answers.keys() or not answers:
            lacking = sorted(predicted.keys() ^ answers.keys(), key=str)
            raise ValueError(f"squad_v2: {len(predicted)} predictions for {len(answers)} references"
                             + (f", id {lacking[0]!r} stands in one of them only" if lacking else ", expected some"))
        texts = {key: row["prediction_text"] for key, row in predicted.items()}
        silence = {key: row["no_answer_probability"] for key, row in predicted.items()}
        scores, best = {}, {}
        for name, match in (("exact", exact_match), ("f1", f1)):
            raw = {key: max(match(texts[key], answer) for answer in _golds(answers[key])) for key in answers}
            held = {key: float(not answers[key]) if silence[key] > no_answer_threshold else raw[key] for key in answers}
            for prefix, chosen in (("", list(answers)), ("HasAns_", [key for key in answers if answers[key]]),
                                   ("NoAns_", [key for key in answers if not answers[key]])):
                if chosen:
                    scores[f"{prefix}{name}"] = 100 * sum(held[key] for key in chosen) / len(chosen)
                    scores[f"{prefix}total"] = len(chosen)
            best[f"best_{name}"], best[f"best_{name}_thresh"] = _best(raw, texts, answers, silence)
        return {**scores, **best}


def _by_id(rows: Sequence[dict], name: str) -> dict[str, dict]:
    found = {row["id"]: row for row in rows}
    if len(found) < len(rows):
        twice = next(key for key, count in Counter(row["id"] for row in rows).items() if count > 1)
        raise ValueError(f"squad_v2: id {twice!r} stands twice in the {name}")
    return found


def _golds(answers: Sequence[str]) -> Sequence[str]:
    """Answers of which something is left once normalised; "" where there is none, since that is then right."""
    return [answer for answer in answers if normalize(answer)] or [""]


def _best(raw: dict, texts: dict, answers: dict, silence: dict) -> tuple[float, float]:
    """(highest mean score in percent, threshold) over all thresholds of the probability that there is no answer.

    At first the model is taken to answer nothing, and is right where there is no answer. Then answers are let in, the
    surest first; equally sure ones singly, in the order given, as SQuAD's own script does.
    """
    now = best = float(sum(not texts_of for texts_of in answers.values()))
    threshold = 0.0
    for key in sorted(silence, key=silence.__getitem__):
        if answers[key]:
            now += raw[key]
        elif texts[key]:
            now -= 1
        if now > best:
            best, threshold = now, silence[key]
    return 100 * best / len(answers), threshold
