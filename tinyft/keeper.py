"""What a run saves on its way, and when: its state, and the best weights."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .adapters import restore_tuned, save_tuned
from .files import NotWritable
from .gpt2 import GPT2
from .optim import AdamW
from .ranks import Ranks
from .report import RunReport
from .signals import interruption
from .state import FOLDER as STATES
from .state import find_states, save_state
from .tokenizer import Tokenizer
from .train import Evaluated, Progress, Stepped


@dataclass
class Keeper:
    """Saves what a run must not lose, when it is due, and lives with a disk that is full."""

    folder: Path
    model: GPT2
    tokenizer: Tokenizer
    optimizer: AdamW
    progress: Progress
    identity: dict
    base: str
    minutes: float | None
    steps: int | None
    keep: int
    ranks: Ranks
    report: RunReport
    best: tuple[float, int] = field(init=False)  # loss and step of what is in folder/model
    saved_at: float = field(init=False, default_factory=time.monotonic)
    saved_step: int = field(init=False)
    failing: set[str] = field(init=False, default_factory=set)  # what could not be saved the last time

    def __post_init__(self):
        self.best = self.progress.best_loss, self.progress.best_step
        self.saved_step = self.progress.step

    def after_evaluation(self, event: Evaluated) -> None:
        """Save the best weights so far. If that fails, the best that are saved remain the best."""
        if event.improved and self.ranks.first(self._try, "model", self._save_model):
            self.best = self.progress.best_loss, self.progress.best_step
        self.progress.best_loss, self.progress.best_step = self.best

    def after(self, event: Any, signalled: int) -> None:
        """Save the state if it is due after an event, or if a signal has come, which then ends the run."""
        if signalled or self._is_due(event):
            self.save_state()
        if signalled:
            self.report.say(f"interrupted; {self.how_to_resume()}")
            raise interruption(signalled)

    def _is_due(self, event: Any) -> bool:
        if self.minutes is not None and time.monotonic() - self.saved_at > 60 * self.minutes:
            return True
        if self.steps is None or not isinstance(event, Stepped):
            return False
        return self.progress.step - self.saved_step >= self.steps

    def save_state(self) -> None:
        """Save the state, on the first rank; others wait for it at the next sum."""
        self.saved_at, self.saved_step = time.monotonic(), self.progress.step
        if self.ranks.is_first:
            self._try(STATES, lambda: save_state(self.folder, self.optimizer, self.progress, self.identity, self.keep))

    def finish(self) -> None:
        """Save the last state, and put the best weights into the model and its folder."""
        self.save_state()
        if not math.isfinite(self.progress.best_loss):  # none were validated, so that the last ones are kept
            self.ranks.first(self._save_model)
        elif self.progress.best_step != self.progress.step:
            self.ranks.first(restore_tuned, self.model, self.folder / "model")
            self.ranks.copy_from_first([parameter.data for _, parameter in self.model.trainable_parameters()])
            if self.progress.best_step == 0:
                self.report.say("nothing was better than the untuned model; its weights are kept")

    def how_to_resume(self) -> str:
        """Where the newest state is, in words."""
        if not (states := find_states(self.folder)):
            return "there is no state to resume"
        return f"the state is in {states[0]}: the same command with --output-dir {self.folder} --resume goes on"

    def _save_model(self) -> None:
        save_tuned(self.model, self.tokenizer, self.folder / "model", self.base)

    def _try(self, name: str, save: Callable[[], Any]) -> bool:
        """Whether saving has worked; the first of several failures is said."""
        try:
            save()
        except (OSError, NotWritable) as error:
            if name not in self.failing:
                why = getattr(error, "strerror", None) or error
                self.report.say(f"warning: {self.folder / name} could not be saved ({why}); what was saved "
                                "there before stays, training goes on and will try again: make room")
            self.failing.add(name)
            return False
        self.failing.discard(name)
        return True
