"""Have a model judge replies: a score from 0 to 100 of each, or which of two is better.

The judge is any model behind OpenAI's protocol or Ollama's, such as one that serve.py serves. What it says is kept as
it comes, so that the same command goes on where it was interrupted, and asks nothing twice; a judge with other weights
at the same address and by the same name is only asked with --fresh.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from tinyft import cli
from tinyft.evaluation.agreement import (
    MARKS,
    OUTCOMES,
    THRESHOLDS,
    agreement,
    agreement_lines,
    mark_of,
    read_judgements,
    read_marks,
)
from tinyft.evaluation.apis import EndpointError
from tinyft.evaluation.endpoints import Endpoint, key_from_environment
from tinyft.evaluation.journal import Journal
from tinyft.evaluation.judge import Judge, check_answer
from tinyft.evaluation.judge_report import (
    PLOT_SUFFIXES,
    check_drawing,
    plot_comparisons,
    plot_scores,
    report_comparisons,
    report_scores,
)
from tinyft.evaluation.reply_files import check_same_questions, read_answered
from tinyft.files import read_text, write_json

EXAMPLES = """\
  python examples/judge.py runs/mine/replies.json --judge http://localhost:11434 --judge-model llama3.1
  OPENAI_API_KEY=... python examples/judge.py runs/mine/replies.json --judge https://api.openai.com/v1 \\
      --judge-model gpt-4o-mini --parallel 8 --plot scores.png
  python examples/judge.py runs/mine/replies.json --judge http://localhost:8000 --compare runs/other/replies.json
  python examples/judge.py runs/mine/replies.json --judge http://localhost:11434 --marks marks.json --rubric rubric.txt
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("replies", type=Path, metavar="FILE",
        help="replies.json of finetune_alpaca.py, what generate.py writes for --prompts, or AlpacaEval's model outputs")
    add("--judge", required=True, metavar="URL", help="where the judge is asked")
    add("--judge-model", metavar="NAME", help="its name there (default: the only one that is served)")
    add("--api", choices=("auto", "openai", "ollama"), default="auto",
        help="the protocol; auto: OpenAI's for a URL that ends in /v1, Ollama's for port 11434, else what is found")
    add("--api-key", metavar="KEY", help="other users of this machine can't see it in the environment variable "
        "OPENAI_API_KEY, but can on the command line; the variable is sent over plain http to no other machine")
    add("--reply", metavar="KEY", help="the key of the replies to judge (default: model_response, or reply)")
    add("--before", type=Path, metavar="FILE",
        help="replies of another model to the same questions, such as the untuned one: scored as well, with the "
             "difference (default: those under model_response_before, where there are any)")
    add("--compare", type=Path, metavar="FILE", help="ask which reply is better, that of FILE or that of --compare")
    add("--rubric", type=Path, metavar="FILE", help="a text that says what counts, in place of ours")
    add("--marks", type=Path, metavar="FILE", help="a person's marks, as review.py exports them, to agree with")
    add("--thresholds", type=cli.not_negative_float, nargs=2, default=THRESHOLDS, metavar=("HALF", "RIGHT"),
        help="the scores from which on a reply counts as half right, and as right, beside marks (default: 25 75)")
    add("--agree-with", type=Path, metavar="FILE", help="another judge's --output of the same replies, to agree with")
    add("--limit", type=cli.positive_int, metavar="N", help="judge only the first N")
    add("--parallel", type=cli.positive_int, default=4, metavar="N", help="questions that are under way at a time")
    add("--attempts", type=cli.positive_int, default=3, metavar="N", help="how often to ask for what can't be read")
    add("--max-new-tokens", type=cli.positive_int, default=64, metavar="N",
        help="longest answer; a judge that thinks before it answers needs some thousand")
    add("--timeout", type=cli.positive_float, default=120.0, metavar="X", help="seconds that the judge may be silent")
    add("--seed", type=cli.not_negative_int, default=123, metavar="N", help="sent along, and of the intervals")
    add("--output", type=cli.file_to_write, metavar="FILE",
        help="where judgements and summary go (default: judgements.json beside the replies, or comparisons.json)")
    add("--cache", type=cli.file_to_write, metavar="FILE",
        help="where all that the judge says is kept, by its address and name: --fresh if it has other weights now "
             "(default: judge_cache.jsonl beside the output)")
    add("--fresh", action="store_true", help="ask also what is in the cache; the new answers count from then on")
    add("--plot", type=cli.file_to_write, metavar="FILE", help="draw the scores or outcomes, as .png, .svg or .pdf")
    return parser.parse_args()


