"""Questions about facts that tuning never shows: MMLU, TriviaQA and four tasks of BIG-bench."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tiny_world import sentences
from tiny_world.dice import Dice
from tiny_world.grammar import capitalise, with_article
from tiny_world.tables import rows

from .shape import Files, Row, Slots, answered, asked, facts, placed, spread

Question = tuple[str, str, list[str]]  # the question, its right answer, three wrong ones
Source = Callable[[Dice, int, bool], Iterator[Question]]

# Wrong answers come from these: each belongs to one animal and is false of every other that is asked about. (An ox may
# moo, a crow may croak and a crab may live in a shell, so those are not here.)
WRONG = {
    "young": ("piglet", "duckling", "gosling", "cygnet", "tadpole", "joey", "owlet", "caterpillar", "elver", "fawn"),
    "sound": ("meow", "quack", "oink", "cluck", "buzz"),
    "home": ("a hive", "an anthill", "a web", "a kennel", "a sty"),
}
DENIALS = (" is not ", " are not ", " cannot ", " will not ")
UNCLEAR = ("kitten", "bird")  # a kitten may meow as well, and birds live in all sorts of places
SHORTER = {"capital": (), "young": ("{y}",), "sound": ("{y3}", "{y}"), "home": ("{y}",)}  # answers that count as well
MMLU_ITEMS, MMLU_SHOTS = 10, 5
SOUNDS = {row["sound"]: row for row in rows("sounds")}


def _capitals(dice: Dice, seed: int, held_out: bool) -> Iterator[Question]:
    cities = [row["capital"] for row in rows("capitals")]
    for number, slots in enumerate(facts(dice, "capital", seed, held_out)):
        wrong = dice.several([city for city in cities if city != slots["y"]], 3)
        yield asked("capital", slots, number), answered("capital", slots), wrong


def _animals(dice: Dice, seed: int, held_out: bool) -> Iterator[Question]:
    sources = {relation: facts(dice, relation, seed, held_out) for relation in ("young", "sound", "home")}
    for number in range(MMLU_ITEMS):
        relation = tuple(sources)[number % 3]
        slots = next(slots for slots in sources[relation] if slots["x"] not in UNCLEAR)
        wrong = dice.several([word for word in WRONG[relation] if word != slots["y"]], 3)
        answers = [_animal_answer(relation, word) for word in wrong]
        yield asked(relation, slots, number // 3), answered(relation, slots), answers


def _animal_answer(relation: str, word: str) -> str:
    """A word as the answer to a question of that relation."""
    if relation == "young":
        return capitalise(with_article(word))
    return f"It {SOUNDS[word]['sounds']}" if relation == "sound" else f"In {word}"


def _sums(dice: Dice, seed: int, held_out: bool) -> Iterator[Question]:
    for number, slots in enumerate(facts(dice, "sum", seed, held_out)):
        if "0" not in (slots["x"], slots["y"]):
            right = int(slots["z"])
            near = [right + step for step in (-3, -2, -1, 1, 2, 3) if right + step > 0]
            yield asked("sum", slots, number), slots["z"], [str(wrong) for wrong in dice.several(near, 3)]


def _negations(dice: Dice, seed: int, held_out: bool) -> Iterator[Question]:
    """What denies a sentence; wrong are the sentence itself and what denies two others in the same way."""
    while True:
        plain, negated = sentences.plain_and_negated(dice, held_out)
        denial = next(words for words in DENIALS if words in negated)
        wrong = [plain]
        while len(wrong) < 3:
            other = sentences.plain_and_negated(dice, held_out)[1]
            if denial in other and other not in (negated, *wrong):
                wrong.append(other)
        yield f'Which sentence denies "{plain}"?', negated, dice.shuffled(wrong)


MMLU: dict[str, Source] = {
    "elementary_mathematics": _sums, "formal_logic": _negations,
    "global_facts": _animals, "high_school_geography": _capitals,
}  # fmt: skip


def mmlu(dice: Dice, seed: int) -> Files:
    """Four subjects, one of each group of MMLU."""
    made: Files = {}
    for subject, source in MMLU.items():
        for split, count in (("test", MMLU_ITEMS), ("dev", MMLU_SHOTS)):
            found = source(dice, seed, split == "test")
            made[f"cais/mmlu/{subject}/{split}"] = [
                {"question": question, "subject": subject, "choices": placed(right, wrong, place), "answer": place}
                for (question, right, wrong), place in zip(_first(found, count), spread(dice, count, 4), strict=True)
            ]
    return made


def _first(questions: Iterator[Question], count: int) -> list[Question]:
    return [next(questions) for _ in range(count)]


def trivia(dice: Dice, seed: int) -> Files:
    """TriviaQA without its documents: the answer counts in any of its aliases."""
    made = {}
    for split, count in (("validation", 3), ("train", 2)):
        made[f"mandarjoshi/trivia_qa/rc.nocontext/{split}"] = [
            _trivia_row(f"tiny_{relation}_{number}", relation, slots, number)
            for relation in ("capital", "young", "sound", "home")
            for number, slots in zip(range(count), facts(dice, relation, seed, split == "validation"), strict=False)
        ]
    return made


def _trivia_row(name: str, relation: str, slots: Slots, number: int) -> Row:
    value = answered(relation, slots)
    aliases = [value, *(capitalise(text.format(**slots)) for text in SHORTER[relation])]
    answer = {
        "value": value, "aliases": aliases, "type": "FreeForm",
        "normalized_value": value.lower(), "normalized_aliases": [alias.lower() for alias in aliases],
    }  # fmt: skip
    return {"question": asked(relation, slots, number), "question_id": name, "question_source": "tinyft",
            "answer": answer}  # fmt: skip


def big_bench(dice: Dice, seed: int) -> Files:
    """Two tasks of BIG-bench with choices, two whose answer is written."""
    made = {
        "odd_one_out": _odd_ones(dice), "strategyqa": _yes_or_no(dice, seed),
        "simple_arithmetic_json": [
            _task_row(f"What is {slots['x']} + {slots['y']}?", slots["z"])
            for slots in facts(dice, "sum", seed, True) if "0" not in (slots["x"], slots["y"])
        ][:10],
        "linguistic_mappings": [
            _task_row(asked(relation, slots, 0), slots["y"])
            for relation in ("plural", "past")
            for _, slots in zip(range(5), facts(dice, relation, seed, True), strict=False)
        ],
    }  # fmt: skip
    return {f"hails/bigbench/{name}_zero_shot/default": [row | {"idx": n} for n, row in enumerate(found)]
            for name, found in made.items()}  # fmt: skip


def _task_row(inputs: str, target: str, choices: tuple[str, ...] = (), right: str = "") -> Row:
    scores = [int(choice == (right or target)) for choice in choices]
    return {"inputs": inputs, "targets": [target], "multiple_choice_targets": list(choices),
            "multiple_choice_scores": scores}  # fmt: skip


def _odd_ones(dice: Dice) -> list[Row]:
    made = []
    for place in spread(dice, 8, 4):
        words, odd, _ = sentences.odd_one_out(dice, reserved=True)
        words = placed(odd, [word for word in words if word != odd], place)
        made.append(_task_row(f"Find the word that does not belong: {', '.join(words)}", odd, tuple(words)))
    return made


def _yes_or_no(dice: Dice, seed: int) -> list[Row]:
    capitals = list(facts(dice, "capital", seed, True))
    made = []
    for number, place in enumerate(spread(dice, 10, 2)):
        true, other = capitals[2 * number : 2 * number + 2]
        said, verdict = (true if place == 0 else other)["y"], ("Yes", "No")[place]
        target = f"{verdict}. The capital of {true['x']} is {true['y']}."
        made.append(_task_row(f"Is {said} the capital of {true['x']}?", target, ("Yes", "No"), verdict))
    return made
