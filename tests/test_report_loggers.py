"""TensorBoard's files read back, and what wandb is told: of new runs, of resumed ones, of what fails."""

from __future__ import annotations

import errno
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tinyft.loggers import TensorBoardLogger, make_loggers, scalars
from tinyft.report import RunReport
from tinyft.train import Evaluated, Noticed, Progress, Started, Stepped


def stepped(step: int, loss: float) -> Stepped:
    return Stepped(step, step / 10, loss, 1e-3 / step, 2.0 + step, 100, 200, 0.5)


def run(folder: Path, name: str, progress: Progress, steps: int, shift: float = 0.0) -> None:
    """A run up to a step, with an evaluation at every second one; losses tell which run they are of."""
    with RunReport(folder, progress, make_loggers([name], folder, {"rank": 8, "folder": folder})) as report:
        report.add(Started(20, 20))
        for step in range(progress.step, steps + 1):
            if step > progress.step:
                report.add(stepped(step, step + shift))
            if step % 2 == 0 and step > progress.evaluated_step:
                report.add(Evaluated(step, step / 10, 100 * step, 1.0, 100 + step + shift, True, False))
        report.add(Noticed(steps, "odd"))


RESUMED = [Progress(step=4, evaluated_step=4), Progress(step=4, evaluated_step=2), Progress(step=5, evaluated_step=4)]


def test_what_is_drawn_of_an_event():
    event = {"kind": "step", "loss": 1.5, "learning_rate": 1e-3, "gradient_norm": 2.0, "processed": 300, "seconds": 0.5}
    assert scalars(event) == {"loss/training": 1.5, "optimizer/learning_rate": 1e-3, "optimizer/gradient_norm": 2.0,
                              "speed/tokens_per_second": 600.0}
    assert scalars({"kind": "evaluation", "loss": 2.5, "train_loss": 1.0}) == {"loss/validation": 2.5}
    assert scalars({"kind": "notice", "text": "odd"}) == {}


@pytest.mark.parametrize(("name", "expected"), [
    ("tensorboard", "--tensorboard needs tensorboardX: pip install tensorboardX"),
    ("wandb", "--wandb needs wandb: pip install wandb"),
    ("neptune", "'neptune' is unknown, expected tensorboard or wandb"),
])
def test_what_is_missing_is_said_with_its_remedy(tmp_path, monkeypatch, name, expected):
    for package in ("wandb", "tensorboardX", "tensorboardX.event_file_writer"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=expected):
        make_loggers([name], tmp_path, {})
    assert make_loggers([], tmp_path, {}) == []


def test_neither_package_is_imported_unasked(run_python):
    result = run_python("import sys, tinyft.loggers; print({'wandb', 'tensorboardX'} & sys.modules.keys())")
    assert result.stdout == "set()\n", result.stderr


# ---- TensorBoard


