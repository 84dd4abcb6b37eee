"""Rank a model's answers against another's with AlpacaEval and a judge on this machine, without the network.

Makes an environment for AlpacaEval if there is none, and has the judge compare each pair of answers. The judge is a
server in OpenAI's protocol, or a model folder, which is served while it is asked. A GPT-2 can't judge; it only shows
that all parts fit.
"""

import csv
import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

from external import (
    HERE,
    Harness,
    add_options,
    client_environment,
    fill_in,
    make_environment,
    run_logged,
    safe_name,
    served_models,
    serving,
    table,
)

from tinyft import cli
from tinyft.evaluation.endpoints import key_from_environment
from tinyft.files import make_writable_folder, read_json, read_text, write_text
from tinyft.hub import find_model, name_of

ALPACA_EVAL = Harness("alpaca-eval==0.6.6", HERE / "alpaca_eval")
EXAMPLES = """\
  python examples/evaluation/run_alpaca_eval.py out.json --reference other.json --judge http://127.0.0.1:11434/v1 \\
      --judge-model llama3.1
  python examples/evaluation/run_alpaca_eval.py out.json --reference other.json --judge runs/judge/model
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("outputs", type=Path, metavar="OUTPUTS.json",
        help="a list of objects with instruction, output and generator, as evaluate.py --alpaca-eval writes it")
    add("--reference", type=Path, required=True, metavar="OUTPUTS.json", help="the same from the model to compare with")
    add("--judge", required=True, metavar="URL|FOLDER",
        help="a server's address, ending in /v1, or a model folder; OPENAI_API_KEY in the environment is the server's, "
             "and sent over https or within this machine")
    add("--api-key", metavar="KEY", help="the server's, in place of OPENAI_API_KEY; other users of this machine can "
        "see it on the command line")
    add("--judge-model", metavar="NAME", help="what the server calls the judge (default: the first that it lists)")
    add("--max-instructions", type=cli.positive_int, metavar="N", help="judge so many of them, drawn by AlpacaEval")
    add_options(parser, ALPACA_EVAL, "runs/alpaca-eval")
    return parser.parse_args()


def main() -> None:
    """Prepare, judge, show."""
    options = parse_arguments()
    cli.use_threads(options.threads)
    asked = count_shared(options.outputs, options.reference)
    output = make_writable_folder(options.output_dir).resolve()
    commands = make_environment(ALPACA_EVAL, options.environment)
    with judge_at(options, output) as (url, key):
        judge = options.judge_model or served_models(url, key)[0]["id"]
        configure(output / "annotator", judge)
        pairs = min(asked, options.max_instructions or asked)
        print(f"judging   {pairs} pairs by {judge}; AlpacaEval's words are in {output}/alpaca_eval.log", flush=True)
        verdicts = output / verdicts_name(judge, options.judge, output / "annotator")
        if "://" not in options.judge:
            verdicts.unlink(missing_ok=True)  # a folder's model may be another by now
        limit = ["--max_instances", options.max_instructions] if options.max_instructions else []
        try:
            run_logged([commands / "alpaca_eval", "evaluate", "--model_outputs", options.outputs.resolve(),
                        "--reference_outputs", options.reference.resolve(), "--annotators_config",
                        output / "annotator", "--caching_path", verdicts, "--output_path", output,
                        # All else would be fetched from the hub: leaderboards, and what corrects for length.
                        "--precomputed_leaderboard", "None", "--fn_metric", "get_winrate", "--sort_by", "win_rate",
                        *limit], output / "alpaca_eval.log", client_environment(url, key, IS_ALPACA_EVAL_2="False"))
        except ValueError:
            check_verdicts(verdicts, judge)
            raise
    print(f"results   every pair with its verdict in {output}/annotations.json\n")
    print(results(output))


def count_shared(outputs: Path, reference: Path) -> int:
    """How many instructions both files answer. ValueError where an entry lacks a field, or there are none."""
    instructions = []
    for path in (outputs, reference):
        entries = read_json(path)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: expected a list of objects with instruction, output and generator")
        for number, entry in enumerate(entries, 1):
            for name in ("instruction", "output"):
                if not isinstance(entry.get(name), str):
                    raise ValueError(f"{path}, entry {number}: {name} is missing or no text")
        instructions.append({entry["instruction"] for entry in entries})
    shared = len(instructions[0] & instructions[1])
    if not shared:
        raise ValueError(f"{outputs} and {reference} have no instruction in common; have both models answer the same")
    return shared


@contextmanager
def judge_at(options, output: Path):
    """The judge's address and key, as long as the block runs."""
    if "://" in options.judge:
        url, key = options.judge.rstrip("/"), options.api_key
        if not key:
            key, said = key_from_environment(url)
            if said:
                print(f"judge     {said}", flush=True)
        yield url, key or "none"
        return
    folder = find_model(options.judge).resolve()
    name = safe_name(options.judge_model or name_of(options.judge))
    options.judge_model = name
    with serving(folder, name, output / "server.log", options.threads) as url:
        yield url, "none"


def configure(target: Path, judge: str) -> None:
    """The annotator's two files, from those in alpaca_eval/annotator."""
    target.mkdir(exist_ok=True)
    template = ALPACA_EVAL.folder / "annotator"
    fill_in(template / "configs.yaml", target / "configs.yaml", judge=judge)
    write_text(target / "prompt.txt", read_text(template / "prompt.txt"))


def verdicts_name(judge: str, where: str, annotator: Path) -> str:
    """The file of a judge's verdicts, another for each judge, address or folder, prompt and way of asking."""
    asked = [judge, where.rstrip("/"), *(read_text(annotator / name) for name in ("prompt.txt", "configs.yaml"))]
    return f"verdicts-{safe_name(judge)}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}.json"


def check_verdicts(verdicts: Path, judge: str) -> None:
    """ValueError if the judge has decided no pair at all, on which AlpacaEval fails in words of its own."""
    pairs = read_json(verdicts) if verdicts.exists() else []
    if pairs and all(pair["preference"] not in (1, 2) for pair in pairs):
        raise ValueError(f"{judge} decided no pair: it is to reply 1 or 2, and never did; take a model that can judge")


def results(output: Path) -> str:
    """AlpacaEval's leaderboard, with the pairs on which the judge said neither 1 nor 2."""
    with open(output / "leaderboard.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    undecided = sum(pair["preference"] is None for pair in read_json(output / "annotations.json"))
    return table(["model", "win rate", "standard error", "won", "lost", "drawn", "undecided", "mean length"], [
        [row[""], f"{float(row['win_rate']):.1f}%", f"{float(row['standard_error']):.1f}%", row["n_wins"],
         row["n_wins_base"], row["n_draws"], undecided, row["avg_length"]] for row in rows])


if __name__ == "__main__":
    cli.run(main)
