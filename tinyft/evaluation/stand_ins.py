"""Libraries that tasks of the harness take scorers from, and that may not be there or would have to be fetched.

HumanEval's and SQuAD's scorers are programs on the hub, which `evaluate.load` fetches and runs; ReCoRD, CoQA and others
import the scores of SQuAD from transformers, which has given them up, but still has to be there. Hugging Face's
`evaluate` itself is only imported where a task wants another of its scorers: it would import transformers and PyTorch
where they are installed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from types import ModuleType
from typing import Any

from . import squad
from .humaneval import CodeEval

SQUAD_METRICS = "transformers.data.metrics.squad_metrics"
# Tasks keep the scorer that they were given first, so that it has to look up what holds now.
_may_run: ContextVar[bool] = ContextVar("whether code that a model has written may run", default=False)


@contextmanager
def stand_ins(run_untrusted_code: bool) -> Iterator[None]:
    """Within the block, tasks find these scorers. run_untrusted_code: whether HumanEval's runs programs."""
    made = _squad_metrics() | {"evaluate": _evaluate()}
    before, token = {name: sys.modules[name] for name in made if name in sys.modules}, _may_run.set(run_untrusted_code)
    sys.modules.update(made)
    try:
        yield
    finally:
        _may_run.reset(token)
        for name in made:
            del sys.modules[name]
        sys.modules.update(before)


class _CodeEval:
    """HumanEval's scorer, which runs nothing unless the block that it is called in says so."""

    def compute(self, **what) -> tuple[dict[str, float], dict]:
        return CodeEval(run_untrusted=_may_run.get()).compute(**what)


def _evaluate() -> ModuleType:
    """A module with `load`, which is all that tasks ask of evaluate."""
    module = ModuleType("evaluate")
    scorers = {"code_eval": _CodeEval(), "squad_v2": squad.SquadV2()}

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
    """The module that transformers has given up, and the one around it; it is found where they are looked for first."""
    package, scores = (ModuleType(name) for name in (SQUAD_METRICS.rpartition(".")[0], SQUAD_METRICS))
    package.squad_metrics = scores
    scores.normalize_answer, scores.compute_exact, scores.compute_f1 = squad.normalize, _exact, _f1
    return {package.__name__: package, SQUAD_METRICS: scores}


def _exact(gold: str, predicted: str) -> int:
    return int(squad.exact_match(predicted, gold))


def _f1(gold: str, predicted: str) -> float:
    return squad.f1(predicted, gold)
