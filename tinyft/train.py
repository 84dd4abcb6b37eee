"""The training loop. It prints nothing and saves nothing: it yields what happened, and whoever runs it decides.

    for event in train(model, optimizer, training, validation, settings, progress, rng):
        if isinstance(event, Evaluated) and event.improved:
            save_model(model, tokenizer, folder)

Target tokens are the positions whose target is not -100: the only ones that have a loss and are learned.

Several processes can train one model: each is given its `ranks` (`ranks.py`) and runs this same loop on all the same
batches, of which it computes its own rows. Without them all rows are its own.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from . import watch
from .checkpoint import model_fingerprint
from .gpt2 import GPT2, needed_lengths
from .optim import AdamW, cosine_with_warmup
from .ranks import ALONE, Ranks
from .tensor import no_grad
from .training_set import TrainingSet, count_targets, fingerprint, has_targets


@dataclass(frozen=True)
class Settings:
    """How to train. An epoch is one pass over the training set. ValueError names a setting that makes no sense.

    >>> Settings(epochs=3, learning_rate=1e-4).batch_size
    8
    """

    epochs: int = 2
    batch_size: int = 8
    batch_tokens: int | None = None  # of a step at most, instead of batch_size entries
    micro_batch_size: int | None = None  # rows at a time; a batch is cut into these to save memory
    learning_rate: float = 5e-5
    warmup: float = 0.1  # share of all steps
    weight_decay: float = 0.1
    beta2: float = 0.999  # memory of AdamW's second moment; 0.95 suits pretraining
    clip_norm: float | None = 1.0
    moments: str = "float32"  # how AdamW keeps them: float32 or bfloat16
    max_steps: int | None = None  # stop there, whatever the epochs
    evaluate_every: int | None = None  # steps; four times an epoch if None
    patience: int = 4  # evaluations without a better validation loss before it stops; 0: never

    def __post_init__(self):
        for name in ("epochs", "batch_size", "batch_tokens", "micro_batch_size", "max_steps", "evaluate_every"):
            self._check(name, int, "an int of at least 1", lambda value: value >= 1)
        self._check("patience", int, "an int of at least 0", lambda value: value >= 0)
        for name in ("learning_rate", "clip_norm"):
            self._check(name, (int, float), "a finite float above 0", lambda value: 0 < value < math.inf)
        self._check("weight_decay", (int, float), "a finite float of at least 0", lambda value: 0 <= value < math.inf)
        self._check("warmup", (int, float), "a float from 0 to 1", lambda value: 0 <= value <= 1)
        self._check("moments", str, "float32 or bfloat16", lambda value: value in ("float32", "bfloat16"))
        self._check("beta2", (int, float), "a float from 0 to below 1", lambda value: 0 <= value < 1)

    def _check(self, name: str, kind: type | tuple[type, ...], expected: str, fits: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is None and name in ("batch_tokens", "micro_batch_size", "clip_norm", "max_steps", "evaluate_every"):
            return
        if not isinstance(value, kind) or isinstance(value, bool) or not fits(value):
            raise ValueError(f"Settings: {name} is {value!r}, expected {expected}")


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimizer, all that it takes to go on.

    >>> Progress(step=7).epoch
    0
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    tokens: int = 0  # target tokens so far, counted again in every epoch
    best_loss: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    evaluated_step: int = -1
    recent_losses: list[float] = field(default_factory=list)  # of the steps since then
    epoch_rng: dict = field(default_factory=dict)  # the generator before the epoch was shuffled
    now_rng: dict = field(default_factory=dict)  # the generator now
    accumulated: int = 0  # micro-batches of the step to come that are done: their gradients are in the parameters
    accumulated_loss: float = 0.0
    accumulated_processed: int = 0


@dataclass(frozen=True)
class Started:
    """Before the first step."""

    steps: int
    steps_per_epoch: int


@dataclass(frozen=True)
class Accumulated:
    """The gradients of one more micro-batch of a step; where a step is not cut in several, there are none of these."""

    step: int  # to which they belong
    done: int
    of: int


@dataclass(frozen=True)
class Stepped:
    """One optimizer step."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int  # target tokens of this step
    processed: int  # tokens of all rows up to their last target; shared ones count in every row
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """A look at the validation set; train_loss is the mean over the steps since the last one."""

    step: int
    epoch: float
    tokens: int  # target tokens so far
    train_loss: float | None
    loss: float
    improved: bool
    stop: bool


