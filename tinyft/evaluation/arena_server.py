"""The arena's page and what it asks for. Names of models are sent after a vote, and with the ratings."""

import asyncio
import base64
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ..inference.protocol import APIError
from ..inference.web import WebServer, download, event, json_response, page_response, read_fields, text_of
from .arena import Arena, Battle, Gone, Refused
from .ratings import Ratings, lmsys_rows, plot_ratings, rate, table
from .votes import WINNERS

PAGE = Path(__file__).with_name("pages") / "arena.html"
MOST_BYTES = 200_000  # of a body, and so of a prompt
LONGEST_NAME = 100
WATCH_SECONDS = 0.5  # between looks whether the server is to end


class ArenaServer(WebServer):
    """An arena behind HTTP, for this machine's own users. seed: of the ratings' intervals."""

    def __init__(self, arena: Arena, *, seed: int = 0):
        self.arena, self.seed = arena, seed
        self._rated: tuple[int, dict] = (-1, {})  # for how many votes, and what is known of them
        self._rating = asyncio.Lock()
        post = {"methods": ["POST"]}
        super().__init__([
            Route("/", self._page), Route("/api/arena", self._overview), Route("/api/ratings", self._ratings),
            Route("/api/battles", self._begin, **post), Route("/api/battles/{id}/events", self._events),
            Route("/api/battles/{id}/vote", self._vote, **post), Route("/api/battles/{id}/skip", self._skip, **post),
            Route("/votes.json", self._votes),
        ])

    def start(self) -> None:
        """Start the models."""
        self.arena.start()

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            async with super()._lifespan(app):
                yield
        finally:  # here, where the event loop still runs: connections are closed by it
            await self.arena.close()

    # ---- endpoints

    async def _page(self, request: Request) -> Response:
        return page_response(PAGE)

    async def _overview(self, request: Request) -> Response:
        queue = self.arena.queue
        return json_response({
            "models": len(self.arena.models), "votes": len(self.arena.votes),
            "queue": queue and {"done": queue.n_done, "given_up": len(queue.given_up), "all": len(queue.turns)}})

    async def _begin(self, request: Request) -> Response:
        asked = await read_fields(request, MOST_BYTES, ("prompt",))
        prompt = asked.get("prompt")
        if prompt is not None and not text_of(asked, "prompt").strip():
            raise APIError("the prompt is empty", "prompt")
        if self.draining:
            raise APIError("the arena is ending", status=503)
        try:
            return json_response(self.arena.begin(prompt).view())
        except Refused as error:
            raise APIError(str(error), status=409) from None

    async def _events(self, request: Request) -> Response:
        battle = self._battle(request)
        return StreamingResponse(self._told(battle), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-store"})

    async def _told(self, battle: Battle) -> AsyncIterator[str]:
        """The battle, pieces of its replies, and the battle as it is in the end, as server-sent events."""
        yield event({"battle": battle.view()})
        async for pieces in battle.follow(WATCH_SECONDS):
            for side, text in pieces:
                yield event({"side": side, "text": text})
            if self.draining:
                return
        yield event({"battle": battle.view()})

    async def _vote(self, request: Request) -> Response:
        battle, asked = self._battle(request), await read_fields(request, MOST_BYTES, ("winner", "judge"))
        winner, judge = asked.get("winner"), text_of(asked, "judge")
        if not isinstance(winner, str) or winner not in WINNERS:
            raise APIError(f"winner: expected one of {', '.join(WINNERS)}", "winner")
        if len(judge) > LONGEST_NAME:
            raise APIError(f"judge: {len(judge)} characters, expected at most {LONGEST_NAME}", "judge")
        try:
            return json_response(self.arena.vote(battle.id, winner, judge.strip()).view())
        except Refused as error:
            raise APIError(str(error), status=409) from None
        except OSError as error:
            raise APIError(f"the vote can't be written down, and doesn't count: {error.strerror}", status=507) from None

    async def _skip(self, request: Request) -> Response:
        await read_fields(request, MOST_BYTES, ())
        return json_response(self.arena.skip(self._battle(request).id).view())

    async def _ratings(self, request: Request) -> Response:
        async with self._rating:  # for all who wait at once
            votes = list(self.arena.votes)
            if self._rated[0] != len(votes):
                self._rated = len(votes), await asyncio.to_thread(rated, votes, np.random.default_rng(self.seed))
        return json_response(self._rated[1])

    async def _votes(self, request: Request) -> Response:
        return download(lmsys_rows(self.arena.votes), "votes.json")

    def _battle(self, request: Request) -> Battle:
        try:
            return self.arena.find(request.path_params["id"])
        except Gone as error:
            raise APIError(str(error), status=404) from None


def rated(votes: list[dict], rng: np.random.Generator) -> dict:
    """What the page shows of the ratings: rows and a plot, or why there are none."""
    try:
        ratings = rate(votes, rng)
    except ValueError as error:  # NotConnected as well
        return {"votes": len(votes), "why": str(error)}
    rows = [{"model": row.model, "rating": row.rating, "low": row.low, "high": row.high, "votes": row.n_votes}
            for row in ratings.rows]
    notes = table(ratings).splitlines()[1 + len(rows) :]  # what stands below its head and its rows
    return {"votes": len(votes), "rows": rows, "one_sided": ratings.one_sided, "notes": notes,
            "plot": plot_as_url(ratings)}


def plot_as_url(ratings: Ratings) -> str:
    """The plot as a data: URL, the only kind of image that pages may show; "" without matplotlib."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ratings.png"
        if not plot_ratings(ratings, path):
            return ""
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
