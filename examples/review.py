"""Review a model's replies: read each beside the expected one, and mark it right, half right or wrong.

A page in the browser shows one reply at a time. Marks and notes are saved at once in a file beside the replies.
"""

import sys
from pathlib import Path

from tinyft import cli
from tinyft.evaluation.journal import Journal
from tinyft.evaluation.review import Review, marks_path, read_replies, summary_table
from tinyft.files import write_json

try:
    from tinyft.inference import web
except ModuleNotFoundError as error:
    if error.name not in ("starlette", "uvicorn"):
        raise
    web = None

EXAMPLES = """\
  python examples/review.py runs/tiny-world/replies.json
  python examples/review.py runs/tiny-world/replies.json --export marks.json
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("replies", type=Path, metavar="FILE",
        help="replies.json, as examples/finetune_alpaca.py leaves it, or what examples/generate.py --prompts writes")
    add("--reply", metavar="KEY",
        help="where in an entry the reply stands, such as model_response_before (default: model_response, or reply)")
    add("--marks", type=Path, metavar="FILE", help="where marks are kept (default: FILE.marks.jsonl beside FILE.json)")
    add("--port", type=cli.not_negative_int, default=8002, metavar="N", help="0 takes one that is free")
    add("--export", type=cli.file_to_write, metavar="FILE",
        help="write the marks there as a JSON list, print how many replies are right, and end")
    return parser.parse_args()


def main() -> None:
    """Read, listen, keep marks; or export those that there are."""
    options = parse_arguments()
    if options.port > 65535:
        raise ValueError(f"--port {options.port}: expected at most 65535")
    replies = read_replies(options.replies, options.reply)
    path = options.marks or marks_path(options.replies)
    if options.export and not path.exists():
        raise ValueError(f"{path}: there are no marks yet; review the replies first, without --export")
    if web is None and not options.export:
        raise ValueError("the review needs starlette and uvicorn: pip install -e '.[arena]'")
    journal = Journal(path)
    if journal.repaired:
        print(journal.repaired, file=sys.stderr)
    review = Review(replies, journal)
    if options.export:
        marks = review.exported()
        write_json(options.export, marks)
        print(summary_table(review.summary()))
        print(f"{len(marks)} mark{'s' * (len(marks) != 1)} written to {options.export}")
        return
    from tinyft.evaluation.review_server import ReviewServer

    listener = web.listen("127.0.0.1", options.port)
    others = f"; {review.n_others} of other replies are left alone" if review.n_others else ""
    print(f"replies   {options.replies}: {len(replies)}\nmarks     {path}: {len(review.exported())} so far{others}")
    ready = f"serving   http://127.0.0.1:{listener.getsockname()[1]} (Ctrl-C ends)"
    server = ReviewServer(review, str(options.replies))
    if web.serve_until_signal(server, listener, lambda: print(ready, flush=True)):
        raise KeyboardInterrupt


if __name__ == "__main__":
    cli.run(main)
