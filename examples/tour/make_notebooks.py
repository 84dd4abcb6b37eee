"""Make a notebook with its outputs of each program of the tour, or check those that stand there.

A program in percent format is its notebook's only source (jupytext). A cell tagged "varies" prints what depends on the
machine, times above all; of the other cells a check compares the text that they print.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinyft import cli
from tinyft.files import write_text

FOLDER = Path(__file__).resolve().parent
PROGRAMS = ("graph", "add_an_op", "broadcasting", "cross_entropy", "attention", "naive_gpt2", "training_step",
            "matmul_steps", "what_tuning_changed")
SECONDS = 300  # that a cell may take
EXAMPLES = """\
  python examples/tour/make_notebooks.py
  python examples/tour/make_notebooks.py graph attention
  python examples/tour/make_notebooks.py --check
"""


def parse_arguments(arguments: Sequence[str] | None):
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM",
                        help=f"which ones: {', '.join(PROGRAMS)} (default: all)")
    parser.add_argument("--check", action="store_true",
                        help="write nothing; run all anew and compare sources, printed texts and numbers of pictures")
    options = parser.parse_args(arguments)
    options.programs = [Path(name).stem for name in options.programs]
    for name in options.programs:
        if name not in PROGRAMS:
            raise ValueError(f"there is no program {name!r} in the tour, expected some of {', '.join(PROGRAMS)}")
    return options


def run_notebook(program: Path):
    """The program's notebook, run from its first cell to its last. ValueError names a cell that fails."""
    import jupytext
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = jupytext.read(program)
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", extra_arguments=["--log-level=ERROR"],
                            resources={"metadata": {"path": str(program.parent)}})
    try:
        client.execute()
    except CellExecutionError as error:
        raise ValueError(f"{program.name}: a cell fails: {error.ename}: {error.evalue}; run the program alone to see "
                         f"where: python {program}") from None
    return tidy(notebook)


def tidy(notebook):
    """Without what differs from run to run for no reason: names of cells, times, and notes on stderr."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                         "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            for output in cell.outputs:
                output.pop("execution_count", None)
                output.metadata = {}
    return notebook


def differences(stands: dict, fresh: dict) -> Iterator[str]:
    """What a notebook and a fresh run of its program differ in, as sentences."""
    sources = [[cell["source"] for cell in notebook["cells"]] for notebook in (stands, fresh)]
    if sources[0] != sources[1]:
        number = next((i for i, both in enumerate(zip(*sources, strict=False)) if both[0] != both[1]),
                      min(map(len, sources)))
        yield f"cell {number} isn't what the program has there"
        return
    for number, (before, now) in enumerate(zip(stands["cells"], fresh["cells"], strict=True)):
        if before["cell_type"] != "code":
            continue
        texts, pictures = zip(*(_printed(cell) for cell in (before, now)), strict=True)
        if pictures[0] != pictures[1]:
            yield f"cell {number} had {pictures[0]} pictures and has {pictures[1]} now"
        if texts[0] != texts[1] and "varies" not in now["metadata"].get("tags", []):
            lines = [text.splitlines() for text in texts]
            at = next((i for i, both in enumerate(zip(*lines, strict=False)) if both[0] != both[1]),
                      min(map(len, lines)))
            yield f"cell {number}, line {at + 1} was {_line(lines[0], at)!r} and is {_line(lines[1], at)!r} now"


def _line(lines: list[str], at: int) -> str:
    return lines[at] if at < len(lines) else ""


def _printed(cell: dict) -> tuple[str, int]:
    """The text that a cell prints, and how many pictures it shows."""
    text = "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")
    return text, sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Make or check them, one after the other."""
    options = parse_arguments(arguments)
    try:
        import jupytext  # noqa: F401
        import nbclient  # noqa: F401
        import nbformat
    except ImportError as error:
        raise ValueError(f"{error.name} is missing, which makes notebooks: pip install -e '.[tour]'") from None
    found = []
    for name in options.programs or PROGRAMS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        fresh, path = run_notebook(FOLDER / f"{name}.py"), FOLDER / f"{name}.ipynb"
        if not options.check:
            write_text(path, nbformat.writes(fresh) + "\n")
        elif not path.exists():
            found.append(f"{path.name} is missing")
        else:
            stands = nbformat.read(path, nbformat.NO_CONVERT)
            found += [f"{path.name}: {difference}" for difference in differences(stands, fresh)]
    if found:
        raise ValueError("\n".join([*found, "make them again: python examples/tour/make_notebooks.py"]))


if __name__ == "__main__":
    cli.run(main)
