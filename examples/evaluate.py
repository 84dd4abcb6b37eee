"""Ask a model the questions of public measures, through EleutherAI's harness, alone or beside another model.

Data sets come from the Hugging Face hub and its cache, or from a folder (--data-dir), or are the small samples that
ship (--sample). Answers are kept in the output folder, so that the same command goes on where it was interrupted.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyft import cli, read_entries
from tinyft.adapters import is_adapter
from tinyft.data.prompts import PROMPT_STYLES
from tinyft.evaluation.alpaca_eval import read_instructions, write_outputs
from tinyft.evaluation.measures import MEASURES, sample_tasks
from tinyft.evaluation.sandbox import describe
from tinyft.files import make_writable_folder, one_line, write_text
from tinyft.hub import find_model, name_of
from tinyft.inference.engine import load_engine

TEST_ITEMS = Path(__file__).parent / "data" / "test_items.json"
SAMPLES = Path(__file__).parent / "evaluation" / "samples"
EXAMPLES = """\
  python examples/evaluate.py --model runs/tiny-world/model --compare weights/tiny-world --sample
  python examples/evaluate.py --model gpt2 --tasks hellaswag,lambada --limit 200
  python examples/evaluate.py --model runs/mine/model --tasks mmlu --num-fewshot 5 --data-dir my-data
  python examples/evaluate.py --model runs/mine/model --tasks humaneval --run-untrusted-code
  python examples/evaluate.py --model runs/mine/model --alpaca-eval outputs.json --alpaca-data alpaca_eval.json
  python examples/evaluate.py --list
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="a model folder, an adapter's, or a GPT-2 on the Hugging Face hub")
    add("--compare", metavar="FOLDER", help="another one, such as the model before it was tuned")
    add("--base-model", metavar="FOLDER",
        help="where one of them is an adapter: the model that it belongs to (default: the one that the adapter names)")
    add("--tasks", metavar="NAME,...", help="measures (--list shows them), or any tasks of the harness")
    add("--sample", action="store_true",
        help="with the small samples that ship: shows that all of it runs, and is no measure of anything")
    add("--limit", type=cli.positive_int, metavar="N", help="ask only the first N questions of each task")
    add("--num-fewshot", type=cli.not_negative_int, metavar="N",
        help="show N examples before each question (default: as the task has it)")
    add("--data-dir", type=Path, metavar="FOLDER",
        help="read data sets from here instead of the hub: owner/name/configuration/test.jsonl and so on")
    add("--apply-chat-template", action="store_true",
        help="ask as in a conversation, in the model's prompt style, with examples as turns")
    add("--prompt-style", metavar="STYLE", help=f"for that: {', '.join(PROMPT_STYLES)}, or a file with a chat template "
        "(default: what the model's folder says, or else alpaca)")
    add("--system", metavar="TEXT", help="a system message before each question")
    add("--alpaca-eval", type=cli.file_to_write, metavar="FILE",
        help="answer AlpacaEval's instructions, and write that as alpaca_eval reads it (and of --compare, beside it)")
    add("--alpaca-data", type=Path, metavar="FILE",
        help="alpaca_eval.json, or any list of objects with instruction and dataset (default: from the hub)")
    add("--run-untrusted-code", action="store_true",
        help="run programs that the model has written (HumanEval), in a sandbox; what it holds is shown first")
    add("--weights", choices=("float32", "bfloat16", "int8"), default="float32", help="how weights are kept in memory")
    add("--output-dir", type=Path, default=Path("evaluations"), metavar="FOLDER",
        help="for results, and answers so far")
    add("--seed", type=cli.not_negative_int, default=1234, metavar="N",
        help="of examples and of replies that are drawn; the default is the harness' own")
    add("--list", action="store_true", help="show the measures and end")
    parser.add_threads()
    options = parser.parse_args()
    if not options.list and options.model is None:
        parser.error("--model is missing")
    if not (options.list or options.tasks or options.sample or options.alpaca_eval):
        parser.error("expected --tasks, --sample, --alpaca-eval or --list")
    if options.sample and options.data_dir:
        parser.error("--sample has data of its own; leave out --data-dir")
    if options.tasks is not None and not options.tasks.strip(", "):
        parser.error("--tasks names no task")
    if options.prompt_style and not (options.apply_chat_template or options.alpaca_eval):
        parser.error("--prompt-style is for --apply-chat-template and --alpaca-eval")
    if options.alpaca_eval and options.alpaca_data and options.alpaca_eval.resolve() == options.alpaca_data.resolve():
        parser.error("--alpaca-eval would overwrite --alpaca-data; name another file")
    return options


