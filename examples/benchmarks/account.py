"""Where every millisecond of a training step goes, and how far each part is from what the machine can do.

In a process of its own, every kernel that tinyft's modules call is replaced by one that also keeps account:
seconds, floating-point operations, bytes. What is in no kernel is NumPy's and Python's.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

import numpy as np

from tinyft.segments import Segments

from .machine import limits
from .processes import SHARED, VOCABULARY, Process, describe
from .timing import Table
from .training import take_turns

KERNELS = "tinyft.kernels."
OUTPUT = "output layer, products both ways"
FORWARD, FOR_INPUTS, FOR_WEIGHTS = (f"blocks, products {what}" for what in
                                    ("forward", "for input gradients", "for weight gradients"))
PRODUCTS = (OUTPUT, FORWARD, FOR_INPUTS, FOR_WEIGHTS)
BETWEEN = "NumPy and Python between kernels"
Cost = tuple[str, float, float]  # which row of the table, floating-point operations, bytes


def _bytes(*values) -> int:
    """Size of the arrays among some values; tuples count as what is in them."""
    return sum(_bytes(*value) if isinstance(value, tuple) else getattr(value, "nbytes", 0) for value in values)


def _product(result, a, b, *args, **options) -> Cost:
    """(M, K) @ (K, N). Gradients are told by the factor that is turned."""
    if VOCABULARY in (*a.shape, *b.shape):
        row = OUTPUT
    elif not a.flags.c_contiguous:
        row = FOR_WEIGHTS
    elif not b.flags.c_contiguous:
        row = FOR_INPUTS
    else:
        row = FORWARD
    return row, 2 * a.shape[0] * a.shape[1] * b.shape[1], 0


def _pairs(qkv: np.ndarray, segments: Segments) -> float:
    """Numbers in all (query, key) pairs of a token and itself or one before in its row, over all heads."""
    seen = segments.positions + 1  # how many keys each query sees, shared ones too
    return float(seen.sum()) * qkv.shape[1] / 3


def _attention_forward(result, qkv, heads, segments, *args) -> Cost:
    """Two products: scores, and the mix of the values."""
    return "attention forward", 2 * 2 * _pairs(qkv, segments), 0


def _attention_backward(result, dout, qkv, heads, segments, *args) -> Cost:
    """Five products: the scores once more, gradients of weights, queries, keys and values."""
    return "attention backward", 5 * 2 * _pairs(qkv, segments), 0


def _streamed(row: str, in_place: tuple[int, ...] = ()) -> Callable[..., Cost]:
    """All arrays are read or written once, those at the positions `in_place` both."""
    return lambda result, *args, **options: (row, 0, _bytes(result, *args, *options.values(),
                                                            *(args[i] for i in in_place)))


def _embedding_backward(result, dout, ids, dweight) -> Cost:
    """Of the table's gradient only the rows that occur are read and written."""
    return "embeddings backward", 0, 3 * _bytes(dout) + _bytes(ids)


COSTS = {
    "ops.gemm": _product,
    "ops.attention_forward": _attention_forward,
    "ops.attention_backward": _attention_backward,
    "ops.gelu_forward": _streamed("GELU forward"),
    "ops.gelu_backward": _streamed("GELU backward"),
    "ops.layer_norm_forward": _streamed("layer norm forward"),
    "ops.layer_norm_backward": _streamed("layer norm backward"),
    "ops.sum_rows": _streamed("gradients of biases"),
    "ops.embedding_backward": _embedding_backward,
    "losses.cross_entropy_in_place": _streamed("softmax and loss, both ways", in_place=(0,)),
    "optim.sum_of_squares": _streamed("norm of the gradient"),
    "optim.adamw_step": _streamed("AdamW", in_place=(0, 2, 3)),
}


def _modules() -> dict[str, ModuleType]:
    import tinyft.optim
    import tinyft.tensor  # noqa: F401

    return {name: sys.modules[f"tinyft.{name}"] for name in ("tensor", "ops", "losses", "optim")}


