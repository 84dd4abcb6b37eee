"""Run HELM's MMLU scenario on a model, on this machine alone, and show HELM's table.

Makes an environment for HELM (crfm-helm) if there is none, serves the model, lets HELM ask it over OpenAI's protocol,
and stops the server.
"""

import shutil
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

from tinyft import cli, load_tokenizer
from tinyft.files import make_writable_folder, read_json
from tinyft.hub import find_model, name_of

HELM = Harness("crfm-helm==0.5.16", HERE / "helm")
EXAMPLES = """\
  python examples/evaluation/run_helm.py runs/tiny-world/model
  python examples/evaluation/run_helm.py gpt2 --data mmlu/data --subjects global_facts abstract_algebra
"""
# How a question is asked, by HELM's names: all answers under letters, after solved questions, or each answer by itself.
METHODS = {"letters": "multiple_choice_joint", "answers": "multiple_choice_separate_original"}
MEAN = "mean of all"  # HELM's row for the subjects together
COLUMNS = {"EM": "exact match", "# eval": "questions", "# train": "examples", "# prompt tokens": "prompt tokens"}


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("model", metavar="FOLDER", help="a model folder, or a GPT-2 on the Hugging Face hub")
    add("--name", help="what the table calls it (default: the folder's name, or that of the run that it is of)")
    add("--data", type=Path, default=HELM.folder / "data", metavar="FOLDER",
        help="questions as MMLU's archive has them: test/SUBJECT_test.csv and, for examples, dev/SUBJECT_dev.csv "
             "(default: a few of our own)")
    add("--subjects", nargs="+", metavar="SUBJECT", help="which of them (default: all)")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS),
        help="letters: five solved questions, then all answers under letters, as HELM does it by default; answers: the "
             "likeliest answer after the question alone")
    add("--max-questions", type=cli.positive_int, default=1000, metavar="N", help="of each subject")
    add_options(parser, HELM, "runs/helm")
    return parser.parse_args()


def main() -> None:
    """Prepare, ask, summarise, show."""
    options = parse_arguments()
    cli.use_threads(options.threads)
    folder = find_model(options.model).resolve()
    name = safe_name(options.name or name_of(options.model))
    subjects = find_subjects(options.data, options.subjects)
    output = make_writable_folder(options.output_dir).resolve()
    commands = make_environment(HELM, options.environment)
    lay_out_data(options.data, output)
    with serving(folder, name, output / "server.log", options.threads) as url:
        configure(output / "prod_env", folder, name, url)
        for method in options.methods:
            print(f"asking    {method}: {', '.join(subjects)}; HELM's words are in {output}/{method}.log", flush=True)
            entries = [f"mmlu:subject={subject},method={METHODS[method]},model=tinyft/{name}" for subject in subjects]
            forget_runs(output / "runs" / method, name)
            # Without its cache, which knows a reply by the model's name and would give those of an older model.
            run_logged([commands / "helm-run", "--run-entries", *entries, "--suite", method, "--output-path", output,
                        "--local-path", output / "prod_env", "--max-eval-instances", options.max_questions,
                        "--disable-cache", "--exit-on-error"], output / f"{method}.log", client_environment(url))
            summarise(commands, output, method)
    print(f"results   {output}/runs\n")
    print(results(output, options.methods))


def find_subjects(data: Path, wanted: list[str] | None) -> list[str]:
    """The subjects in a folder, or those of them that are wanted. ValueError where one isn't there."""
    found = sorted(path.name.removesuffix("_test.csv") for path in (data / "test").glob("*_test.csv"))
    missing = sorted(set(wanted or ()) - set(found))
    if missing or not found:
        raise ValueError(f"--data {data}: there is no test/{missing[0] if missing else 'SUBJECT'}_test.csv; expected "
                         "MMLU's folders dev and test, with a line for a question, its four answers and A, B, C or D")
    return wanted or found


def lay_out_data(data: Path, output: Path) -> None:
    """Link to the questions where HELM looks before it downloads its own. ValueError where it has some already."""
    link = output / "scenarios" / "mmlu" / "data"
    if link.exists() and not link.is_symlink():
        raise ValueError(f"{link}: HELM's own questions are there; choose another --output-dir (they can be "
                         "named as --data)")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(data.resolve(), target_is_directory=True)


def configure(target: Path, folder: Path, name: str, url: str) -> None:
    """HELM's three files about the model, from those in helm/prod_env."""
    target.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(folder)
    for template in sorted((HELM.folder / "prod_env").glob("*.yaml")):
        fill_in(template, target / template.name, deployment=f"local/{name}", model=f"tinyft/{name}", name=name,
                tokenizer=f"tinyft/{name}-gpt2", folder=str(folder), url=url,
                context=served_models(url)[0]["max_model_len"],
                end_of_text=tokenizer.decode([tokenizer.eot_token]))


def forget_runs(suite: Path, name: str) -> None:
    """Remove a model's earlier runs of a suite: of other subjects, or of other weights by the same name.

    HELM would count them in its tables and means. Other models' runs, and folders of another form, stay.
    """
    for folder in suite.glob("mmlu:*"):
        parts = folder.name.removeprefix("mmlu:").split(",")
        if folder.is_dir() and not folder.is_symlink() and f"model=tinyft_{name}" in parts:
            shutil.rmtree(folder)


def summarise(commands: Path, output: Path, method: str) -> None:
    """Have HELM make its tables of all runs of a method."""
    run_logged([commands / "python", "-c", SUMMARISE, "--suite", method, "--output-path", output,
                "--local-path", output / "prod_env"], output / f"{method}-summary.log")


# helm-summarize with the schema that has MMLU's subjects; it lies in the package.
SUMMARISE = """
import sys
from importlib.resources import files
from helm.benchmark.presentation.summarize import main
sys.argv[1:1] = ["--schema-path", str(files("helm.benchmark") / "static" / "schema_mmlu.yaml")]
main()
"""


def results(output: Path, methods: list[str]) -> str:
    """The tables that helm-summarize wrote, as one: all models in the output folder, each as it was run last."""
    rows = []
    for method in methods:
        for part in read_json(output / "runs" / method / "groups" / "mmlu.json"):
            header = [cell["value"] for cell in part["header"]]
            for cells in part["rows"]:
                row = dict(zip(header, (cell.get("value") for cell in cells), strict=True))
                subject = MEAN if "All Subjects" in part["title"] else part["title"].removeprefix("subject: ")
                numbers = ["" if row.get(key) is None else f"{row[key]:.4g}" for key in COLUMNS]
                rows.append([row["Model"].removeprefix("tinyft/"), subject, method, *numbers])
    return table(["model", "subject", "asked by", *COLUMNS.values()], rows)


if __name__ == "__main__":
    cli.run(main)