@dataclass(frozen=True)
class Noticed:
    """A warning: the numbers of this step are not what they should be, and training goes on."""

    step: int
    text: str


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is no longer a finite number."""


def evaluate(model: GPT2, data: TrainingSet, batch_size: int, ranks: Ranks = ALONE) -> float:
    """Mean loss over all target tokens of a set; NaN if it has none. Several ranks share the batches out.

    >>> from tinyft import InstructionSet, evaluate, load_model_and_tokenizer, read_entries
    >>> model, tokenizer = load_model_and_tokenizer("weights/tiny-world")
    >>> entries = read_entries("examples/data/train.json", max_entries=8)
    >>> data = InstructionSet(entries, tokenizer, mask_prompt=True, max_length=256)
    >>> round(evaluate(model, data, batch_size=8), 1)  # untuned; about 0.3 when it is tuned
    6.0
    """
    total, count = 0.0, 0
    with no_grad():
        for indices in data.batches(batch_size)[ranks.rank :: ranks.size]:
            inputs, targets = data.collate(indices)
            total += float(model.loss(inputs, targets, total=1).item())
            count += count_targets(targets)
    total, count = ranks.sum(total, count)
    return total / count if count else math.nan


def train(model: GPT2, optimizer: AdamW, training: TrainingSet, validation: TrainingSet | None, settings: Settings,
          progress: Progress, rng: np.random.Generator, ranks: Ranks = ALONE) -> Iterator:
    """Train, yielding Started, then Accumulated, Stepped, Noticed and Evaluated; `progress` is kept up to date.

    Between two events model, optimizer and progress belong together and can be saved (after Accumulated, with the
    parameters' gradients); called with them again, training goes on as if it had not been interrupted. A validation
    set without target tokens is the same as none. Raises TrainingDiverged before a bad gradient can touch the weights.

    ranks: every rank calls this with the same of all else, or gets a ValueError, and all get the same events. A run may
    go on with another number of them: with dropout its draws are others then, else only the rounding of its sums.

    >>> import numpy as np
    >>> from tinyft import AdamW, InstructionSet, Progress, Settings, load_model_and_tokenizer, read_entries, train
    >>> model, tokenizer = load_model_and_tokenizer("weights/tiny-world")
    >>> entries = read_entries("examples/data/train.json", max_entries=8)
    >>> data = InstructionSet(entries, tokenizer, mask_prompt=True, max_length=256)
    >>> settings, rng = Settings(max_steps=2, batch_size=4), np.random.default_rng(0)
    >>> events = train(model, AdamW(model), data, None, settings, Progress(), rng)
    >>> [type(event).__name__ for event in events]
    ['Started', 'Stepped', 'Stepped']
    """
    if not has_targets(validation):
        validation = None
    if ranks.size > 1:
        ranks.check_same(asdict(settings) | {
            "training set": fingerprint(training), "validation set": fingerprint(validation),
            "model": model_fingerprint(model), "step": progress.step, "state of rng": rng.bit_generator.state})
    loop = _Loop(model, optimizer, training, validation, settings, progress, rng, ranks)
    yield Started(loop.steps, loop.steps_per_epoch)
    if progress.now_rng:
        rng.bit_generator.state = progress.now_rng
    progress.now_rng = rng.bit_generator.state
    if event := loop.evaluate_if_due():
        yield event
    if validation is not None and 0 < settings.patience <= progress.evaluations_since_best:
        return
    while progress.step < loop.steps:
        batches = loop.batches_of_epoch()
        for indices in batches[progress.step_in_epoch : progress.step_in_epoch + loop.steps - progress.step]:
            yield from loop.step(indices)
            if event := loop.evaluate_if_due():
                yield event
                if event.stop:
                    return
        if progress.step_in_epoch >= loop.steps_per_epoch:
            progress.epoch, progress.step_in_epoch, progress.epoch_rng = progress.epoch + 1, 0, {}


@dataclass
class _Loop:
    """What `train` was given, and the parts of its loop."""

    model: GPT2
    optimizer: AdamW
    training: TrainingSet
    validation: TrainingSet | None
    settings: Settings
    progress: Progress
    rng: np.random.Generator
    ranks: Ranks

    def __post_init__(self):
        self.steps_per_epoch = len(self._batches(np.random.default_rng(0)))
        if self.steps_per_epoch == 0:
            raise ValueError("train: the training set is empty")
        self.steps = min(self.settings.epochs * self.steps_per_epoch, self.settings.max_steps or sys.maxsize)

    def _batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The batches of an epoch, shuffled."""
        if self.settings.batch_tokens is None:
            return self.training.batches(self.settings.batch_size, rng)
        return self.training.batches(self.settings.batch_size, rng, batch_tokens=self.settings.batch_tokens)

    def batches_of_epoch(self) -> list[np.ndarray]:
        """The shuffled batches of the epoch that is due; on resuming, the very same again."""
        progress, rng = self.progress, self.rng
        if progress.epoch_rng:
            rng.bit_generator.state = progress.epoch_rng
            batches = self._batches(rng)
            rng.bit_generator.state = progress.now_rng
            return batches
        progress.epoch_rng = rng.bit_generator.state
        batches = self._batches(rng)
        progress.now_rng = rng.bit_generator.state
        return batches

    def evaluate_if_due(self) -> Evaluated | None:
        """The evaluation of the step just made, if one is due and not made before an interruption.

        Step 0 is the untuned model: what doesn't get better than that is not worth keeping.
        """
        step = self.progress.step
        every = self.settings.evaluate_every or math.ceil(self.steps_per_epoch / 4)
        due = step % every == 0 or step == self.steps
        if not due or self.progress.evaluated_step == step:
            return None
        self.ranks.check_weights(self.optimizer.parameters, step)
        if self.validation is None:
            return None
        loss = evaluate(self.model, self.validation, self.settings.batch_size, self.ranks)
        if not math.isfinite(loss):
            all_rows = np.concatenate(self.validation.batches(self.settings.batch_size))
            raise TrainingDiverged(f"the validation loss is {loss} after step {step}: "
                                   + self._why_not_finite(self.validation, all_rows, None, "validation set"))
        return _update_best(loss, step / self.steps_per_epoch, self.settings, self.progress)

    def step(self, indices: np.ndarray) -> Iterator:
        """One optimizer step on a batch, with its events."""
        begin = time.perf_counter()
        settings, progress = self.settings, self.progress
        loss, tokens, processed = yield from self._learn(indices)
        warmup = max(1, round(settings.warmup * self.steps))
        learning_rate = cosine_with_warmup(progress.step, self.steps, peak=settings.learning_rate, warmup=warmup,
                                           floor=0.1 * settings.learning_rate)
        warning = None
        if progress.step == 0:
            warning = watch.check_start(loss, self.model.config.vocab_size)
        elif progress.step == 2:  # LoRA's A has no gradient before B, which is zero at first, has been updated
            warning = watch.check_gradients(self.optimizer)
        norm = self.optimizer.step(learning_rate, max_norm=settings.clip_norm) if math.isfinite(loss) else loss
        if not math.isfinite(norm):
            what = "loss" if not math.isfinite(loss) else "gradient norm"
            before = copy.deepcopy(self.rng)
            before.bit_generator.state = progress.now_rng
            raise TrainingDiverged(f"the {what} is {norm} at step {progress.step + 1} (epoch {progress.epoch + 1}, "
                                   f"learning rate {learning_rate:.2g}): "
                                   + self._why_not_finite(self.training, indices, before, "training set"))
        progress.step += 1
        progress.step_in_epoch += 1
        progress.tokens += tokens
        progress.now_rng = self.rng.bit_generator.state
        progress.accumulated, progress.accumulated_loss, progress.accumulated_processed = 0, 0.0, 0
        progress.recent_losses.append(loss)
        yield Stepped(progress.step, progress.step / self.steps_per_epoch, loss, learning_rate, norm, tokens, processed,
                      time.perf_counter() - begin)
        if warning:
            yield Noticed(progress.step, warning)

    def _learn(self, indices: np.ndarray) -> Generator:
        """Gradients of one batch, micro-batch by micro-batch; returns loss, target tokens and tokens processed.

        Every micro-batch divides by the target tokens of the whole batch, so that the sum is the batch's mean loss.
        Each rank has the whole batch before it, counts all its targets and computes its own rows; all is added up at
        the end. Yields Accumulated between two micro-batches, but not where ranks would have to add up for it.
        """
        model, progress, ranks = self.model, self.progress, self.ranks
        inputs, targets = self.training.collate(indices)
        total, size = count_targets(targets), self.settings.micro_batch_size or len(indices)
        left = np.arange((done := progress.accumulated) * size, len(indices))
        own = left[ranks.share(needed_lengths(targets[left]))]
        parts = [own[i : i + size] for i in range(0, len(own), size)]
        # What was done before an interruption counts once: the first rank has its gradients, too.
        loss, processed = (progress.accumulated_loss, progress.accumulated_processed) if ranks.is_first else (0.0, 0)
        draws = ranks.generator(self.rng, progress.step)
        for i, rows in enumerate(parts, start=1):
            if i == len(parts):  # a block's gradients are complete as soon as this backward pass has formed them
                ranks.begin_sums(model, self.optimizer.parameters)
            part_loss = model.loss(inputs[rows], targets[rows], total=total, rng=draws)
            loss += float(part_loss.item())
            if not math.isfinite(loss):
                break
            part_loss.backward()
            processed += int(needed_lengths(targets[rows]).sum())
            if i < len(parts) and ranks.size == 1:
                progress.accumulated, progress.accumulated_loss = done + i, loss
                progress.accumulated_processed, progress.now_rng = processed, self.rng.bit_generator.state
                yield Accumulated(progress.step + 1, done + i, done + len(parts))
        ranks.finish_sums(model, self.optimizer.parameters)
        loss, processed = ranks.sum(loss, processed)
        return loss, total, processed

    def _why_not_finite(self, data: TrainingSet, indices: np.ndarray, rng, of: str) -> str:
        """The reason, as the first rank finds it."""
        return self.ranks.first(partial(watch.explain_not_finite, of=of), self.model, data, indices, self.settings, rng)


def _update_best(loss: float, epoch: float, settings: Settings, progress: Progress) -> Evaluated:
    """Compare with the best so far, and decide whether validation has turned."""
    train_loss = float(np.mean(progress.recent_losses)) if progress.recent_losses else None
    progress.evaluated_step, progress.recent_losses = progress.step, []
    improved = loss < progress.best_loss
    if improved:
        progress.best_loss, progress.best_step, progress.evaluations_since_best = loss, progress.step, 0
    else:
        progress.evaluations_since_best += 1
    stop = settings.patience > 0 and progress.evaluations_since_best >= settings.patience
    return Evaluated(progress.step, epoch, progress.tokens, train_loss, loss, improved, stop)
