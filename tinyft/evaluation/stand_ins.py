"""Scorers that tasks of the harness take from elsewhere, and that may not be there.

HumanEval's and SQuAD's are programs on the hub, which `evaluate.load` fetches and runs; ReCoRD, CoQA and others import
the scores of SQuAD from transformers, which has given them up.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import evaluate

from . import squad
from .humaneval import CodeEval

SQUAD_METRICS = "transformers.data.metrics.squad_metrics"


@contextmanager
def stand_ins(run_untrusted_code: bool) -> Iterator[None]:
    """Within the block, tasks find these scorers. run_untrusted_code: whether HumanEval's runs programs."""
    scorers = {"code_eval": CodeEval(run_untrusted=run_untrusted_code), "squad_v2": squad.SquadV2()}
    load = evaluate.load
    evaluate.load = lambda name, *rest, **options: (scorers[name] if name in scorers else load(name, *rest, **options))
    made = _squad_metrics()
    sys.modules.update(made)
    try:
        yield
    finally:
        evaluate.load = load
        for name in made:
            del sys.modules[name]


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
