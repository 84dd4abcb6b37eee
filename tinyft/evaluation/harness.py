"""Tasks of the harness, run on one model: names, data, and what becomes of it."""

import functools
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Nothing of Hugging Face's is asked for but data, and no library has to know who runs this.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # that PyTorch is missing is no news
os.environ.setdefault("DISABLE_MULTIPROC", "1")  # of standard errors: a process with running threads isn't to be forked

import lm_eval.evaluator  # noqa: E402 - reads the environment
from lm_eval.tasks import TaskManager  # noqa: E402
from tqdm import tqdm  # noqa: E402

from ..files import one_line  # noqa: E402
from .lm_eval import Notes, TinyftLM  # noqa: E402
from .local_data import local_data  # noqa: E402
from .measures import tasks_of  # noqa: E402
from .stand_ins import stand_ins  # noqa: E402

SEED = 1234  # of examples, as with the harness' own command
RESAMPLES = 1000  # for standard errors of what is no mean; the harness' 100,000 take minutes for an F1


# What is said where data are missing, by the harness, by `random.sample` and by `datasets`.
_TOO_FEW = ("no documents available", "Sample larger than population", "out of bounds for size 0")


@dataclass(frozen=True)
class Options:
    """What is asked of all models alike; as for `lm_eval`'s own command line."""

    limit: int | None = None
    num_fewshot: int | None = None
    data_dir: Path | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    seed: int = SEED
    run_untrusted_code: bool = False


def find_tasks(names: Sequence[str]) -> tuple[TaskManager, list[str]]:
    """The harness' index of tasks, and the names of those that are meant. ValueError for one that doesn't exist."""
    manager = _index()
    found = [task for name in names for task in tasks_of(name)]
    for name in found:
        if not manager.match_tasks([name]):
            near = [task for task in manager.all_tasks if name.lower() in task.lower()][:8]
            remedy = (f"is it one of {', '.join(near)}?" if near else
                      "--list shows the measures, and `lm_eval ls tasks` all tasks of the harness")
            raise ValueError(f"--tasks {name}: there is no such task; {remedy}")
    return manager, list(dict.fromkeys(found))


@functools.cache
def _index() -> TaskManager:
    """The harness' 14,000 descriptions of tasks, which take seconds to look through."""
    return TaskManager()


def run_tasks(model: TinyftLM, tasks: Sequence[str], manager: TaskManager, options: Options) -> dict[str, Any]:
    """Ask a model all of it -> what `lm_eval.simple_evaluate` gives, with the samples. Answers are kept in model.known.

    ValueError for data that can't be had, and for a task that asks for what can't be done.
    """
    with _quiet(), stand_ins(options.run_untrusted_code), local_data(options.data_dir) as missing:
        try:
            return lm_eval.simple_evaluate(
                model, tasks=list(tasks), task_manager=manager, limit=options.limit, num_fewshot=options.num_fewshot,
                apply_chat_template=options.apply_chat_template, fewshot_as_multiturn=options.apply_chat_template,
                system_instruction=options.system_instruction, random_seed=0,
                numpy_random_seed=options.seed, torch_random_seed=None, fewshot_random_seed=options.seed,
                bootstrap_iters=RESAMPLES,
                # Whether code that a model has written is run is for the scorer to say, see `stand_ins`.
                confirm_run_unsafe_code=True)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # tasks and their templates are programs, which raise whatever they like
            if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):  # while compiled code ran
                raise KeyboardInterrupt from None
            lacks = any(words in str(error) for words in _TOO_FEW)
            if isinstance(error, ValueError) and not lacks:
                raise
            files = ", ".join(map(str, dict.fromkeys(missing)))
            remedy = (f"these files are missing: {files}" if missing and lacks else
                      "do the data have the fields and the number of rows that the task needs?")
            raise ValueError(f"the harness stopped with {type(error).__name__}: {one_line(error)}; {remedy} "
                             "(TINYFT_DEBUG=1 shows where)") from error


def programs_of(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(task_id, completion) of all programs that a model has written for HumanEval."""
    return [(sample["doc"]["task_id"], completion) for task, samples in results["samples"].items()
            if task.startswith("humaneval") for sample in samples for completion in sample["resps"][0]]


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness tells much of what it does; here the progress of the model's answers is enough."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate", "huggingface_hub")]
    levels, make_bar = [logger.level for logger in loggers], tqdm.__init__
    find_commit, lm_eval.evaluator.get_git_commit_hash = lm_eval.evaluator.get_git_commit_hash, lambda: None
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    tqdm.__init__ = functools.partialmethod(make_bar, disable=True)  # but for those that say otherwise, as ours do
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__, lm_eval.evaluator.get_git_commit_hash = make_bar, find_commit
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def what_was_ignored(results: Mapping[str, Any], num_fewshot: int | None) -> list[str]:
    """Lines that say which tasks show another number of examples than was asked for, since they fix it."""
    if num_fewshot is None:
        return []
    return [f"{task} shows {shown} examples, whatever is asked for" for task, shown in results["n-shot"].items()
            if shown != num_fewshot]


def what_was_cut(notes: Mapping[str, Notes]) -> list[str]:
    """Lines that say which tasks had to be cut to fit into the model's context."""
    lines = []
    for task, note in notes.items():
        parts = [(note.cut, f"texts cut on the left: {note.cut} of {note.asked}, by {note.lost_tokens} tokens"),
                 (note.unscored, f"longer than the context: {note.unscored} texts to score"),
                 (note.short, f"replies that the context ended: {note.short}")]
        said = [text for count, text in parts if count]
        if said:
            lines.append(f"{task}: {'; '.join(said)}")
    return lines
