"""Libraries that tasks of the harness take scorers from, and that may not be there or would have to be fetched.

HumanEval's and SQuAD's scorers are programs on the hub, which `evaluate.load` fetches and runs; ReCoRD, CoQA and others
import the scores of SQuAD from transformers, which has given them up. Hugging Face's `evaluate` itself is only imported
where a task wants another of its scorers: it would import transformers and PyTorch where they are installed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from . import squad
from .humaneval import CodeEval

SQUAD_METRICS = "transformers.data.metrics.squad_metrics"


@contextmanager
def stand_ins(run_untrusted_code: bool) -> Iterator[None]:
    """Within the block, tasks find these scorers. run_untrusted_code: whether HumanEval's runs programs."""
    made = _squad_metrics() | {"evaluate": _evaluate(run_untrusted_code)}
    before = {name: sys.modules[name] for name in made if name in sys.modules}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
        sys.modules.update(before)


def _evaluate(run_untrusted_code: bool) -> ModuleType:
    """A module with `load`, which is all that tasks ask of evaluate."""
    module = ModuleType("evaluate")
    scorers = {"code_eval": CodeEval(run_untrusted=run_untrusted_code), "squad_v2": squad.SquadV2()}

    def load(name: str, *rest, **options) -> Any:
        if name in scorers:
            return scorers[name]
        sys.modules.pop("evaluate", None)
        try:
            return import_module("evaluate").load(name, *rest, **options)
        finally:
            sys.modules["evaluate"] = module

    module.load = load
    return module


def _squad_metrics() -> dict[str, ModuleType]:
    """The module that transformers has given up, with the packages around it that aren't there either."""
    made: dict[str, ModuleType] = {}
    names = SQUAD_METRICS.split(".")
    for depth in range(1, len(names) + 1):
        name = ".".join(names[:depth])
        try:
            if made:
                raise ImportError(name)
            import_module(name)
        except ImportError:
            made[name] = ModuleType(name)
            made[name].__path__ = []
            if depth > 1 and (parent := made.get(name.rpartition(".")[0])):
                setattr(parent, names[depth - 1], made[name])
    if made:
        module = made[SQUAD_METRICS]
        module.normalize_answer, module.compute_exact, module.compute_f1 = squad.normalize, _exact, _f1
    return made


def _exact(gold: str, predicted: str) -> int:
    return int(squad.exact_match(predicted, gold))


def _f1(gold: str, predicted: str) -> float:
    return squad.f1(predicted, gold)
