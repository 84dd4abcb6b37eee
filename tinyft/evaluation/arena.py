"""An arena: two models reply to a prompt without their names, and a person says which reply is better.

After LMSYS' Chatbot Arena (Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", 2023). Only this
process knows who stands on which side; a vote is on disk before the names are told.
"""

import asyncio
import secrets
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from ..data.entries import Turn
from ..inference.prompt_files import PromptLine
from .contestants import Contestant, NoReply, log, log_failure
from .journal import Journal
from .votes import WINNERS, Vote, check_vote, storable

SECONDS = 600.0  # for a reply
MOST_CHARACTERS = 2_000_000  # of a reply
MOST_RUNNING, MOST_KEPT = 16, 1000  # battles
MOST_KEPT_CHARACTERS = 50_000_000  # of prompts and replies in battles that are over or wait for a vote
MOST_FAILURES = 3  # of a prompt of the file, after which it isn't asked again
FAILED = "This model gave no reply: it failed or can't be reached. The terminal in which the arena runs says more."
ENDLESS = "This model's reply is too long, or takes too long."


class Refused(ValueError):
    """What a person asks for can't be done now."""


class Gone(Refused):
    """A battle that this process doesn't know."""


@dataclass
class Side:
    """One model's part of a battle.

    pieces: of the reply, as they came, as long as the battle runs. reply: None until it is complete. error: why there
    is none, without names.
    """

    model: Contestant
    pieces: list[str] = field(default_factory=list)
    reply: str | None = None
    error: str = ""


class Battle:
    """One prompt with two replies. state: "running", "ready" for a vote, "failed", "skipped" or "voted"."""

    def __init__(self, turns: Sequence[Turn], sides: tuple[Side, Side], from_queue: bool):
        self.id, self.turns, self.prompt, self.from_queue = secrets.token_urlsafe(16), turns, shown(turns), from_queue
        self.sides, self.state, self.winner = sides, "running", ""
        self.task: asyncio.Task | None = None
        self._changed = asyncio.Event()

    @property
    def pair(self) -> frozenset[str]:
        """The names of both models."""
        return frozenset(side.model.name for side in self.sides)

    @property
    def n_characters(self) -> int:
        """The length of its prompt and its replies."""
        return len(self.prompt) + sum(len(side.reply or "") for side in self.sides)

    def end(self, state: str) -> None:
        """It doesn't run any more; those who follow are told the replies as a whole."""
        self.state = state
        for side in self.sides:
            side.pieces.clear()
        self.tell()

    def tell(self) -> None:
        """Wake those who follow."""
        self._changed.set()
        self._changed = asyncio.Event()

    def view(self) -> dict:
        """What the person may see: names only after the vote."""
        known = {"id": self.id, "prompt": self.prompt, "state": self.state, "from_queue": self.from_queue,
                 "replies": [side.reply for side in self.sides], "errors": [side.error for side in self.sides]}
        if self.state == "voted":
            known |= {"winner": self.winner, "names": [side.model.name for side in self.sides]}
        return known

    async def follow(self, seconds: float) -> AsyncIterator[list[tuple[int, str]]]:
        """What is added to the replies, as (side, text), from their beginning on until both are complete.

        At least every so many seconds there is a list, if an empty one.
        """
        given = [0, 0]
        while True:
            changed = self._changed
            new = [(i, "".join(side.pieces[given[i] :])) for i, side in enumerate(self.sides)]
            given = [len(side.pieces) for side in self.sides]
            if self.state != "running":
                return
            yield [(i, text) for i, text in new if text]
            try:
                await asyncio.wait_for(changed.wait(), seconds)
            except asyncio.TimeoutError:  # noqa: UP041 - another than TimeoutError before Python 3.11
                pass


