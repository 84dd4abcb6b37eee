"""What is wrong with a run, in words: numbers that are not finite, and numbers that look right but are not.

Nothing here changes a weight. `explain_not_finite` runs the rows of a step once more, with the modules' calls
overheard, and finds the place where the first NaN or infinity came up; the checks look at what the loop has anyway.
Every text is one sentence or two: what, where, and what to do.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .gpt2 import GPT2, needed_lengths
from .nn import Module
from .optim import AdamW
from .tensor import Tensor, no_grad
from .training_set import TrainingSet, count_targets

if TYPE_CHECKING:  # train.py imports this file
    from .train import Settings

SHOWN = 3  # entries, rows or parameters that a message names one by one
ROWS_AT_ONCE = 64  # that `check_sets` collates


# ---- numbers that are not finite


def explain_not_finite(model: GPT2, data: TrainingSet, indices: Sequence[int], settings: "Settings",
                       rng: np.random.Generator | None = None, of: str = "training set") -> str:
    """Why a loss or a gradient is not finite: which entries, the first module or parameter, and what to do.

    indices: the entries of the step in `data`, which the text calls the `of`. Each runs by itself, without recording,
    so that those which bring up the trouble are told from those that don't; only where every loss is finite are
    gradients formed. rng: the generator before the step, for dropout's draws; its state stays as it is. Gradients are
    forgotten.
    """
    indices = [int(index) for index in indices]
    rng = copy.deepcopy(rng)
    with np.errstate(all="ignore"):
        traces = {index: _trace(model, *data.collate([index]), rng) for index in indices}
        guilty = [index for index in indices if traces[index].first]
        if guilty:
            place, remedy = traces[guilty[0]].first, "lower the --learning-rate"
            if place.startswith("the weights"):
                remedy = "load sound weights, or start again with a lower --learning-rate"
            if len(guilty) < len(indices):
                remedy = f"look at these entries; if they are as they should be, {remedy}"
            who = _entries(data, guilty, len(indices), of)
            return f"{who}: the first number that is not finite is in {place}; {remedy}"
        if (found := _bad_gradients(model, data, indices, rng)):
            guilty = list(found)
            who = _entries(data, guilty, len(indices), of)
            place = _sizes_at(model, found[guilty[0]], traces[guilty[0]])
            return (f"{who}: the loss is finite, but not the gradient, on the way back first that of {place}; lower "
                    f"the --learning-rate ({settings.learning_rate:.2g})")
    return ("each entry by itself has a finite loss and gradient, so that only their sum, or another draw of dropout, "
            f"overflows; lower the --learning-rate ({settings.learning_rate:.2g})")


def _bad_gradients(model: GPT2, data: TrainingSet, indices: list[int], rng) -> dict[int, str]:
    """The entries with a gradient that is not finite, each with the first such parameter on the way back."""
    rows = [data.collate([index]) for index in indices]
    total = sum(count_targets(targets) for _, targets in rows)
    on_block_done, model.on_block_done = getattr(model, "on_block_done", None), None  # nothing is to be sent
    found: dict[int, str] = {}
    try:
        for index, (inputs, targets) in zip(indices, rows, strict=True):
            model.zero_grad()
            model.loss(inputs, targets, total=total, rng=rng).backward()
            if name := _first_bad_gradient(model):
                found[index] = name
    finally:
        model.zero_grad()
        model.on_block_done = on_block_done
    return found


def _sizes_at(model: GPT2, name: str, trace: "_Trace") -> str:
    """A parameter's name, with how large the numbers around it are."""
    given, out = trace.sizes.get(name.rpartition(".")[0], (math.nan, math.nan))
    weight = _largest(dict(model.named_parameters())[name].data)
    return f"{name} (largest there: weight {weight:.2g}, input {given:.2g}, output {out:.2g})"


def _first_bad_gradient(model: GPT2) -> str | None:
    """The first parameter, in the order of the backward pass, whose gradient is not finite."""
    order = list(model.trainable_parameters())[::-1]  # the embeddings, where it ends, are the first of a model
    return next((name for name, p in order if p.grad is not None and not np.isfinite(p.grad).all()), None)


@dataclass
class _Trace:
    """What was overheard while one entry went through the model."""

    first: str = ""  # where the first number came up that is not finite, in words
    sizes: dict[str, tuple[float, float]] = field(default_factory=dict)  # module: largest input, largest output


def _trace(model: GPT2, inputs: np.ndarray, targets: np.ndarray, rng) -> _Trace:
    """Run one entry, (1, T) and (1, T), forward."""
    trace = _Trace()

    def heard(name: str, module: Module, given: list[np.ndarray], out: np.ndarray) -> None:
        trace.sizes[name] = max(map(_largest, given), default=math.nan), _largest(out)
        trace.first = trace.first or _where(name, module, given, out)

    with no_grad(), _overheard(model, heard):
        loss = model.loss(inputs, targets, rng=rng).item()
    if not math.isfinite(loss) and not trace.first:
        name = "wte" if model.config.tie_word_embeddings else "lm_head"
        trace.first = _bad_weights(f"the output layer {name}", {"weight": model.output_weight}) or (
            f"the logits or the loss, whose input is finite (largest {trace.sizes['ln_f'][1]:.2g})")
    return trace