def main() -> None:
    """Ask, compare, write down."""
    options = parse_arguments()
    if options.list:
        print("\n".join(f"{measure.name:12}{measure.asks}" for measure in MEASURES.values()))
        return
    threads = cli.use_threads(options.threads)
    if options.data_dir and not options.data_dir.is_dir():
        raise ValueError(f"--data-dir {options.data_dir}: there is no such folder")
    models, wanted = [model for model in (options.compare, options.model) if model], chosen_tasks(options)
    folders, names = [find_model(model) for model in models], names_for(models)
    if options.base_model and not any(map(is_adapter, folders)):
        what = "is no adapter" if len(models) == 1 else "are no adapters"
        raise ValueError(f"--base-model {options.base_model}: {' and '.join(models)} {what}; leave it out")
    if options.alpaca_eval:
        answer_alpaca_eval(folders, names, options)
        if not (options.tasks or options.sample):
            return
    harness = import_harness()
    manager, tasks = harness.find_tasks(wanted)
    found = []
    if options.run_untrusted_code:
        print(describe())
    print(f"tasks     {', '.join(tasks) if len(tasks) <= 8 else f'{len(tasks)} of the harness'}")
    for folder, name in zip(folders, names, strict=True):
        found.append(evaluate(harness, manager, tasks, folder, name, threads, options))
    report(found, names, options.output_dir)


def import_harness():
    """The part of tinyft that needs lm-eval."""
    # Hugging Face's `evaluate` has this script's name, and this script's folder is searched before all others.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]
    try:
        from tinyft.evaluation import harness
    except ImportError as error:
        raise ValueError(f"evaluating needs {error.name}, or a newer one: pip install -e '.[evaluate]'") from None
    return harness


def chosen_tasks(options) -> list[str]:
    """The names that are meant by --tasks and --sample."""
    names = [name.strip() for name in (options.tasks or "").split(",") if name.strip()]
    if not options.sample:
        return names
    samples = sample_tasks()
    for name in names:
        if name not in MEASURES and name not in samples:
            raise ValueError(f"--sample --tasks {name}: there are samples for {', '.join(MEASURES)}")
    found = [task for name in names for task in (MEASURES[name].sample if name in MEASURES else (name,))]
    return found or list(samples)


def names_for(models: Sequence[str]) -> list[str]:
    """What the models are called: their folders' names, or where both have one name, the folders as they were given."""
    names = [name_of(model) for model in models]
    if len(set(names)) == len(names):
        return names
    if len(set(models)) == len(models):
        return [model.rstrip("/") for model in models]
    raise ValueError(f"--compare {models[0]}: that is --model; name another one")


def base_for(folder: Path, options) -> str | None:
    """--base-model for an adapter, nothing for a whole model."""
    return options.base_model if is_adapter(folder) else None


def folder_of(name: str) -> str:
    """What a model's folder of results is called."""
    return name.strip("./").replace("/", "--")


def evaluate(harness, manager, tasks: Sequence[str], folder: Path, name: str, threads: int, options) -> dict[str, Any]:
    """Ask one model all of it, and write down what it said."""
    from tinyft.evaluation.humaneval import write_samples
    from tinyft.evaluation.known_answers import KnownAnswers, fingerprint
    from tinyft.evaluation.lm_eval import ENGINE, TinyftLM

    engine, tokenizer = load_engine(folder, weights=options.weights, base_model=base_for(folder, options), **ENGINE)
    print(f"model     {name}: {folder}, context {engine.config.n_positions}, weights in {options.weights}, "
          f"{threads} threads", flush=True)
    known = KnownAnswers(options.output_dir / "answers" / f"{fingerprint(engine, tokenizer)}.sqlite")
    model = TinyftLM(engine, tokenizer, name=name, prompt_style=options.prompt_style, known=known, seed=options.seed)
    settings = harness.Options(
        limit=options.limit, num_fewshot=options.num_fewshot, data_dir=SAMPLES if options.sample else options.data_dir,
        apply_chat_template=options.apply_chat_template, system_instruction=options.system, seed=options.seed,
        run_untrusted_code=options.run_untrusted_code)
    try:
        results = harness.run_tasks(model, tasks, manager, settings)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", flush=True)
        raise
    if known.n_found:
        print(f"          {known.n_found} answers were known from an earlier run")
    for line in harness.what_was_ignored(results, options.num_fewshot):
        print(f"examples  {line}")
    for line in harness.what_was_cut(model.notes):
        print(f"cut       {line}")
    write_results(results, options.output_dir / folder_of(name))
    programs = harness.programs_of(results)
    if programs and not options.run_untrusted_code:
        path = options.output_dir / folder_of(name) / "humaneval.jsonl"
        write_samples(path, programs)
        print(f"programs  {len(programs)} are in {path}, and none has run; --run-untrusted-code runs them in a sandbox")
    return results