def records(path: Path) -> list:
    """The events of a file of records: length, its checksum, content, its checksum (TensorFlow's TFRecord)."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="tensorboardX is not installed")
    content, events = path.read_bytes(), []
    while content:
        [length] = struct.unpack("<Q", content[:8])
        assert len(content) >= 16 + length, "cut"
        events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: a start of a session takes away what earlier files have from its step on."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        for event in records(path):
            if event.HasField("session_log"):
                found = {name: [point for point in points if point[0] < event.step] for name, points in found.items()}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@pytest.fixture
def tensorboard_x():
    return pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")


def test_tensorboard_gets_every_curve(tensorboard_x, tmp_path):
    run(tmp_path, "tensorboard", Progress(), 4)
    found = curves(tmp_path)
    assert found["loss/training"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert found["loss/validation"] == [(0, 100.0), (2, 102.0), (4, 104.0)]
    assert found["optimizer/gradient_norm"] == [(1, 3.0), (2, 4.0), (3, 5.0), (4, 6.0)]
    assert found["optimizer/learning_rate"] == [(step, float(np.float32(1e-3 / step))) for step in range(1, 5)]
    assert found["speed/tokens_per_second"] == [(step, 400.0) for step in range(1, 5)]
    [file] = (tmp_path / "tensorboard").iterdir()
    first, options = records(file)[:2]
    assert first.file_version == "brain.Event:2"
    assert b"| rank | 8 |" in options.summary.value[0].tensor.string_val[0]


@pytest.mark.parametrize("progress", RESUMED)
def test_tensorboard_goes_on_without_doubled_steps(tensorboard_x, tmp_path, progress):
    run(tmp_path, "tensorboard", Progress(), 7)
    run(tmp_path, "tensorboard", progress, 9, shift=0.5)
    found = curves(tmp_path)
    assert found["loss/training"] == [(i, i + 0.5 * (i > progress.step)) for i in range(1, 10)]
    assert found["loss/validation"] == [(i, 100 + i + 0.5 * (i > progress.evaluated_step)) for i in range(0, 10, 2)]


def test_a_new_run_in_an_old_folder_begins_a_new_log(tensorboard_x, tmp_path):
    run(tmp_path, "tensorboard", Progress(), 7)
    [file] = (tmp_path / "tensorboard").iterdir()
    file.rename(file.with_name("events.out.tfevents.1700000000.earlier"))  # another second
    (tmp_path / "tensorboard" / "notes.txt").write_text("mine")
    run(tmp_path, "tensorboard", Progress(), 2, shift=0.5)
    (tmp_path / "tensorboard" / "notes.txt").unlink()
    assert curves(tmp_path)["loss/training"] == [(1, 1.5), (2, 2.5)]


def test_evaluations_are_on_the_disk_at_once(tensorboard_x, tmp_path):
    with RunReport(tmp_path, Progress(), make_loggers(["tensorboard"], tmp_path, {})) as report:
        report.add(Started(20, 20))
        report.add(stepped(1, 1.5))
        report.add(Evaluated(1, 0.1, 100, 1.0, 2.5, True, False))
        assert curves(tmp_path)["loss/training"] == [(1, 1.5)] and curves(tmp_path)["loss/validation"] == [(1, 2.5)]


def test_a_full_disk_ends_the_log_and_not_the_run(tensorboard_x, tmp_path, capsys):
    logger = TensorBoardLogger(tmp_path, {})
    with RunReport(tmp_path, Progress(), [logger]) as report:
        report.add(Started(20, 20))

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        logger.writer._py_recordio_writer._writer = SimpleNamespace(write=full, flush=full, close=full)
        for step in range(1, 40):  # SummaryWriter waits for ever at the twelfth
            report.add(stepped(step, 1.0))
    out = capsys.readouterr().out
    assert out.count("warning") == 1 and "TensorBoardLogger failed ([Errno 28] No space left on device)" in out


@pytest.mark.referee
@pytest.mark.parametrize("progress", RESUMED)
def test_tensorboard_itself_reads_the_same(tensorboard_x, tmp_path, progress):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                      reason="TensorBoard is not installed")
    run(tmp_path, "tensorboard", Progress(), 7)
    run(tmp_path, "tensorboard", progress, 9, shift=0.5)
    shown = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert {name: [(event.step, event.value) for event in shown.Scalars(name)]
            for name in shown.Tags()["scalars"]} == curves(tmp_path)
    assert len(shown.Scalars("loss/training")) == 9 and shown.Tags()["tensors"] == ["options/text_summary"]


# ---- wandb


class Wandb:
    """Stands in for the package: notes what it is told."""

    def __init__(self, error: Exception | None = None):
        self.error, self.options, self.logged, self.finished = error, [], [], 0
        self.Settings = lambda **settings: settings

    def init(self, **options):
        if self.error:
            raise self.error
        self.options.append(options)
        return SimpleNamespace(log=lambda found, step: self.logged.append((step, found)), finish=self.finish)

    def finish(self) -> None:
        self.finished += 1


def test_wandb_is_told_of_a_run_and_goes_on_with_it(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    folder = tmp_path / "mine"
    folder.mkdir()
    run(folder, "wandb", Progress(), 3)
    [options] = wandb.options
    assert options["project"] == "tinyft" and options["name"] == "mine" and options["dir"] == folder
    assert options["config"] == {"rank": 8, "folder": str(folder)} and options["resume"] is None
    assert [(step, list(found)[0]) for step, found in wandb.logged] == [
        (0, "loss/validation"), (1, "loss/training"), (2, "loss/training"), (2, "loss/validation"),
        (3, "loss/training")]
    assert wandb.logged[1][1] == scalars({"kind": "step", **vars(stepped(1, 1))}) and wandb.finished == 1
    run(folder, "wandb", Progress(step=2, evaluated_step=2), 3)
    assert wandb.options[1]["id"] == options["id"] and wandb.options[1]["resume"] == "allow"
    assert wandb.logged[-1][0] == 3 and len(wandb.logged) == 6 and wandb.finished == 2
    run(folder, "wandb", Progress(), 1)
    assert wandb.options[2]["id"] != options["id"] and wandb.options[2]["resume"] is None


def test_wandb_without_an_account_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Wandb(RuntimeError("No API key configured.")))
    with pytest.raises(ValueError, match=r"--wandb: No API key configured; WANDB_MODE=offline"):
        run(tmp_path, "wandb", Progress(), 1)
    assert not list(tmp_path.iterdir()), "what is tried again with WANDB_MODE=offline meets no traces of a run"


@pytest.mark.referee
def test_wandb_itself_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(tmp_path, "wandb", Progress(), 3)
    run(tmp_path, "wandb", Progress(step=2, evaluated_step=2), 4)
    wandb.teardown()
    parts = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(parts) == 2 and len({part.name for part in parts}) == 1, "two parts of one run"
    assert all(b"loss/training" in part.read_bytes() for part in parts)
