"""The arena: who is compared, what a vote needs, what is remembered, and prompts of a file."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_arena import Scripted, make_arena, prompt_lines

from tinyft import Turn
from tinyft.evaluation import arena as arena_module
from tinyft.evaluation.arena import Gone, Refused, shown
from tinyft.evaluation.votes import read_votes


async def finished(arena, prompt: str | None = "Hi?"):
    """A battle whose replies are written."""
    battle = arena.begin(prompt)
    await battle.task
    return battle


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "votes.jsonl"


# ---- who is compared


def test_pairs_that_were_compared_least_come_first_and_sides_are_drawn(path):
    async def run():
        arena = make_arena(path, *map(Scripted, "abcd"))
        seen = Counter()
        for _ in range(10):
            for _ in range(6):
                battle = await finished(arena)
                seen[tuple(side.model.name for side in battle.sides)] += 1
                arena.vote(battle.id, "tie", "")
            assert set(Counter(frozenset(pair) for pair in seen.elements()).values()) == {seen.total() // 6}
        return seen

    seen = asyncio.run(run())
    swapped = sum(count for (left, right), count in seen.items() if left > right)
    assert 20 <= swapped <= 40, "either model may stand on the left"


def test_one_seed_gives_the_same_battles(tmp_path):
    async def run(name: str, seed: int):
        arena = make_arena(tmp_path / name, *map(Scripted, "abcd"), seed=seed, temperature=1.0)
        battles = [await finished(arena) for _ in range(6)]
        return [([side.model.name for side in battle.sides], battle.sides[0].model.asked[-1][1]["seed"])
                for battle in battles]

    first, second, other = (asyncio.run(run(*which)) for which in (("1", 0), ("2", 0), ("3", 1)))
    assert first == second != other


def test_both_models_are_asked_the_same_way(path):
    arena = make_arena(path, temperature=0.5, max_new_tokens=7)
    asyncio.run(finished(arena))
    one, two = (model.asked[0] for model in arena.models)
    assert one == two and one[0] == (Turn("user", "Hi?"),)
    assert one[1]["temperature"] == 0.5 and one[1]["max_new_tokens"] == 7


def test_votes_of_an_earlier_run_count_for_the_choice(path):
    async def first():
        arena = make_arena(path, Scripted("a"), Scripted("b"))
        for _ in range(3):
            arena.vote((await finished(arena)).id, "a", "")
        await arena.close()

    async def second():
        arena = make_arena(path, *map(Scripted, "abc"))
        pairs = Counter([(await finished(arena)).pair for _ in range(6)])
        await arena.close()
        return pairs

    asyncio.run(first())
    assert asyncio.run(second()) == {frozenset("ac"): 3, frozenset("bc"): 3}


def test_a_model_that_fails_does_not_keep_others_from_being_compared(path):
    async def run():
        arena = make_arena(path, Scripted("a"), Scripted("b"), Scripted("down", RuntimeError("gone")))
        battles = [await finished(arena) for _ in range(9)]
        return Counter(battle.state for battle in battles)

    assert asyncio.run(run()) == {"failed": 6, "ready": 3}


# ---- votes


def test_a_vote_is_a_line(path):
    async def run():
        arena = make_arena(path)
        battle = await finished(arena, "What?")
        assert not path.read_bytes()
        arena.vote(battle.id, "b", "Ann")
        return battle

    battle, [line] = asyncio.run(run()), read_votes(path)
    assert abs(line.pop("time") - time.time()) < 60
    left, right = battle.sides
    assert line == {"id": battle.id, "prompt": "What?", "model_a": left.model.name, "model_b": right.model.name,
                    "reply_a": left.model.says[0], "reply_b": right.model.says[0], "winner": "model_b", "judge": "Ann"}


@pytest.mark.parametrize("choice, winner", [("a", "model_a"), ("b", "model_b"), ("tie", "tie"),
                                            ("bad", "tie (bothbad)")])
def test_all_kinds_of_votes(path, choice, winner):
    async def run():
        arena = make_arena(path)
        arena.vote((await finished(arena)).id, choice, "")

    asyncio.run(run())
    assert read_votes(path)[0]["winner"] == winner


def test_no_vote_before_both_replies_are_there(path):
    async def run():
        slow = Scripted("slow", "It", None, " is.")
        arena = make_arena(path, Scripted("quick"), slow)
        battle = arena.begin("Hi?")
        for _ in range(5):
            await asyncio.sleep(0.01)
            with pytest.raises(Refused, match="still being written"):
                arena.vote(battle.id, "a", "")
        slow.go_on.set()
        await battle.task
        assert arena.vote(battle.id, "a", "").state == "voted"
        with pytest.raises(Gone, match="begin another"):
            arena.vote("unknown", "a", "")

    asyncio.run(run())
    assert len(read_votes(path)) == 1


def test_no_vote_where_a_model_has_failed(path, capsys):
    async def run():
        arena = make_arena(path, Scripted("fine"), Scripted("down", "It", RuntimeError("down at 10.1.2.3:80")))
        battle = await finished(arena)
        for _ in range(2):
            with pytest.raises(Refused, match="a model gave no reply"):
                arena.vote(battle.id, "a", "")
        return battle.view()

    view = asyncio.run(run())
    assert view["state"] == "failed" and sorted(view["errors"])[0] == "" and "no reply" in "".join(view["errors"])
    assert not any(name in json.dumps(view) for name in ("fine", "down", "10.1.2.3", "RuntimeError"))
    assert "arena: down gave no reply: RuntimeError: down at 10.1.2.3:80" in capsys.readouterr().err
    assert read_votes(path) == []


def test_a_skipped_battle_takes_no_vote_and_does_not_count(path):
    async def run():
        slow = Scripted("slow", None)
        arena = make_arena(path, Scripted("quick"), slow)
        battle = arena.begin("Hi?")
        await asyncio.sleep(0.02)
        assert arena.skip(battle.id).state == "skipped"
        with pytest.raises(Refused, match="skipped"):
            arena.vote(battle.id, "a", "")
        await asyncio.gather(battle.task, return_exceptions=True)
        slow.go_on.set()
        voted = await finished(arena)
        arena.vote(voted.id, "a", "")
        assert arena.skip(voted.id).state == "voted" and voted.task.done() and battle.task.cancelled()
        assert arena._n_compared.total() == 1

    asyncio.run(run())
    assert len(read_votes(path)) == 1


def test_replies_that_are_endless_or_strange(path, monkeypatch):
    monkeypatch.setattr(arena_module, "MOST_CHARACTERS", 1000)
    monkeypatch.setattr(arena_module, "SECONDS", 0.3)

    async def run(*says):
        path.unlink(missing_ok=True)
        arena = make_arena(path, Scripted("plain"), Scripted("strange", *says))
        battle = await finished(arena)
        side = next(side for side in battle.sides if side.model.name == "strange")
        if battle.state == "ready":
            arena.vote(battle.id, "a", "")
        return side.reply, side.error

    assert asyncio.run(run(*["a" * 100] * 11))[1] == asyncio.run(run(None))[1] == arena_module.ENDLESS
    assert asyncio.run(run(*["a" * 100] * 10)) == ("a" * 1000, "")
    assert asyncio.run(run(" a\ud83d", "\ude00\ud800\0\x1b[31m \n")) == ("a\U0001f600\ufffd\0\x1b[31m", "")
    assert any(vote["reply_a"] == "a\U0001f600\ufffd\0\x1b[31m" or vote["reply_b"] == "a\U0001f600\ufffd\0\x1b[31m"
               for vote in read_votes(path))


def test_so_many_battles_at_once_and_old_ones_are_forgotten(path, monkeypatch):
    monkeypatch.setattr(arena_module, "MOST_RUNNING", 3)
    monkeypatch.setattr(arena_module, "MOST_KEPT", 5)

    async def run():
        slow = Scripted("slow", None)
        arena = make_arena(path, Scripted("quick"), slow)
        running = [arena.begin("Hi?") for _ in range(3)]
        with pytest.raises(Refused, match="3 battles are running"):
            arena.begin("Hi?")
        slow.go_on.set()
        await asyncio.gather(*(battle.task for battle in running))
        for _ in range(6):
            await finished(arena)
        assert len(arena.battles) == 5
        with pytest.raises(Gone):
            arena.find(running[0].id)

    asyncio.run(run())


# ---- prompts of a file


def test_a_queue_asks_each_prompt_once_and_remembers(path):
    prompts = prompt_lines("one", "two", "two", "three")

    async def first():
        arena = make_arena(path, prompts=prompts)
        assert (arena.queue.n_done, len(arena.queue.turns)) == (0, 3)
        asked = []
        for _ in range(2):
            battle = await finished(arena, None)
            asked.append(battle.prompt)
            arena.vote(battle.id, "a", "")
        assert arena.queue.n_done == 2
        await finished(arena, None)  # without a vote
        await arena.close()
        return asked

    async def second():
        arena = make_arena(path, prompts=prompts)
        assert arena.queue.n_done == 2
        battle = await finished(arena, None)
        arena.vote(battle.id, "a", "")
        with pytest.raises(Refused, match="all prompts of the file have been voted on"):
            arena.begin(None)
        await arena.close()
        return battle.prompt

    assert asyncio.run(first()) == ["one", "two"] and asyncio.run(second()) == "three"


def test_a_queue_and_two_people(path):
    async def run():
        arena = make_arena(path, prompts=prompt_lines("one", "two"))
        ann, bob = await finished(arena, None), await finished(arena, None)
        assert (ann.prompt, bob.prompt) == ("one", "two"), "nobody gets what another one has"
        arena.vote(bob.id, "a", "Bob")
        late = await finished(arena, None)
        assert late.prompt == "one", "unless nothing else is left"
        arena.vote(late.id, "a", "Bob")
        with pytest.raises(Refused):
            arena.begin(None)
        arena.vote(ann.id, "b", "Ann")
        assert arena.queue.n_done == 2

    asyncio.run(run())
    assert [vote["prompt"] for vote in read_votes(path)] == ["two", "one", "one"]


def test_what_came_to_nothing_is_asked_again_after_the_others(path):
    async def run():
        broken = Scripted("broken", RuntimeError("no"))
        arena = make_arena(path, Scripted("fine"), broken, prompts=prompt_lines("one", "two", "three"))
        assert (await finished(arena, None)).state == "failed"
        broken.says = ("Yes.",)
        arena.skip((await finished(arena, None)).id)
        order = []
        for _ in range(3):
            battle = await finished(arena, None)
            order.append(battle.prompt)
            arena.vote(battle.id, "tie", "")
        return order

    assert asyncio.run(run()) == ["three", "one", "two"]


def test_a_prompt_at_which_models_always_fail_is_given_up(path, capsys):
    async def run():
        failing = Scripted("failing", RuntimeError("too long"))
        arena = make_arena(path, Scripted("fine"), failing, prompts=prompt_lines("long one", "two"))
        asked = []
        for _ in range(6):
            battle = await finished(arena, None)
            asked.append(battle.prompt)
            if battle.prompt == "two":
                failing.says = (RuntimeError("too long"),)
                arena.skip(battle.id)
            else:
                failing.says = ("Yes.",)
        assert asked == ["long one", "two"] * 3 and arena.queue.given_up == {"long one"}, "skips don't count"
        late = battle = await finished(arena, None)
        failing.says = ("Yes.",)
        battle = await finished(arena, None)
        arena.vote(battle.id, "a", "")
        assert late.prompt == battle.prompt == "two" and arena.queue.n_done == 1
        with pytest.raises(Refused, match="voted on but 1, at which models failed 3 times; start the arena anew"):
            arena.begin(None)
        arena.queue.settle("long one", "voted")
        assert arena.queue.n_done == 2 and not arena.queue.given_up
        await arena.close()

    asyncio.run(run())
    assert "arena: a prompt is given up, since models failed at it 3 times: long one" in capsys.readouterr().err


def test_pieces_are_kept_only_while_a_battle_runs(path):
    async def follow(battle):
        return "".join([text async for pieces in battle.follow(0.01) for _, text in pieces])

    async def run():
        slow = Scripted("slow", "It", None, " is.")
        arena = make_arena(path, Scripted("quick", "Qu", "ick."), slow)
        battle = arena.begin("Hi?")
        await asyncio.sleep(0.02)
        late = asyncio.create_task(follow(battle))  # one side is complete
        await asyncio.sleep(0.02)
        slow.go_on.set()
        assert (await late).startswith(("ItQuick.", "Quick.It"))
        await battle.task
        skipped = arena.begin("Hi?")
        await asyncio.sleep(0.02)
        arena.skip(skipped.id)
        assert sorted(battle.view()["replies"]) == ["It is.", "Quick."]
        assert [side.pieces for each in (battle, skipped) for side in each.sides] == [[]] * 4

    asyncio.run(run())


def test_long_battles_are_forgotten_earlier(path, monkeypatch):
    monkeypatch.setattr(arena_module, "MOST_KEPT_CHARACTERS", 1000)

    async def run():
        arena = make_arena(path, Scripted("a", "a" * 200), Scripted("b", "b" * 200))
        battles = [await finished(arena) for _ in range(5)]
        return [battle.id in arena.battles for battle in battles]

    assert asyncio.run(run()) == [False, False, True, True, True]


def test_conversations_are_shown_with_their_roles():
    assert shown((Turn("user", "Plural?", "a cat"),)) == "Plural?\na cat"
    assert shown((Turn("system", "Be brief."), Turn("user", "Hi"))) == "system: Be brief.\n\nuser: Hi"
