"""The states of a run: bit-identical to go on from, whole or not there, refused with all that differs."""

import errno
import json
import re
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small import Rows, assert_same_weights, make_model, weights_of

import tinyft.state
from tinyft import AdamW, Progress, Settings, load_state, save_state, train
from tinyft.state import (
    FOLDER,
    OLD_STATE,
    Damaged,
    check_state,
    delete_state,
    find_states,
)
from tinyft.tensor_files import write_tensors
from tinyft.train import Accumulated, Evaluated, Stepped

SETTINGS = Settings(epochs=2, batch_size=4, micro_batch_size=2, learning_rate=1e-2, evaluate_every=3, patience=0)
IDENTITY = {"seed": 1, **asdict(SETTINGS)}


class Run:
    """A small training run with dropout, each step in two halves."""

    def __init__(self, seed: int = 0):
        self.model = make_model(seed=seed)
        self.model.set_dropout(0.2)
        self.optimizer = AdamW(self.model)
        self.progress = Progress()
        self.rng = np.random.default_rng(seed)

    def events(self):
        training, validation = Rows(14, 340, 12, seed=1), Rows(5, 340, 12, seed=2)
        return train(self.model, self.optimizer, training, validation, SETTINGS, self.progress, self.rng)

    def go_until(self, kind: type, step: int):
        """Train until the event of this kind and step, and stop right after it."""
        for event in self.events():
            if isinstance(event, kind) and event.step == step:
                return self

    def save(self, folder, **options):
        return save_state(folder, self.optimizer, self.progress, IDENTITY, **options)

    @classmethod
    def resumed(cls, folder):
        """A fresh run with other weights and another seed, put where the saved one was."""
        run = cls(seed=77)
        run.progress = load_state(folder, run.optimizer, IDENTITY)
        return run


def losses(events) -> list[tuple]:
    """What must not depend on an interruption."""
    return [(type(event).__name__, event.step, event.loss) for event in events
            if isinstance(event, Stepped | Evaluated)]


def refusal(function, *args) -> str:
    """The one line that a ValueError says."""
    with pytest.raises(ValueError) as caught:
        function(*args)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value)
    return str(caught.value)


def names(folder) -> list[str]:
    return sorted(path.name for path in (folder / FOLDER).iterdir())


# ---- resumed


@pytest.fixture(scope="module")
def uninterrupted():
    run = Run()
    return run, list(run.events())


def test_the_run_has_two_epochs_dropout_halves_and_evaluations(uninterrupted):
    _, events = uninterrupted
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(1, 9))
    assert [event.step for event in events if isinstance(event, Evaluated)] == [0, 3, 6, 8]
    assert len(events) == 19
    assert [(event.step, event.done, event.of) for event in events if isinstance(event, Accumulated)] == [
        (step, 1, 2) for step in (1, 2, 3, 5, 6, 7)], "the last batch of an epoch has two rows only"
    without = Run()
    without.model.set_dropout(0.0)
    assert losses(without.events()) != losses(events)


# Events: Started, Evaluated(0), Accumulated(1), Stepped(1), ...; the state is saved right after that of this number.
@pytest.mark.parametrize("number", range(1, 19))
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(uninterrupted, tmp_path, number):
    whole, events = uninterrupted
    run = Run()
    stream = run.events()
    before = [next(stream) for _ in range(number + 1)]
    run.save(tmp_path)
    fresh = Run.resumed(tmp_path)
    after = list(fresh.events())
    assert losses(before) + losses(after) == losses(events)
    assert_same_weights(fresh.model, whole.model)
    for name in whole.optimizer.parameters:
        np.testing.assert_array_equal(fresh.optimizer.m[name], whole.optimizer.m[name])
        np.testing.assert_array_equal(fresh.optimizer.v[name], whole.optimizer.v[name])
    assert fresh.optimizer.steps == whole.optimizer.steps
    for name in ("step", "tokens", "best_loss", "best_step", "evaluations_since_best", "now_rng"):
        assert getattr(fresh.progress, name) == getattr(whole.progress, name)