class PromptQueue:
    """Prompts that are voted on one after the other.

    done: texts of prompts that have been voted on, in this run or an earlier. A prompt is asked once; one that was
    handed out and came to nothing is asked again after the others, unless it has failed so often that it is given up.
    """

    def __init__(self, prompts: Sequence[PromptLine], done: set[str]):
        self.turns = {shown(line.turns): line.turns for line in prompts}
        self._waiting = deque(text for text in self.turns if text not in done)
        self._in_hand: OrderedDict[str, None] = OrderedDict()
        self._n_failed: Counter[str] = Counter()
        self.given_up: set[str] = set()

    @property
    def n_done(self) -> int:
        """How many have been voted on."""
        return len(self.turns) - len(self._waiting) - len(self._in_hand) - len(self.given_up)

    def next(self) -> tuple[Turn, ...] | None:
        """The next one; None when all are done or given up.

        Where others have all that is left, it is the one they have had longest.
        """
        if not self._waiting and not self._in_hand:
            return None
        text = self._waiting.popleft() if self._waiting else next(iter(self._in_hand))
        self._in_hand[text] = None
        self._in_hand.move_to_end(text)
        return self.turns[text]

    def settle(self, text: str, became: str) -> None:
        """What has become of one: "voted", "skipped" or "failed"."""
        self._n_failed[text] += became == "failed"
        held = text in self._in_hand
        if held:
            del self._in_hand[text]
        if became == "voted":
            self.given_up.discard(text)
            if not held and text in self._waiting:
                self._waiting.remove(text)
        elif held and self._n_failed[text] >= MOST_FAILURES:
            self.given_up.add(text)
            log(f"a prompt is given up, since models failed at it {MOST_FAILURES} times: {' '.join(text.split())[:60]}")
        elif held:
            self._waiting.append(text)

    def why_empty(self) -> str:
        """What there is to say where `next` has none."""
        if not self.given_up:
            return "all prompts of the file have been voted on"
        return (f"all prompts of the file have been voted on but {len(self.given_up)}, at which models failed "
                f"{MOST_FAILURES} times; start the arena anew to try them again")