def _where(name: str, module: Module, given: list[np.ndarray], out: np.ndarray) -> str:
    """Where a call's first number is that is not finite; empty if there is none."""
    if not all(np.isfinite(x).all() for x in given):
        return f"the input of {name}, made from finite numbers"  # by attention, an activation, a sum
    if np.isfinite(out).all():
        return ""
    own = {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
    sizes = f"largest input {max(map(_largest, given), default=0):.2g}, " * bool(given)
    sizes += ", ".join(f"{key} {_largest(value.data):.2g}" for key, value in own.items())
    return _bad_weights(name, own) or f"the output of {name}" + f" ({sizes})" * bool(sizes)


def _bad_weights(name: str, parameters: dict[str, Tensor]) -> str:
    """Which of a module's parameters have numbers that are not finite, in words; empty if none."""
    found = []
    for key, parameter in parameters.items():
        bad = ~np.isfinite(parameter.data)
        if bad.any():
            rows = np.flatnonzero(bad.any(axis=-1)) if bad.ndim == 2 else []
            where = f", in row{'s' * (len(rows) > 1)} {_some([str(row) for row in rows])}" if len(rows) else ""
            found.append(f"{key}: {bad.sum():,} of {bad.size:,}{where}")
    return f"the weights of {name} ({'; '.join(found)})" if found else ""


@contextmanager
def _overheard(model: Module, heard: Callable[[str, Module, list[np.ndarray], np.ndarray], None]) -> Iterator[None]:
    """Within this block every call of a module of `model` is told to heard(name, module, inputs, output).

    Python finds __call__ in the class, so that it is exchanged there, and put back. Modules of other models call
    through it as well, and are not told.
    """
    modules = list(model.named_modules())
    names = {id(module): name for name, module in modules}
    classes = {owner for _, module in modules for owner in type(module).__mro__ if "__call__" in vars(owner)}
    usual = {owner: owner.__call__ for owner in classes}

    def overhear(call: Callable) -> Callable:
        def __call__(self, *arguments, **options):
            out = call(self, *arguments, **options)
            if id(self) in names and isinstance(out, Tensor):
                heard(names[id(self)], self, [x.data for x in arguments if isinstance(x, Tensor)], out.data)
            return out

        return __call__

    try:
        for owner, call in usual.items():
            owner.__call__ = overhear(call)
        yield
    finally:
        for owner, call in usual.items():
            owner.__call__ = call


def _largest(x: np.ndarray) -> float:
    """The largest magnitude; NaN if one is NaN."""
    return float(max(x.max(), -x.min())) if x.size else 0.0


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _entries(data: TrainingSet, guilty: list[int], count: int, of: str) -> str:
    """The guilty ones of the `count` entries that were run; in the set's own words, where it has some for an entry."""
    if len(guilty) == count > 1:
        return f"in all {count} entries that were run, so that no single one is to blame"
    describe = getattr(data, "describe", None)
    named = [f"{index} ({describe(index)})" if describe else str(index) for index in guilty[:SHOWN]]
    more = f" and {len(guilty) - SHOWN} more" if len(guilty) > SHOWN else ""
    kind = "entry" if len(guilty) == 1 else "entries"
    return f"in {kind} {', '.join(named)}{more} of the {of}, {len(guilty)} of the {count} that were run"


# ---- numbers that look right


def check_start(loss: float, vocab_size: int) -> str | None:
    """A warning if the first step's loss is far above ln V, what guessing among all V tokens alike would cost.

    Fresh weights start near it, trained ones below; one nat above, the targets are 2.7 times as unlikely as that.
    """
    guessing = math.log(vocab_size)
    if not loss > guessing + 1:
        return None
    return (f"the loss starts at {loss:.2f}, far above the ln {vocab_size} = {guessing:.2f} of a blind guess: either "
            "tokenizer and weights don't belong together (see whether config.json, vocab.json and model.safetensors "
            "are of the same model), or the data is nothing like what the model has learned")


def check_gradients(optimizer: AdamW) -> str | None:
    """A warning that names the trained parameters without a gradient: None, or zero throughout."""
    silent = [name for name, p in optimizer.parameters.items() if p.grad is None or not p.grad.any()]
    if not silent:
        return None
    many = len(silent) > 1
    return (f"{_some(silent)}: trained, but the gradient{'s are' if many else ' is'} exactly zero, so that nothing is "
            f"learned there; see whether what {'they feed' if many else 'it feeds'} is multiplied by zeros or not "
            f"used, or freeze {'them' if many else 'it'}")


def check_sets(training: TrainingSet, validation: TrainingSet | None) -> list[str]:
    """Warnings about the sets: entries in both, and entries or whole sets without a target.

    Entries are the same if their ids and targets are, up to the last target.
    """
    warnings = []
    of_validation = list(_rows(validation)) if validation is not None else []
    wanted, seen, without, count = {row for row in of_validation if row}, set(), 0, 0
    for row in _rows(training):
        count += 1
        without += not row
        if row in wanted:
            seen.add(row)
    both = sum(row in seen for row in of_validation)
    if both:
        warnings.append(f"{both} of {len(of_validation)} validation entries {'is' if both == 1 else 'are'} in the "
                        "training set as well, so that the validation loss is lower than it should be; remove repeated "
                        "entries from the data, or split it so that they stay together")
    for name, empty, entries in (("training", without, count), ("validation", of_validation.count(b""),
                                                                len(of_validation))):
        if empty and empty == entries:
            warnings.append(f"the {name} set has no target at all: every token is masked; see whether its entries have "
                            "replies, with --show-mask, and whether --max-length cuts them off")
        elif empty:
            warnings.append(f"{empty} of {entries} {name} entries have no target and teach nothing; see whether they "
                            "have replies, and whether --max-length cuts them off")
    return warnings


def _rows(data: TrainingSet) -> Iterator[bytes]:
    """A hash of each entry's ids and targets up to its last target, in order; empty where it has none."""
    for indices in data.batches(ROWS_AT_ONCE):
        inputs, targets = data.collate(indices)
        for row, row_targets, n in zip(inputs, targets, needed_lengths(targets), strict=True):
            content = row[:n].tobytes() + row_targets[:n].tobytes()
            yield hashlib.blake2b(content, digest_size=16).digest() if n else b""
