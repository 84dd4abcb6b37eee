"""Short texts with questions about them: SQuAD, BoolQ, MultiRC, ReCoRD, LAMBADA, and pages as WikiText has them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tiny_world import sentences
from tiny_world.dice import Dice
from tiny_world.grammar import capitalise, join_and
from tiny_world.portraits import portrait
from tiny_world.reserve import is_reserved
from tiny_world.tables import names, place_phrases, words

from .shape import Files, Row, numbered, spread


@dataclass(frozen=True)
class Scene:
    """Three people; each has a thing and is in a place."""

    people: list[str]
    things: list[str]
    places: list[str]
    text: str

    @property
    def title(self) -> str:
        return join_and(self.people)

    def questions(self, person: int) -> list[tuple[str, str]]:
        """What can be asked about one of them, and the answers as they stand in the text."""
        name, thing, place = self.people[person], self.things[person], self.places[person]
        return [(f"What does {name} have?", f"the {thing}"), (f"Where is {name}?", place),
                (f"Who has the {thing}?", name)]  # fmt: skip


def scene(dice: Dice, reserved: bool) -> Scene:
    """A scene whose text is reserved for tests, or is not."""
    while True:
        people, things, places = (dice.several(some, 3) for some in (names(), words("treasure"), place_phrases()))
        told = [f"{person} is {place}. {person} has the {thing}."
                for person, thing, place in zip(people, things, places, strict=True)]  # fmt: skip
        made = Scene(people, things, places, " ".join(told))
        if is_reserved(made.text) == reserved and all(made.text.count(name) == 2 for name in people):
            return made


def squad(dice: Dice) -> Files:
    """SQuAD 2.0, in which every third question cannot be answered, and SQuAD as texts to go on with."""
    made = {
        f"lighteval/squad_v2/{split}": [_squad_row(dice, split, number) for number in range(count)]
        for split, count in (("validation", 12), ("train", 6))
    }  # fmt: skip
    made["hazyresearch/based-squad/default/validation"] = [
        _completion(scene(dice, True), number) for number in range(9)
    ]
    return made


def _squad_row(dice: Dice, split: str, number: int) -> Row:
    """A text as tuning has them, and a question in one of three forms, or one that the text doesn't answer."""
    form = ("What ", "Where ", "Who ")[number // 3 % 3]
    text, question, answer = sentences.passage(dice, split == "validation")
    while not question.startswith(form):
        text, question, answer = sentences.passage(dice, split == "validation")
    people = [word for word in re.findall(r"\w+", text) if word in names()]
    answers: dict[str, list] = {"text": [], "answer_start": []}
    if number % 3 == 2:  # nobody in the text has the thing, or the person is not in it
        thing = dice.pick([thing for thing in words("treasure") if thing not in text])
        person = dice.pick([person for person in names() if person not in people])
        question = f"Who has the {thing}?" if number % 2 else f"Where is {person}?"
    else:
        found = re.search(rf"\b{answer}\b", text, re.IGNORECASE)
        answers = {"text": [found[0]], "answer_start": [found.start()]}
    return {"id": f"tiny_{split}_{number}", "title": join_and(people), "context": text, "question": question,
            "answers": answers}  # fmt: skip


def _completion(found: Scene, number: int) -> Row:
    """The text again, up to what one of them has, or where one of them is."""
    person = number % 3
    name, thing, place = found.people[person], found.things[person], found.places[person]
    start, value = ((f"{name} has", f"the {thing}"), (f"{name} is", place))[number % 2]
    return {"doc_id": f"tiny_{number}", "title": found.title, "context": found.text, "question": f"{start} what?",
            "text": f"{found.text} {start}", "value": value}  # fmt: skip


def boolq(dice: Dice) -> Files:
    """BoolQ: is it so? The question has no mark at its end, as in the data set."""
    made: Files = {}
    for split, count in (("validation", 10), ("train", 6)):
        rows = []
        for number, label in enumerate(spread(dice, count, 2)):
            found, person = scene(dice, split == "validation"), number % 3
            other = person if label else (person + 1) % 3
            name = found.people[person]
            has, is_in = f"does {name} have the {found.things[other]}", f"is {name} {found.places[other]}"
            rows.append({"question": has if number % 2 else is_in, "passage": found.text, "label": label})
        made[f"aps/super_glue/boolq/{split}"] = numbered(rows)
    return made


def multirc(dice: Dice) -> Files:
    """MultiRC: one question with a right and a wrong answer, each judged alone."""
    made: Files = {}
    for split, count in (("validation", 5), ("train", 3)):
        rows = []
        for paragraph in range(count):
            found, person = scene(dice, split == "validation"), paragraph % 3
            question, right = found.questions(person)[paragraph % 3]
            wrong = found.questions((person + 1) % 3)[paragraph % 3][1]
            order = ((right, 1), (wrong, 0)) if paragraph % 2 else ((wrong, 0), (right, 1))
            for number, (answer, label) in enumerate(order):
                place = {"paragraph": paragraph, "question": paragraph, "answer": 2 * paragraph + number}
                rows.append({"paragraph": found.text, "question": question, "answer": capitalise(answer),
                             "label": label, "idx": place})  # fmt: skip
        made[f"aps/super_glue/multirc/{split}"] = rows
    return made


def record(dice: Dice) -> Files:
    """ReCoRD: who stands for the placeholder? Of the names, which lm-eval sorts, each place is right equally often."""
    made: Files = {}
    for split, count in (("validation", 9), ("train", 6)):
        rows = []
        for number, place in enumerate(spread(dice, count, 3)):
            found = scene(dice, split == "validation")
            answer = sorted(found.people)[place]
            person = found.people.index(answer)
            highlights = [f"{name} has the {thing}" for name, thing in zip(found.people, found.things, strict=True)]
            passage = "\n@highlight\n".join([found.text, *dice.shuffled(highlights)])
            rows.append({"passage": passage, "query": f"The person {found.places[person]} is @placeholder",
                         "entities": found.people, "answers": [answer],
                         "idx": {"passage": number, "query": number}})  # fmt: skip
        made[f"aps/super_glue/record/{split}"] = rows
    return made


LAST_WORDS = (
    "{a} had a {t}. {a} lost the {t} {p}. {a} looked and looked for it. At last {a} found the {t}",
    "{a} and {b} were {p}. {a} had the {t}. {b} wanted it too. So {a} gave {b} the {t}",
    "{b} was alone {p} and was sad. Then {a} came and sat down next to {b}. After that {a} was never without {b}",
    "{a} made a {t} for {b} and hid it {p}. {b} went there, looked round and saw the {t}",
)


def lambada(dice: Dice) -> Files:
    """LAMBADA: little stories whose last word follows from what was told."""
    rows = []
    for number in range(12):
        a, b = dice.several(names(), 2)
        slots = {"a": a, "b": b, "t": dice.pick(words("treasure")), "p": dice.pick(place_phrases())}
        text = LAST_WORDS[number % len(LAST_WORDS)].format(**slots)
        rows.append({"text": re.sub(r"\ba (?=[aeiou])", "an ", text)})
    return {"EleutherAI/lambada_openai/default/test": rows}


def wikitext(dice: Dice) -> Files:
    """WikiText: a page is about one person. Punctuation stands apart, as in the data set."""
    return {
        f"EleutherAI/wikitext_document_level/wikitext-2-raw-v1/{split}": [_page(dice) for _ in range(count)]
        for split, count in (("test", 4), ("train", 6))
    }


def _page(dice: Dice) -> Row:
    while True:
        text = portrait(dice)
        if '"' not in text and "'" not in text and is_reserved(text):
            break
    name = next(word for word in re.findall(r"\w+", text) if word in names())
    apart = re.sub(r"([.,?!:])", r" \1", text)
    return {"page": f" = {name} = \n \n {apart} \n"}