def test_half_a_step_is_saved_with_its_gradients(tmp_path):
    run = Run().go_until(Accumulated, 2)
    path = run.save(tmp_path)
    assert path == tmp_path / FOLDER / "step-000001-and-001.safetensors"
    with safe_open(path, "numpy") as file:
        kinds = {name.split(".")[0] for name in file.keys()}
    assert kinds == {"weight", "m", "v", "grad"}
    again = Run.resumed(tmp_path)
    assert again.progress.accumulated == 1
    for name, parameter in run.optimizer.parameters.items():
        np.testing.assert_array_equal(again.optimizer.parameters[name].grad, parameter.grad)


def test_a_whole_step_is_saved_without_gradients(tmp_path):
    run = Run().go_until(Stepped, 2)
    with safe_open(run.save(tmp_path), "numpy") as file:
        assert not any(name.startswith("grad.") for name in file.keys())
    other = Run(seed=3)
    for parameter in other.optimizer.parameters.values():
        parameter.grad = np.ones_like(parameter.data)
    load_state(tmp_path, other.optimizer, IDENTITY)
    assert all(parameter.grad is None for parameter in other.optimizer.parameters.values())


def test_of_frozen_weights_nothing_is_saved(tmp_path):
    model = make_model()
    model.freeze()
    model.ln_f.unfreeze()
    path = save_state(tmp_path, AdamW(model), Progress(), {})
    assert sorted(load_file(path)) == ["m.ln_f.bias", "m.ln_f.weight", "v.ln_f.bias", "v.ln_f.weight",
                                       "weight.ln_f.bias", "weight.ln_f.weight"]


def test_moments_of_16_bits_come_back(tmp_path):
    model = make_model()
    optimizer, fresh = AdamW(model), AdamW(make_model(seed=1))
    rng = np.random.default_rng(0)
    for some in (optimizer.m, optimizer.v):
        some |= {name: rng.integers(2**16, size=array.shape, dtype=np.uint16) for name, array in some.items()}
    for some in (fresh.m, fresh.v):
        some |= {name: np.zeros(array.shape, np.uint16) for name, array in some.items()}
    save_state(tmp_path, optimizer, Progress(), {})
    load_state(tmp_path, fresh, {})
    assert all((fresh.v[name] == optimizer.v[name]).all() for name in optimizer.v)
    assert "is U16 (36,), expected F32 (36,)" in refusal(load_state, tmp_path, AdamW(make_model()), {})


def test_a_state_keeps_large_numbers_of_the_generator(tmp_path):
    """PCG64's state has 128 bits, more than a JSON reader that goes through floats would keep."""
    Run().go_until(Stepped, 1).save(tmp_path)
    inner = Run.resumed(tmp_path).progress.now_rng["state"]
    assert inner["state"] > 2**64 and re.fullmatch(r"\d+", str(inner["inc"]))


# ---- the last ones are kept


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=8), st.integers(1, 4))
def test_the_newest_are_kept(tmp_path_factory, positions, keep):
    folder, optimizer = tmp_path_factory.mktemp("run"), AdamW(make_model(n_layer=1))
    kept: list[tuple[int, int]] = []
    for step, accumulated in positions:
        path = save_state(folder, optimizer, Progress(step=step, accumulated=accumulated), {}, keep)
        # What is later than the one just written is of a course that was given up.
        kept = [*sorted(p for p in kept if p < (step, accumulated)), (step, accumulated)][-keep:]
        assert find_states(folder)[0] == path
        progress = load_state(folder, optimizer, {})
        assert (progress.step, progress.accumulated) == (step, accumulated)
        assert names(folder) == sorted(f"step-{step:06d}{f'-and-{half:03d}' * (half > 0)}.safetensors"
                                       for step, half in kept)


def test_numbers_and_not_names_tell_the_newest(tmp_path):
    for step in (999_999, 1_000_000):
        save_state(tmp_path, AdamW(make_model()), Progress(step=step), {})
    assert [path.name for path in find_states(tmp_path)] == ["step-1000000.safetensors", "step-999999.safetensors"]


def test_what_a_user_keeps_there_is_no_state(tmp_path):
    run = Run()
    for step in range(4):
        run.progress.step = step
        path = run.save(tmp_path, keep=1)
        (tmp_path / FOLDER / "step-000000-good.safetensors").write_text("a copy")
    assert find_states(tmp_path) == [path]
    assert names(tmp_path) == ["step-000000-good.safetensors", "step-000003.safetensors"]