def _kernels_in(modules: dict[str, ModuleType]) -> Iterator[tuple[ModuleType, str, Callable[..., Cost]]]:
    """(module, name in it, cost) of every kernel that a module calls.

    One that COSTS doesn't know gets a row under its own name. RuntimeError if one that it knows is gone.
    """
    for full_name in COSTS:
        module, name = full_name.split(".")
        if not callable(getattr(modules[module], name, None)):
            raise RuntimeError(f"account: there is no tinyft.{full_name} any more; benchmarks/account.py has to "
                               "name what has come in its place")
    for module_name, module in modules.items():
        for name, value in list(vars(module).items()):
            if callable(value) and str(getattr(value, "__module__", "")).startswith(KERNELS):
                full_name = f"{module_name}.{name}"
                yield module, name, COSTS.get(full_name) or _streamed(full_name)


def _keep_account(function: Callable, cost: Callable[..., Cost], spent: dict[str, list[float]]) -> Callable:
    """The same function, which adds its seconds, operations and bytes to a row of `spent`."""

    def call(*args, **options):
        begin = time.perf_counter()
        result = function(*args, **options)
        seconds = time.perf_counter() - begin
        row, operations, moved = cost(result, *args, **options)
        total = spent.setdefault(row, [0.0, 0.0, 0.0])
        for i, value in enumerate((seconds, operations, moved)):
            total[i] += value
        return result

    return call


def make_step() -> Callable[[np.ndarray, np.ndarray], dict[str, list[float]]]:
    """A training step of tinyft that returns (seconds, operations, bytes) by row."""
    from .peers import tinyft_step

    spent: dict[str, list[float]] = {}
    for module, name, cost in _kernels_in(_modules()):
        setattr(module, name, _keep_account(getattr(module, name), cost, spent))
    train = tinyft_step(bfloat16=False)

    def step(inputs, targets):
        spent.clear()
        whole = sum(train(inputs, targets).values())
        return {**spent, BETWEEN: [whole - sum(row[0] for row in spent.values()), 0.0, 0.0]}

    return step


def _add_row(table: Table, what: str, whole: float, seconds: float, operations: float = 0, moved: float = 0,
             floor: float = 0) -> None:
    """floor: seconds at the measured peak of arithmetic or speed of reading."""
    table.add(what, "ms", time=1000 * seconds, share=seconds / whole, **{
        "GFLOP/s": operations / seconds / 1e9 if operations else None,
        "GB/s": moved / seconds / 1e9 if moved else None,
    }, floor=1000 * floor if floor else None, of_limit=floor / seconds if floor else None)


def sum_of(rows: Iterable[list[float]]) -> list[float]:
    """Seconds, operations and bytes of several rows together."""
    return [sum(column) for column in zip(*rows, strict=True)]


def _show(table: Table, steps: list[dict[str, list[float]]], machine: dict[str, float]) -> None:
    """Medians by row. The whole step is their sum, so that nothing is left over; the median step is near it."""
    rows = {what: [statistics.median(step[what][0] for step in steps), *numbers[1:]]
            for what, numbers in steps[0].items()}
    whole = sum_of(rows.values())[0]

    def add(what: str, seconds: float, operations: float, moved: float, mixed: bool = False) -> None:
        floor = operations / machine["peak"] / 1e9 + moved / machine["bandwidth"] / 1e9
        _add_row(table, what, whole, seconds, operations, 0 if mixed else moved, floor)

    for what, row in sorted(rows.items(), key=lambda item: (item[0] == BETWEEN, -item[1][0])):
        add(what, *row)
    add("sum of the products", *sum_of(rows[what] for what in PRODUCTS if what in rows))
    add("whole step: sum of the rows", *sum_of(rows.values()), mixed=True)
    _add_row(table, "median of whole steps", whole,
             statistics.median(sum(row[0] for row in step.values()) for step in steps))


def measure(table: Table, before: dict[str, float], threads: int, rounds: int = 7) -> None:
    """Both batches whose rows share tokens, the usual case.

    before: what the machine could do earlier; a busy moment then would make the floor too high.
    """
    with Process("account", threads) as process:
        answers = {batch: take_turns([process], batch, rounds)["account"] for batch in SHARED}
    machine = {what: max(value, before[what]) for what, value in limits().items()}
    for batch, taken in answers.items():
        table.title(f"account_{batch}", f"where a step goes, GPT-2 124M, float32, {describe(batch)}",
                    f"floor: at {machine['peak']:.0f} GFLOP/s or {machine['bandwidth']:.0f} GB/s of plain reading; "
                    "of_limit: floor / time, above 100 % where a kernel moves more than that")
        _show(table, [answer["step"] for answer in taken], machine)