class Arena:
    """Models, battles and votes. All methods are for the thread of the event loop.

    rng: chooses pairs, sides and the seeds of replies. prompts: to be voted on in this order. ValueError where the
    journal holds anything but votes.
    """

    def __init__(self, models: Sequence[Contestant], journal: Journal, rng: np.random.Generator, *,
                 prompts: Sequence[PromptLine] = (), temperature: float = 0.0, max_new_tokens: int = 200):
        self.models, self.journal, self.rng = models, journal, rng
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        for number, record in enumerate(journal.records, 1):
            check_vote(record, f"{journal.path}, vote {number}")
        self.queue = PromptQueue(prompts, {vote["prompt"] for vote in self.votes}) if prompts else None
        self.battles: OrderedDict[str, Battle] = OrderedDict()
        self._n_compared = Counter(frozenset((vote["model_a"], vote["model_b"])) for vote in self.votes)

    @property
    def votes(self) -> list[dict]:
        """All that have been given, oldest first."""
        return self.journal.records

    def choose_pair(self) -> tuple[Contestant, Contestant]:
        """Two models, left and right, of a pair that was compared least."""
        pairs = list(combinations(self.models, 2))
        counts = [self._n_compared[frozenset((first.name, second.name))] for first, second in pairs]
        rarest = [pair for pair, count in zip(pairs, counts, strict=True) if count == min(counts)]
        first, second = rarest[self.rng.integers(len(rarest))]
        return (second, first) if self.rng.integers(2) else (first, second)

    def begin(self, prompt: str | None = None) -> Battle:
        """Ask two models a prompt, or the next of the queue. Refused where there is none, or too much runs."""
        if sum(battle.state == "running" for battle in self.battles.values()) >= MOST_RUNNING:
            raise Refused(f"{MOST_RUNNING} battles are running, which is as many as may; wait for one to end")
        turns = (Turn("user", prompt),) if prompt is not None else self.queue and self.queue.next()
        if not turns:
            raise Refused(self.queue.why_empty() if self.queue else "there is no file of prompts; ask something")
        sides = tuple(Side(model) for model in self.choose_pair())
        battle = Battle(turns, sides, from_queue=prompt is None)
        # Counted from here on, so that others meanwhile get other pairs, and a model that fails isn't asked for ever.
        self._n_compared[battle.pair] += 1
        self.battles[battle.id] = battle
        seed = int(self.rng.integers(2**31))
        battle.task = asyncio.create_task(self._run(battle, seed))
        self._forget_old()
        return battle

    def find(self, id: str) -> Battle:
        """A battle; Gone if there is none."""
        if id not in self.battles:
            raise Gone("this battle is over or was lost when the arena was started anew; begin another")
        return self.battles[id]

    def vote(self, id: str, choice: str, judge: str) -> Battle:
        """Keep a vote: choice is a key of `WINNERS`. The first one stands, and later ones change nothing.

        Refused where the replies aren't complete; OSError where it can't be written down, and then it doesn't count.
        """
        battle = self.find(id)
        if battle.state == "voted":
            return battle
        if battle.state != "ready":
            why = {"running": "the replies are still being written", "failed": "a model gave no reply",
                   "skipped": "it was skipped"}
            raise Refused(f"there is nothing to vote on: {why[battle.state]}")
        (a, b), winner = battle.sides, WINNERS[choice]
        vote = Vote(battle.id, time.time(), battle.prompt, a.model.name, b.model.name, a.reply, b.reply, winner, judge)
        self.journal.append(vote.record())  # in the event loop, so that no other vote comes between
        battle.state, battle.winner = "voted", choice
        if self.queue:
            self.queue.settle(battle.prompt, "voted")
        return battle

    def skip(self, id: str) -> Battle:
        """Give a battle up without a vote; what was voted on stays so."""
        battle = self.find(id)
        if battle.state in ("running", "ready"):
            self._n_compared[battle.pair] -= 1
            battle.task.cancel()
            battle.end("skipped")
            self._settle_unvoted(battle)
        return battle

    def start(self) -> None:
        """The event loop runs."""
        for model in self.models:
            model.start()

    async def close(self) -> None:
        """End what runs, and let others have the file."""
        tasks = [battle.task for battle in self.battles.values()]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(model.close() for model in self.models))
        finally:
            self.journal.close()

    async def _run(self, battle: Battle, seed: int) -> None:
        await asyncio.gather(*(self._reply(battle, side, seed) for side in battle.sides))
        battle.end("failed" if any(side.error for side in battle.sides) else "ready")
        if battle.state == "failed":
            self._settle_unvoted(battle)

    async def _reply(self, battle: Battle, side: Side, seed: int) -> None:
        try:
            await asyncio.wait_for(self._write(battle, side, seed), SECONDS)
        except NoReply as error:
            side.error = str(error)
            log_failure(side.model.name, error)
        except asyncio.TimeoutError as error:  # noqa: UP041 - another than TimeoutError before Python 3.11
            side.error = ENDLESS
            log_failure(side.model.name, error)
        except Exception as error:  # whatever it is: an address or a name in it would tell which model this is
            side.error = FAILED
            log_failure(side.model.name, error)
        else:
            side.reply = storable("".join(side.pieces)).strip()
        battle.tell()

    async def _write(self, battle: Battle, side: Side, seed: int) -> None:
        length = 0
        async for piece in side.model.stream(battle.turns, temperature=self.temperature, seed=seed,
                                             max_new_tokens=self.max_new_tokens):
            length += len(piece)
            if length > MOST_CHARACTERS:
                raise NoReply(ENDLESS)
            side.pieces.append(piece)
            battle.tell()

    def _settle_unvoted(self, battle: Battle) -> None:
        if self.queue and battle.from_queue:
            self.queue.settle(battle.prompt, battle.state)

    def _forget_old(self) -> None:
        n_characters = sum(battle.n_characters for battle in self.battles.values())
        for id, battle in list(self.battles.items()):
            if len(self.battles) <= MOST_KEPT and n_characters <= MOST_KEPT_CHARACTERS:
                return
            if battle.state != "running":
                n_characters -= battle.n_characters
                del self.battles[id]


def shown(turns: Sequence[Turn]) -> str:
    """A prompt as a person reads it, and as votes.jsonl has it: roles are told where there are several turns."""
    texts = ["\n".join(filter(None, (turn.content, turn.input))) for turn in turns]
    if len(turns) == 1:
        return texts[0]
    return "\n\n".join(f"{turn.role}: {text}" for turn, text in zip(turns, texts, strict=True))