def test_delete_state(tmp_path):
    delete_state(tmp_path)
    Run().save(tmp_path)
    (tmp_path / OLD_STATE).touch()
    delete_state(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_delete_state_where_the_folder_of_states_is_a_link(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / FOLDER).symlink_to(elsewhere)
    Run().save(folder)
    delete_state(folder)
    assert list(elsewhere.iterdir()) == [] and (folder / FOLDER).is_dir()


# ---- a disk that fails


def test_a_state_whose_writing_fails_leaves_the_old_ones(tmp_path, monkeypatch):
    run = Run()
    for step in (1, 2):
        run.progress.step = step
        run.save(tmp_path)

    def fail(path, *arguments):
        path.write_bytes(b"half of a state")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tinyft.state, "write_tensors", fail)
    run.progress.step = 3
    with pytest.raises(OSError, match="No space left"):
        run.save(tmp_path)
    assert names(tmp_path) == ["step-000001.safetensors", "step-000002.safetensors"]
    assert load_state(tmp_path, run.optimizer, IDENTITY).step == 2


@settings(max_examples=30)
@given(st.data())
def test_a_damaged_state_is_passed_over(tmp_path_factory, data):
    """Cut off, or with any one bit changed: never taken for a state, and the one before is."""
    folder, run = tmp_path_factory.mktemp("run"), Run()
    run.save(folder)
    run.progress.step = 1
    newest = run.save(folder)
    content = bytearray(newest.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        # In the header, where most of what can go wrong is, as often as in the numbers.
        end = data.draw(st.sampled_from([4000, len(content)]))
        content[data.draw(st.integers(0, end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    newest.write_bytes(content)
    said: list[str] = []
    try:
        progress = load_state(folder, run.optimizer, IDENTITY, said.append)
    except ValueError as error:  # a name or shape in the header is another one: refused, and nothing is changed
        assert str(error).startswith(str(newest)) and "another model" in str(error)
        return
    assert progress.step == 0 and len(said) == 1
    assert said[0].startswith(f"{newest} is ") and "going on from step-000000.safetensors, the one before" in said[0]


def test_no_state_that_can_be_read(tmp_path):
    run = Run()
    for step in (1, 2):
        run.progress.step = step
        run.save(tmp_path).write_bytes(b"garbage")
    for message in (refusal(load_state, tmp_path, run.optimizer, IDENTITY), refusal(check_state, tmp_path, IDENTITY)):
        assert message.count("is damaged") == 2 and "no other state is left, start anew" in message


def rewritten(path, **changes):
    """Give a state other notes, with a checksum that fits."""
    tensors = load_file(path)
    with safe_open(path, "numpy") as file:
        notes = json.loads(file.metadata()["notes"])
    text = json.dumps(notes | changes)
    save_file(tensors, path, metadata={"notes": text, "checksum": str(zlib.crc32(text.encode()))})


@pytest.mark.parametrize("changes", [
    {"progress": {"step": "abc"}}, {"progress": {"step": -1}}, {"progress": {"step": 1e300}}, {"progress": [1]},
    {"progress": {"speed": 1}}, {"progress": {"best_loss": None}}, {"progress": {"recent_losses": 1}},
    {"progress": {"recent_losses": ["x"]}}, {"progress": {"now_rng": {"bit_generator": "os.system"}}},
    {"progress": {"now_rng": {"bit_generator": "PCG64", "state": {"state": -1, "inc": 10**60}}}},
    # NumPy would read at that place, wherever in memory it is.
    {"progress": {"now_rng": {"bit_generator": "MT19937", "state": {"key": [1] * 624, "pos": 10**9}}}},
    {"optimizer_steps": "2"}, {"optimizer_steps": -2}, {"identity": None}, {"checksum": "x"},
])
def test_notes_that_no_run_has_written(tmp_path, changes):
    run = Run()
    rewritten(run.save(tmp_path), **changes)
    before = weights_of(run.model)
    said: list[str] = []
    message = refusal(lambda: load_state(tmp_path, run.optimizer, IDENTITY, said.append))
    assert message.startswith(str(tmp_path)) and "no state" in message
    assert all((weights_of(run.model)[name] == before[name]).all() for name in before)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "[]", "{"])
def test_notes_that_are_no_notes(tmp_path, text):
    run = Run()
    path = run.save(tmp_path)
    save_file(load_file(path), path, metadata={"notes": text, "checksum": str(zlib.crc32(text.encode()))})
    assert refusal(load_state, tmp_path, run.optimizer, IDENTITY).startswith(str(path))


def test_a_model_is_no_state(tmp_path):
    (tmp_path / FOLDER).mkdir()
    save_file({"wte": np.zeros(3)}, tmp_path / FOLDER / "step-000001.safetensors")
    assert "no state of a training run" in refusal(load_state, tmp_path, Run().optimizer, {})


# ---- other runs


def test_all_that_differs_is_named_at_once(tmp_path):
    Run().save(tmp_path)
    other = IDENTITY | {"learning_rate": 1.0, "batch_size": 8, "data": "mine"}
    other.pop("seed")
    run = Run(seed=5)
    for function in (lambda: load_state(tmp_path, run.optimizer, other), lambda: check_state(tmp_path, other)):
        message = refusal(function)
        assert message == (
            f"{tmp_path / FOLDER / 'step-000000.safetensors'}: the run was started with seed = 1, now it is unknown; "
            "batch_size = 4, now it is 8; learning_rate = 0.01, now it is 1.0; data = unknown, now it is mine; "
            "resume with the same, or start anew without --resume")
    assert_same_weights(run.model, make_model(seed=5))


def test_a_state_of_another_version_is_refused(tmp_path, monkeypatch):
    Run().save(tmp_path)
    monkeypatch.setattr(tinyft.state, "VERSION", "99.0")
    message = refusal(check_state, tmp_path, IDENTITY | {"seed": 2})
    assert re.search(r"the version of tinyft = [\d.]+, now it is 99\.0; seed = 1, now it is 2;", message)


def test_values_that_json_writes_otherwise_are_the_same(tmp_path):
    save_state(tmp_path, AdamW(make_model()), Progress(), {"layers": ("a", "b"), "x": np.float64(1.5).item()})
    for layers in (("a", "b"), ["a", "b"]):
        assert check_state(tmp_path, {"layers": layers, "x": 1.5})


@pytest.mark.parametrize("shape", [{"n_embd": 24}, {"vocab_size": 341}, {"n_layer": 3}, {"n_layer": 1}, {"n_inner": 5}])
def test_a_state_of_another_model_is_refused_and_changes_nothing(tmp_path, shape):
    Run().save(tmp_path)
    model = make_model(seed=5, **shape)
    optimizer = AdamW(model)
    before = weights_of(model)
    assert "the state belongs to another model" in refusal(load_state, tmp_path, optimizer, IDENTITY)
    assert all((weights_of(model)[name] == before[name]).all() for name in before), "weights were changed"
    assert not any(moment.any() for moment in (*optimizer.m.values(), *optimizer.v.values()))


def test_nothing_to_resume(tmp_path):
    for function in (lambda: load_state(tmp_path, Run().optimizer, {}), lambda: check_state(tmp_path, {})):
        assert "so there is nothing to resume; start anew without --resume" in refusal(function)
    (tmp_path / OLD_STATE).touch()
    assert "was saved by an earlier version of tinyft" in refusal(check_state, tmp_path, {})


def test_damage_is_an_error_of_the_users_kind():
    assert issubclass(Damaged, ValueError)


# ---- the files


@given(st.dictionaries(st.text("abc.", min_size=1), st.tuples(
    st.sampled_from(["float32", "float64", "float16", "uint16", "uint8"]), st.lists(st.integers(0, 4), max_size=3))),
       st.text(max_size=20))
def test_tensors_are_written_as_safetensors_reads_them(tmp_path_factory, arrays, note):
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("x") / "x.safetensors"
    tensors = {name: rng.integers(100, size=shape).astype(kind) for name, (kind, shape) in arrays.items()}
    write_tensors(path, tensors, {"note": note})
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"note": note}
    for found in (load_file(path),):
        assert found.keys() == tensors.keys()
        for name, array in tensors.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
    assert (int.from_bytes(path.read_bytes()[:8], "little") + 8) % 8 == 0


def test_tensors_are_converted_while_they_are_written(tmp_path):
    array = np.arange(12.0).reshape(3, 4).T
    write_tensors(tmp_path / "x", {"a": array}, {}, np.float16)
    np.testing.assert_array_equal(load_file(tmp_path / "x")["a"], array.astype(np.float16), strict=True)
