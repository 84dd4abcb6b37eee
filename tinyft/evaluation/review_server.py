"""The page to review replies on, and what it asks for."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..inference.protocol import APIError
from ..inference.web import WebServer, download, json_response, page_response, read_fields, text_of
from .review import MARKS, Review

PAGE = Path(__file__).with_name("pages") / "review.html"
MOST_BYTES = 200_000  # of a body, and so of a note


class ReviewServer(WebServer):
    """A review behind HTTP, for this machine's own users. title: what the page calls it."""

    def __init__(self, review: Review, title: str):
        self.review, self.title = review, title
        super().__init__([
            Route("/", self._page), Route("/api/review", self._overview),
            Route("/api/replies/{index:int}", self._reply), Route("/api/marks", self._mark, methods=["POST"]),
            Route("/marks.json", self._marks),
        ])

    def close(self) -> None:
        """Let go of the file of marks."""
        self.review.journal.close()

    async def _page(self, request: Request) -> Response:
        return page_response(PAGE)

    async def _overview(self, request: Request) -> Response:
        replies = [{"family": reply.family, "mark": self.review.mark(reply.index).mark}
                   for reply in self.review.replies]
        return json_response({"title": self.title, "replies": replies, "summary": self.review.summary()})

    async def _reply(self, request: Request) -> Response:
        index = request.path_params["index"]
        if index >= len(self.review.replies):
            raise APIError(f"there is no reply {index}; there are {len(self.review.replies)}", status=404)
        reply, said = self.review.replies[index], self.review.mark(index)
        return json_response({
            "index": index, "entry": self.review.digest(index), "asked": reply.asked, "instruction": reply.instruction,
            "input": reply.input, "expected": reply.expected, "reply": reply.reply, "family": reply.family,
            "mark": said.mark, "note": said.note})

    async def _mark(self, request: Request) -> Response:
        """Keep a mark or a note or both. What isn't sent stays as it is: another page may have changed it."""
        asked = await read_fields(request, MOST_BYTES, ("index", "entry", "mark", "note"))
        index, mark = asked.get("index"), asked.get("mark")
        note = text_of(asked, "note") if "note" in asked else None
        if type(index) is not int or not 0 <= index < len(self.review.replies):
            raise APIError(f"index: expected a number from 0 to {len(self.review.replies) - 1}", "index")
        if asked.get("entry") != self.review.digest(index):
            raise APIError("the file of replies is another one than when this page was loaded; load it again",
                           "entry", status=409)
        if not asked.keys() & {"mark", "note"}:
            raise APIError("expected a mark or a note")
        if "mark" in asked and mark not in ("", *MARKS):
            raise APIError(f"mark: expected one of {', '.join(MARKS)}, or an empty text for none", "mark")
        try:
            self.review.set(index, mark, note)
        except OSError as error:
            raise APIError(f"it can't be written down, and doesn't count: {error.strerror}", status=507) from None
        return json_response({"mark": self.review.mark(index).mark, "indices": self.review.same_as(index),
                              "summary": self.review.summary()})

    async def _marks(self, request: Request) -> Response:
        return download(self.review.exported(), "marks.json")
