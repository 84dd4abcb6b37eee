"""Review a model's replies: read each beside the expected one, and mark it right, half right or wrong.

A page in the browser shows one reply at a time. Marks and notes are saved at once in a file beside the replies.
"""

import sys
from pathlib import Path

from tinyft import cli
from tinyft.evaluation.journal import Journal, read_journal
from tinyft.evaluation.review import Review, check_mark, marks_path, read_replies, summary_table
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
    if options.export:
        return export(options, replies, path)
    if web is None:
        raise ValueError("the review needs starlette and uvicorn: pip install -e '.[arena]'")
    journal = Journal(path, check_mark)
    if journal.repaired:
        print(journal.repaired, file=sys.stderr)
    review = Review(replies, journal)
    from tinyft.evaluation.review_server import ReviewServer

    listener = web.listen("127.0.0.1", options.port)
    others = f"; {review.n_others} of other replies are left alone" if review.n_others else ""
    print(f"replies   {options.replies}: {len(replies)}")
    print(f"marks     {path}: {review.summary()[0]['marked']} so far{others}")
    ready = f"serving   http://127.0.0.1:{listener.getsockname()[1]} (Ctrl-C ends)"
    server = ReviewServer(review, str(options.replies))
    if web.serve_until_signal(server, listener, lambda: print(ready, flush=True)):
        raise KeyboardInterrupt


def export(options, replies, path: Path) -> None:
    """The marks as a JSON list, and the shares as text. The page may be open meanwhile."""
    for read in (options.replies, path):
        if options.export.resolve() == read.resolve():
            raise ValueError(f"--export {options.export}: this file is read, and would be lost; choose another name")
    if not path.exists():
        raise ValueError(f"{path}: there are no marks yet; review the replies first, without --export")
    review = Review(replies, read_journal(path, check_mark))
    rows, summary = review.exported(), review.summary()
    write_json(options.export, rows)
    print(summary_table(summary))
    n_marks = summary[0]["marked"]
    notes = f", and {len(rows) - n_marks} of notes alone," if len(rows) > n_marks else ""
    print(f"{n_marks} mark{'s' * (n_marks != 1)}{notes} written to {options.export}")


if __name__ == "__main__":
    cli.run(main)
