"""A run's numbers for those who look at them in TensorBoard or in Weights & Biases.

Both packages are extras, imported where they are used. Of a resumed run each goes on with the log that is there.
"""

import importlib
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .files import one_line, write_text

FLUSH_SECONDS = 10.0
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Logger(Protocol):
    """What `RunReport` tells of every event. An exception of `start` ends the run, a later one only the log."""

    def start(self, step: int | None, events: list[dict]) -> None:
        """Before the run: the step from which it goes on, None for a new one, and the events up to there."""

    def add(self, event: dict) -> None:
        """An event, as metrics.jsonl has it."""

    def close(self) -> None:
        """After the run."""


def find_packages(names: Sequence[str]) -> None:
    """ValueError for a name that `make_loggers` doesn't know, or whose package is missing, with the command for it."""
    for name in names:
        if name not in PACKAGES:
            raise ValueError(f"a logger {name!r} is unknown, expected {' or '.join(PACKAGES)}")
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError:
            raise ValueError(f"--{name} needs {PACKAGES[name]}: pip install {PACKAGES[name]}") from None


def make_loggers(names: Sequence[str], folder: str | os.PathLike, config: dict) -> list[Logger]:
    """Loggers for a run in `folder` by their names, "tensorboard" and "wandb". config: the run's options, shown there.

    ValueError for another name, or with the command that installs a package that is missing.
    """
    find_packages(names)
    kinds = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}
    return [kinds[name](Path(folder), config) for name in names]


def scalars(event: dict) -> dict[str, float]:
    """What is drawn of an event, by the names of the curves; those before the slash share a section."""
    if event["kind"] == "evaluation":
        return {"loss/validation": event["loss"]}
    if event["kind"] != "step":
        return {}
    return {"loss/training": event["loss"], "optimizer/learning_rate": event["learning_rate"],
            "optimizer/gradient_norm": event["gradient_norm"],
            "speed/tokens_per_second": event["processed"] / event["seconds"]}


class TensorBoardLogger:
    """Event files in `folder`/tensorboard: `tensorboard --logdir runs` shows them, of all runs in runs/.

    They are written with tensorboardX, which needs NumPy and protobuf where tensorboard itself brings gRPC and a web
    server along. Its EventsWriter writes here and now; the usual SummaryWriter leaves that to a thread, dead after an
    error, such as a full disk, and for whose full queue the training would wait for ever.
    """

    def __init__(self, folder: Path, config: dict):
        import tensorboardX.event_file_writer
        import tensorboardX.summary

        self.package, self.folder, self.config = tensorboardX, Path(folder) / "tensorboard", config
        self.writer = None

    def start(self, step: int | None, events: list[dict]) -> None:
        """Open a file. In TensorBoard it replaces what earlier files have of this step and later ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if step is None:
            for old in self.folder.glob("events.out.tfevents.*"):
                old.unlink()
        # By step and process, too: its name has the second, and one of the same name would be overwritten.
        suffix = f".{os.getpid()}.{step or 0}"
        self.writer = self.package.event_file_writer.EventsWriter(str(self.folder / "events"), suffix)
        self.flushed = time.monotonic()
        if step is None:
            table = "\n".join(["| option | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in self.config.items())])
            self._write(0, summary=self.package.summary.text("options", table))
            return
        session_log = self.package.proto.event_pb2.SessionLog
        self._write(step, session_log=session_log(status=session_log.START))
        for event in events:
            if event["step"] >= step:
                self.add(event)

    def add(self, event: dict) -> None:
        """Write an event's scalars; they reach the disk at evaluations and every FLUSH_SECONDS."""
        values = [self.package.proto.summary_pb2.Summary.Value(tag=name, simple_value=value)
                  for name, value in scalars(event).items()]
        self._write(event["step"], summary=self.package.proto.summary_pb2.Summary(value=values))
        if event["kind"] != "step" or time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flushed = time.monotonic()
            self.writer.flush()

    def _write(self, step: int, **content) -> None:
        self.writer.write_event(self.package.proto.event_pb2.Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()


class WandbLogger:
    """A run in Weights & Biases, in the project that WANDB_PROJECT names ("tinyft").

    Its files are in `folder`/wandb, and WANDB_MODE=offline leaves it at that: `wandb sync` sends them later. A resumed
    run has the id of the one it goes on with, and wandb ignores steps that it has already; offline its files have
    these twice, with the same numbers.
    """

    def __init__(self, folder: Path, config: dict):
        import wandb

        self.package, self.folder, self.run = wandb, Path(folder), None
        self.config = {key: value if isinstance(value, bool | int | float | str | None) else str(value)
                       for key, value in config.items()}

    def start(self, step: int | None, events: list[dict]) -> None:
        """Begin or continue the run. ValueError if wandb refuses it, without an account, say."""
        kept = self.folder / "wandb-id.txt"
        new = step is None or not kept.exists()
        run_id = secrets.token_hex(4) if new else kept.read_text(encoding="utf-8").strip()
        try:
            self.run = self.package.init(
                project=os.environ.get("WANDB_PROJECT", "tinyft"), name=self.folder.name, id=run_id, dir=self.folder,
                resume=None if new else "allow", config=self.config,
                settings=self.package.Settings(console="off"))  # what we print stays ours
        except Exception as error:
            raise ValueError(f"--wandb: {one_line(error)}; WANDB_MODE=offline in the environment keeps the log on this "
                             "machine") from None
        write_text(kept, run_id + "\n")

    def add(self, event: dict) -> None:
        """Log an event's scalars."""
        if found := scalars(event):
            self.run.log(found, step=event["step"])

    def close(self) -> None:
        """Finish the run; what was not sent yet is."""
        if self.run is not None:
            self.run.finish()