def answer_alpaca_eval(folders: Sequence[Path], names: Sequence[str], options) -> None:
    """Write each model's answers to AlpacaEval's instructions: the last one's to --alpaca-eval, another's beside it."""
    entries = alpaca_instructions(options)
    for folder, name in zip(folders, names, strict=True):
        path = options.alpaca_eval
        if name != names[-1]:
            path = path.with_name(f"{path.stem}-{folder_of(name)}{path.suffix}")
        engine, tokenizer = load_engine(folder, weights=options.weights, base_model=base_for(folder, options))
        written = write_outputs(engine, tokenizer, entries, path, name, limit=options.limit,
                                prompt_style=options.prompt_style, what=f"{name}: AlpacaEval")
        print(f"alpaca    {path}: {written}", flush=True)


def alpaca_instructions(options) -> list[dict[str, str]]:
    """What is asked: a file's instructions, or those of the hub; with --sample, questions of our own test items."""
    if options.alpaca_data:
        return read_instructions(options.alpaca_data)
    if options.sample:
        asked = [entry for entry in read_entries(TEST_ITEMS) if not entry.input]
        return [{"instruction": entry.instruction, "dataset": entry.family} for entry in asked[:: len(asked) // 20]]
    try:
        from huggingface_hub import hf_hub_download

        return read_instructions(hf_hub_download("tatsu-lab/alpaca_eval", "alpaca_eval.json", repo_type="dataset"))
    except ImportError:
        raise ValueError("AlpacaEval's instructions are on the hub: pip install huggingface_hub, or name a file with "
                         "--alpaca-data") from None
    except Exception as error:  # whatever the hub's library and its network raise
        raise ValueError(f"AlpacaEval's instructions can't be fetched ({one_line(error)}); name a file of them with "
                         "--alpaca-data") from error


def write_results(results: dict[str, Any], folder: Path) -> None:
    """results.json as the harness writes it, and each task's questions and answers as lines."""
    from lm_eval.utils import handle_non_serializable

    make_writable_folder(folder)
    for old in [*folder.glob("samples_*.jsonl"), folder / "humaneval.jsonl"]:  # of other tasks, asked earlier
        old.unlink(missing_ok=True)
    rest = {key: value for key, value in results.items() if key != "samples"}
    write_text(folder / "results.json", json.dumps(rest, indent=2, default=handle_non_serializable) + "\n")
    for task, samples in results.get("samples", {}).items():
        write_text(folder / f"samples_{task}.jsonl",
                   "".join(json.dumps(sample, default=handle_non_serializable) + "\n" for sample in samples))


def report(found: Sequence[dict[str, Any]], names: Sequence[str], folder: Path) -> None:
    """Table and chart."""
    from tinyft.evaluation.table import plot, rows_of, table

    rows = rows_of(found)
    print(f"\n{table(rows, names)}\n")
    saved = [f"{folder_of(name)}/results.json" for name in names]
    try:
        saved += ["scores.png"] if plot(rows, names, folder / "scores.png") else []
    except ImportError:
        print("no chart: it needs matplotlib (pip install matplotlib)")
    print(f"saved to {folder}: {', '.join(saved)}; each question with its answer is in "
          f"{folder_of(names[-1])}/samples_*.jsonl")


if __name__ == "__main__":
    cli.run(main)
