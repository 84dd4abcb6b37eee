"""Run OpenAI Evals on a model, on this machine alone, and show its final reports as a table.

Makes an environment for Evals if there is none, serves the model, lets oaieval ask it over OpenAI's protocol, and stops
the server.
"""

import re
from pathlib import Path

from external import (
    HERE,
    Harness,
    add_options,
    client_environment,
    make_environment,
    run_logged,
    safe_name,
    serving,
    table,
)

from tinyft import cli
from tinyft.files import make_writable_folder, read_json_lines, read_text, to_json, write_text
from tinyft.hub import find_model

EVALS = Harness("evals==3.0.1.post1", HERE / "evals")
SERVED_AS = "tinyft"  # the name in registry/completion_fns
EXAMPLES = """\
  python examples/evaluation/run_evals.py runs/tiny-world/model
  python examples/evaluation/run_evals.py gpt2 --evals tinyft-facts --samples my-samples.jsonl
  python examples/evaluation/run_evals.py runs/mine/model --evals test-includes first-letters
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("model", metavar="FOLDER", help="a model folder, or a GPT-2 on the Hugging Face hub")
    add("--evals", nargs="*", default=["tinyft-facts", "tinyft-facts-includes"], metavar="EVAL",
        help="names in evals/registry, or in the registry that comes with Evals (default: %(default)s)")
    add("--samples", nargs="*", type=Path, default=[], metavar="FILE.jsonl",
        help="your own: lines with input, a list of messages or a text, and ideal, what the reply is to begin with")
    add("--max-samples", type=cli.positive_int, metavar="N", help="of each eval")
    add_options(parser, EVALS, "runs/evals")
    return parser.parse_args()


def main() -> None:
    """Prepare, ask, show."""
    options = parse_arguments()
    cli.use_threads(options.threads)
    folder = find_model(options.model).resolve()
    output = make_writable_folder(options.output_dir).resolve()
    names = [*options.evals, *register(options.samples, output / "registry")]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} is named twice; its second record would take the place of the first")
    if not names:
        raise ValueError("nothing to run; name some --evals or --samples")
    commands = make_environment(EVALS, options.environment)
    rows, records = [], make_writable_folder(output / "records")
    with serving(folder, SERVED_AS, output / "server.log", options.threads) as url:
        for name in names:
            print(f"asking    {name}; oaieval's words are in {output}/{name}.log", flush=True)
            record = records / f"{name}.jsonl"
            if any(record == path.resolve() for path in options.samples):
                raise ValueError(f"{record}: the record of its run would take its place; keep samples elsewhere")
            record.unlink(missing_ok=True)
            limit = ["--max_samples", options.max_samples] if options.max_samples else []
            run_logged([commands / "oaieval", f"{SERVED_AS}-chat", name, "--registry_path", EVALS.folder / "registry",
                        "--registry_path", output / "registry", "--record_path", record, *limit],
                       output / f"{name}.log", client_environment(url, PYTHONPATH=str(EVALS.folder)))
            rows.append([name, *report(record)])
    print(f"results   every sample with its reply in {records}\n")
    print(table(["eval", "samples", "accuracy", "standard error", "tokens written"], rows))


def register(samples: list[Path], registry: Path) -> list[str]:
    """Make an eval `match` of each file of samples; their names, which are those of the files.

    ValueError for a line that is no sample, or a name that another file or one of our evals has.
    """
    specs, shipped = {}, shipped_evals()
    for path in samples:
        for number, sample in read_json_lines(path):
            if not isinstance(sample, dict) or not {"input", "ideal"} <= sample.keys():
                raise ValueError(f"{path}, line {number}: expected an object with input and ideal")
        name = safe_name(path.stem)
        if name in specs or name in shipped:
            other = "another file's" if name in specs else "also that of an eval in evals/registry"
            raise ValueError(f"{path}: the name of its eval, {name}, is {other}; rename the file")
        specs[name] = {"id": f"{name}.own.v1", "metrics": ["accuracy"]}
        specs[f"{name}.own.v1"] = {"class": "evals.elsuite.basic.match:Match",
                                   "args": {"samples_jsonl": str(path.resolve())}}
    (registry / "evals").mkdir(parents=True, exist_ok=True)
    write_text(registry / "evals" / "own.yaml", to_json(specs))  # JSON is YAML
    return [name for name in specs if not name.endswith(".own.v1")]


def shipped_evals() -> set[str]:
    """Names in evals/registry."""
    files = (EVALS.folder / "registry" / "evals").glob("*.yaml")
    return {name for path in files for name in re.findall(r"^([\w.-]+):", read_text(path), re.MULTILINE)}


def report(record: Path) -> list[str]:
    """Samples, accuracy, its standard error and tokens, from oaieval's record of a run."""
    events = [event for _, event in read_json_lines(record)]
    final = next((event["final_report"] for event in events if "final_report" in event), None)
    if final is None or "accuracy" not in final:
        raise ValueError(f"{record}: no final report with an accuracy; this script shows evals that have one")
    samples = len({event["sample_id"] for event in events if event.get("type") == "match"})
    deviation, tokens = final.get("boostrap_std"), final.get("usage_completion_tokens")  # so spelled
    return [str(samples), f"{final['accuracy']:.1%}", "" if deviation is None else f"{deviation:.1%}",
            "" if tokens is None else f"{tokens:,}"]


if __name__ == "__main__":
    cli.run(main)