def check(options) -> None:
    """ValueError for options that don't go together; defaults that depend on others."""
    if options.compare and (options.before or options.marks):
        raise ValueError("--compare asks which reply is better; leave out --before and --marks, which are for scores")
    if options.thresholds[0] > options.thresholds[1]:
        raise ValueError("--thresholds: the first is above the second, expected the score for half right first")
    if options.plot:
        if options.plot.suffix.lower() not in PLOT_SUFFIXES:
            raise ValueError(f"--plot {options.plot}: expected a name that ends in {', '.join(PLOT_SUFFIXES)}")
        check_drawing()
    options.output = options.output or options.replies.parent / ("comparisons.json" if options.compare else
                                                                 "judgements.json")
    options.cache = options.cache or options.output.parent / "judge_cache.jsonl"
    read = [path for path in (options.replies, options.before, options.compare, options.marks, options.rubric,
                              options.agree_with) if path]
    written = [path for path in (options.output, options.cache, options.plot) if path]
    for path in written:
        if [other.resolve() for other in read + written].count(path.resolve()) > 1:
            raise ValueError(f"{path} would be written, and is named for something else as well; choose another name")


async def ask(options, journal: Journal, work):
    """What `work` makes with the judge, and the settings that it was asked with."""
    key, said = (options.api_key, "") if options.api_key else key_from_environment(options.judge)
    if said:
        print(f"judge     {said}", flush=True)
    async with Endpoint(options.judge, options.judge_model, options.api, key, options.timeout) as endpoint:
        judge = Judge(endpoint, journal, seed=options.seed, max_tokens=options.max_new_tokens,
                      attempts=options.attempts, parallel=options.parallel, fresh=options.fresh)
        known = len(journal.records)
        try:
            found = await work(judge)
        except EndpointError as error:
            kept = (f"; {len(journal.records)} answers are kept in {options.cache}, and the same command "
                    + ("begins anew" if options.fresh else "goes on"))
            raise ValueError(f"{error}{kept if len(journal.records) > known else ''}") from None
        print(f"judge     {endpoint.model} at {endpoint.root}: {judge.asked} answers, kept in {options.cache}"
              + f"; {judge.known} questions were known from there" * bool(judge.known))
        if endpoint.left_out:
            print(f"          it doesn't take {' and '.join(sorted(endpoint.left_out))}, which was left out")
        return found, {"judge": endpoint.url, "model": endpoint.model, "temperature": 0.0, "seed": options.seed,
                       "max_new_tokens": options.max_new_tokens, "attempts": options.attempts,
                       "left_out": sorted(endpoint.left_out), "replies": str(options.replies)}


def read_all(options):
    """Questions with replies, the same with the others' replies or None, the rubric or None, and marks."""
    items, others = read_answered(options.replies, options.reply), None
    if other_path := options.before or options.compare:
        others = check_same_questions(options.replies, items, other_path, read_answered(other_path))
    rubric = read_text(options.rubric) if options.rubric else None
    if rubric is not None and not rubric.strip():
        raise ValueError(f"{options.rubric} is empty, expected a text that says what counts")
    marks = read_marks(options.marks, items) if options.marks else {}
    return items[: options.limit], others and others[: options.limit], rubric, marks


def replies_by_column(items, others) -> dict[str, list[str]]:
    """What is to be scored: the replies, beside those of the model before it was tuned where there are any."""
    after = [item.reply for item in items]
    if others:
        return {"before": [other.reply for other in others], "after": after}
    if all(item.before is not None for item in items):
        return {"before": [item.before for item in items], "after": after}
    return {"score": after}


def score(options, items, others, rubric, marks, journal: Journal) -> tuple[dict, list[str], Callable[[], None]]:
    """Scores of the replies; what is to be written, what is to be shown, and what draws them."""
    columns = replies_by_column(items, others)
    asked = [(item, reply) for replies in columns.values() for item, reply in zip(items, replies, strict=True)]
    verdicts, settings = asyncio.run(ask(options, journal, lambda judge: judge.scores(asked, rubric)))
    if all(verdict.refused for verdict in verdicts):
        raise ValueError(f"the judge refused all {len(verdicts)} questions: {verdicts[0].refused}")
    found = {name: verdicts[place * len(items):][:len(items)] for place, name in enumerate(columns)}
    judgements = [{"index": index, "column": name, "family": item.family, "question": item.turns[-1].content,
                   "reply": columns[name][index], "score": verdict.value, "said": verdict.said,
                   "refused": verdict.refused}
                  for name in columns for index, (item, verdict) in enumerate(zip(items, found[name], strict=True))]
    summary, lines = report_scores(items, found, options.seed)

    def as_marks(scores) -> list[str | None]:
        return [None if value is None else mark_of(value, options.thresholds) for value in scores]

    if options.marks:
        theirs = [marks.get(index) for index in range(len(items))]
        last = as_marks(verdict.value for verdict in verdicts[-len(items):])  # people mark the tuned model's replies
        summary["marks"] = agreement(last, theirs, MARKS)
        lines += ["", *agreement_lines(summary["marks"], f"the marks in {options.marks}")]
    if options.agree_with:
        theirs = as_marks(read_judgements(options.agree_with, "scores", judgements))
        summary["other_judge"] = agreement(as_marks(verdict.value for verdict in verdicts), theirs, MARKS)
        lines += ["", *agreement_lines(summary["other_judge"], str(options.agree_with))]
    settings |= {"thresholds": list(options.thresholds), "rubric": rubric}
    return ({"kind": "scores", "settings": settings, "summary": summary, "judgements": judgements}, lines,
            lambda: plot_scores(options.plot, found, f"scores by {settings['model']}"))


def compare(options, items, others, rubric, journal: Journal) -> tuple[dict, list[str], Callable[[], None]]:
    """Which replies are better; what is to be written, what is to be shown, and what draws it."""
    compared, settings = asyncio.run(ask(options, journal, lambda judge: judge.comparisons(items, others, rubric)))
    names = (items[0].name or str(options.replies), others[0].name or str(options.compare))
    judgements = [{"index": index, "family": item.family, "question": item.turns[-1].content, "reply": item.reply,
                   "other_reply": other.reply, "outcome": pair.outcome}
                  | {order: verdict and {"choice": verdict.value, "said": verdict.said, "refused": verdict.refused}
                     for order, verdict in (("in_order", pair.in_order), ("exchanged", pair.exchanged))}
                  for index, (item, other, pair) in enumerate(zip(items, others, compared, strict=True))]
    summary, lines = report_comparisons(items, compared, names)
    if options.agree_with:
        theirs = read_judgements(options.agree_with, "comparisons", judgements)
        summary["other_judge"] = agreement([pair.outcome for pair in compared], theirs, OUTCOMES)
        lines += ["", *agreement_lines(summary["other_judge"], str(options.agree_with))]
    settings |= {"compare": str(options.compare), "rubric": rubric}
    families = summary["families"] | {"all": summary["all"]}
    return ({"kind": "comparisons", "settings": settings, "summary": summary, "judgements": judgements}, lines,
            lambda: plot_comparisons(options.plot, families, f"{names[0]} against {names[1]}"))


def main() -> None:
    """Read, ask, count, write."""
    options = parse_arguments()
    check(options)
    items, others, rubric, marks = read_all(options)
    print(f"replies   {options.replies}: {len(items)}" + f" beside {options.compare or options.before}" * bool(others),
          flush=True)
    journal = Journal(options.cache, check_answer)
    if journal.repaired:
        print(f"          {journal.repaired}")
    try:
        if options.compare:
            found, lines, draw = compare(options, items, others, rubric, journal)
        else:
            found, lines, draw = score(options, items, others, rubric, marks, journal)
    finally:
        journal.close()
    write_json(options.output, found)
    if options.plot:
        draw()
    print("", *lines, "", f"saved to {options.output}" + f" and {options.plot}" * bool(options.plot), sep="\n")


if __name__ == "__main__":
    cli.run(main)
