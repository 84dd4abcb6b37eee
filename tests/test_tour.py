"""The tour: the form of its programs, their notebooks, and the answers to their exercises."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small import make_model

import tinyft
from tinyft import AdamW, Tensor, gradcheck, losses, ops
from tinyft.segments import segments_of

TOUR = Path(tinyft.__file__).resolve().parent.parent / "examples" / "tour"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"tour_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Whoever has solved the exercises can have the same tests look at a folder of their own, with files of the same names.
ANSWERS = Path(os.environ.get("TINYFT_TOUR_ANSWERS", TOUR / "answers"))
make_notebooks = load(TOUR / "make_notebooks.py")
PROGRAMS = make_notebooks.PROGRAMS


class Answers:
    """The functions of a file of answers; what is missing fails in one line."""

    def __init__(self, name):
        self._path = ANSWERS / f"{name}.py"
        if not self._path.exists():
            pytest.fail(f"{self._path} is missing: the answers to the exercises of {name}.py go there", pytrace=False)
        self._module = load(self._path)

    def __getattr__(self, function):
        if not hasattr(self._module, function):
            pytest.fail(f"{self._path} has no {function}, which an exercise asks for", pytrace=False)
        return getattr(self._module, function)


def assert_same(found, right, hint, rtol=1e-6):
    """hint: what such a difference most often comes from, for those who look at their own answers."""
    assert found is not None, "the function returns nothing"
    found = found.data if isinstance(found, Tensor) else found
    np.testing.assert_allclose(found, right, rtol=rtol, atol=1e-3 * rtol, err_msg=hint)


def cells(name) -> list[tuple[str, str, list[str]]]:
    """Kind, source and tags of each cell of a program."""
    found = []
    for part in ("\n" + (TOUR / f"{name}.py").read_text("utf-8")).split("\n# %%")[1:]:
        head, _, body = part.partition("\n")
        body = body.strip("\n")
        if "[markdown]" in head:
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.split("\n"))
        tags = json.loads(head.split("tags=")[1]) if "tags=" in head else []
        found.append(("markdown" if "[markdown]" in head else "code", body, tags))
    return found


# ---- form


@pytest.mark.parametrize("number, name", list(enumerate(PROGRAMS, start=1)))
def test_a_program_says_what_one_will_know_and_ends_with_exercises(number, name):
    kinds, texts, _ = zip(*cells(name), strict=True)
    assert kinds[0] == kinds[-1] == "markdown"
    assert texts[0].startswith(f"# {number}. ") and "\n\nYou will know afterwards: " in texts[0]
    assert texts[-1].startswith("## Exercises\n\n1. ") and "\n2. " in texts[-1] and "\n3. " not in texts[-1]
    following = f"Next: `{PROGRAMS[number]}.py`." if number < len(PROGRAMS) else "Where to go on:"
    assert f"Answers: `answers/{name}.py`. {following}" in texts[-1].replace("\n", " ")
    assert (TOUR / "answers" / f"{name}.py").exists()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_short(name):
    """About 120 lines of code at most; what is text isn't counted."""
    lines = [line for kind, text, _ in cells(name) if kind == "code" for line in text.split("\n") if line.strip()]
    assert len(lines) <= 120


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_page_lists_the_programs_in_order(name):
    page = (TOUR / "README.md").read_text("utf-8")
    places = [page.index(f"]({program}.py)") for program in PROGRAMS]
    assert places == sorted(places) and f"]({name}.ipynb)" in page


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_notebook_has_the_program_and_its_outputs(name):
    notebook = json.loads((TOUR / f"{name}.ipynb").read_text("utf-8"))
    stands = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", []))
              for cell in notebook["cells"]]
    assert stands == cells(name), "make it again: python examples/tour/make_notebooks.py " + name
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert any(output["output_type"] == "stream" for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)


@pytest.mark.heavy
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_from_anywhere(name, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install -e '.[examples]'")
    environment = {**os.environ, "TINYFT_TOUR_PICTURES": str(tmp_path / "pictures")}
    done = subprocess.run([sys.executable, TOUR / f"{name}.py"], cwd=tmp_path, env=environment, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("picture: ") for line in done.stdout.splitlines() if line.startswith("picture: ")]
    said = [Path(line).name for line in lines]
    assert sorted(said) == sorted(path.name for path in (tmp_path / "pictures").glob("*.png"))
    assert all((tmp_path / "pictures" / picture).read_bytes().startswith(b"\x89PNG") for picture in said)


# ---- what a check of the notebooks notices


def notebook(*outputs, tags=(), source="print(1)"):
    cell = {"cell_type": "code", "source": source, "metadata": {"tags": list(tags)}, "outputs": list(outputs)}
    return {"cells": [{"cell_type": "markdown", "source": "text", "metadata": {}}, cell]}


def printed(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


PICTURE = {"output_type": "display_data", "data": {"image/png": "..."}}


@pytest.mark.parametrize("stands, fresh, found", [
    (notebook(printed("1\n2\n")), notebook(printed("1\n"), printed("2\n")), None),
    (notebook(printed("1\n2\n")), notebook(printed("1\n3\n")), "cell 1, line 2 was '2' and is '3' now"),
    (notebook(printed("1\n2\n")), notebook(printed("1\n")), "cell 1, line 2 was '2' and is '' now"),
    (notebook(printed("5 ms"), tags=["varies"]), notebook(printed("6 ms"), tags=["varies"]), None),
    (notebook(PICTURE, tags=["varies"]), notebook(tags=["varies"]), "cell 1 had 1 pictures and has 0 now"),
    (notebook(), notebook(source="print(2)"), "cell 1 isn't what the program has there"),
    ({"cells": notebook()["cells"][:1]}, notebook(), "cell 1 isn't what the program has there"),
], ids=["same", "another line", "a line less", "varies", "no picture", "source", "a cell less"])
def test_differences_of_notebooks(stands, fresh, found):
    assert list(make_notebooks.differences(stands, fresh)) == ([] if found is None else [found])


def test_a_program_that_there_is_not():
    with pytest.raises(ValueError, match="no program 'grpah' in the tour, expected some of graph, add_an_op"):
        make_notebooks.main(["grpah"])


# ---- answers


def test_graph_1(rng):
    a, b, c = (Tensor(value, requires_grad=True) for value in (2.0, -3.0, 10.0))

    def loss():
        return (a * b + c) * a

    found = Answers("graph").gradients(loss())
    loss().backward()
    assert set(found) == {a, b, c}, "expected a dict from each leaf Tensor to its gradient, and nothing else"
    for leaf in (a, b, c):
        assert_same(found[leaf], leaf.grad, "a is used twice, so that its gradient is a sum; are nodes taken by order?")


def test_graph_2():
    a = Tensor(3.0, requires_grad=True)
    d = a * a
    (d * d + d).backward()
    assert a.grad == 114
    assert_same(Answers("graph").hasty(3.0), (6, 114),
                "d gets 1 from the sum, which is all that the hasty one hands on, and 2 d from the product")


def test_add_an_op_1(rng):
    softplus = Answers("add_an_op").softplus
    gradcheck(softplus, [rng.standard_normal((3, 4))])
    x = Tensor(np.array([1000.0, -1000.0, 0.0]), requires_grad=True)
    out = softplus(x)
    assert_same(out.data, [1000, 0, np.log(2)], "exp(1000) is infinite: np.logaddexp(0, x) doesn't form it")
    out.backward(np.ones(3))
    assert_same(x.grad, [1, 0, 0.5], "the slope is 1 / (1 + exp(-x)); in which form does nothing overflow?")


def test_add_an_op_2(rng):
    given = Answers("add_an_op")
    inputs = [rng.standard_normal(5), rng.standard_normal(5)]
    gradcheck(given.hypot, inputs)
    with pytest.raises(AssertionError):
        gradcheck(given.swapped_hypot, inputs)
    hidden = given.inputs_that_hide_it()
    assert all(x.all() for x in hidden), "zeros are excluded: hypot has no slope there"
    gradcheck(given.swapped_hypot, hidden)


def test_broadcasting_1(rng):
    x = Tensor(rng.standard_normal((4, 3)), requires_grad=True)
    dout, S = rng.standard_normal(3), Answers("broadcasting").sum_matrix(4, 3)
    out = x.sum(axis=0)
    out.backward(dout)
    assert_same(S @ x.data.reshape(-1), out.data, "row j of S has a 1 for each element of column j of x")
    assert_same((S.T @ dout).reshape(4, 3), x.grad, "the transpose copies a gradient to every row")


def test_broadcasting_2(rng):
    A, B = (Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((2, 3, 4), (4, 5)))
    dout = rng.standard_normal((2, 3, 5))
    (A @ B).backward(dout)
    dA, dB = Answers("broadcasting").gradients(A.data, B.data, dout)
    assert_same(dA, A.grad, "dA keeps b, m and k: only n is summed over")
    assert_same(dB, B.grad, "B has no b: its gradient is summed over b, as over m")


@pytest.mark.parametrize("cut", [0, 1, 7, 10])
def test_cross_entropy_1(rng, cut):
    logits, targets = rng.standard_normal((10, 6)), rng.integers(6, size=10)
    targets[[2, 3, 8]] = -100
    whole = losses.cross_entropy(Tensor(logits), targets).item()
    found = Answers("cross_entropy").loss_in_parts(logits, targets, cut)
    assert_same(found, whole, "parts count by their live targets, and one of them may have none")


def test_cross_entropy_2(rng):
    smoothed, logits, targets = Answers("cross_entropy").smoothed, rng.standard_normal((4, 6)), np.array([1, 0, 5, 5])
    gradcheck(lambda z: smoothed(z, targets, e=0.1), [logits])
    sharp = losses.cross_entropy(Tensor(logits), targets).item()
    assert_same(smoothed(Tensor(logits), targets, e=0.0).item(), sharp, "with e = 0 it is the usual loss")
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    even = smoothed(Tensor(logits), targets, e=1.0).item()
    assert_same(even, -log_p.mean(), "with e = 1 every token has 1 / V, the right one too")


def test_attention_1(rng):
    windowed, (Q, K, V) = Answers("attention").windowed, rng.standard_normal((3, 6, 4))
    whole = ops.causal_attention(Tensor(np.hstack([Q, K, V])), n_head=1, segments=segments_of([6])).data
    assert_same(windowed(Q, K, V, 6), whole, "a window of all tokens hides the future and nothing else")
    assert_same(windowed(Q, K, V, 1), V, "with w = 1 a token sees itself alone: the window reaches w - 1 back")
    last = ops.causal_attention(Tensor(np.hstack([Q, K, V])[4:]), n_head=1, segments=segments_of([2])).data
    assert_same(windowed(Q, K, V, 2)[5], last[1], "with w = 2 a token sees itself and the one before")


def test_attention_2(rng):
    Q, K, V = rng.standard_normal((3, 6, 4))
    whole = ops.causal_attention(Tensor(np.hstack([Q, K, V])), n_head=1, segments=segments_of([6])).data
    assert_same(Answers("attention").one_more(Q[-1], K, V), whole[-1], "is the score divided by the root of D?")


def test_naive_gpt2_1():
    count, model = Answers("naive_gpt2").count, make_model()
    shape = model.config
    found = count(shape.vocab_size, shape.n_positions, shape.n_embd, shape.n_layer)
    assert found == model.n_parameters(), "biases count, norms have two rows each, and the table counts once"
    assert count(50257, 1024, 768, 12) == 124_439_808


def test_naive_gpt2_2(rng):
    x, (Q, K, V), order = rng.standard_normal((5, 6)), rng.standard_normal((3, 6, 4)), rng.permutation(5)
    unordered = Answers("naive_gpt2").unordered
    found = unordered(x[order], Q, K, V)
    assert_same(found, unordered(x, Q, K, V)[order], "rows may see each other only by their contents: is there a mask?")
    assert_same(unordered(x[:1], Q, K, V), x[:1] @ V, "a token alone gets its own value")


def test_training_step_1(rng):
    model = make_model(dtype=np.float64)
    inputs = rng.integers(model.config.vocab_size, size=(4, 6))
    targets = np.where(rng.random((4, 6)) < 0.4, -100, rng.integers(model.config.vocab_size, size=(4, 6)))
    model.loss(inputs, targets).backward()
    whole = {name: p.grad.copy() for name, p in model.named_parameters()}
    for _, p in model.named_parameters():
        p.grad = None
    Answers("training_step").in_halves(model, inputs, targets)
    for name, p in model.named_parameters():
        assert_same(p.grad, whole[name], "each half's mean is over its own targets, unless it gets a total")


def test_training_step_2(rng):
    model = make_model(dtype=np.float64)
    name, p = next((name, p) for name, p in model.named_parameters() if p.ndim == 2)
    before, optimizer = p.data.copy(), AdamW(model)
    gradients = rng.standard_normal((3, *p.shape))
    for gradient in gradients:
        p.grad = gradient.copy()
        optimizer.step(1e-3)
    found = Answers("training_step").adamw(before, gradients, 1e-3)
    assert_same(found, p.data, "after s steps the means are divided by 1 - beta**s; decay is of the weight before",
                rtol=1e-12)


def test_matmul_steps_1():
    memory = Answers("matmul_steps").memory_per_multiply_add
    assert_same(memory(1, 1, 1), 4, "loads of a, b and c, and a store of c")
    assert_same(memory(14, 2, 10**9), 16 / 28, "a step of k loads 14 numbers and 2 vectors for 28 multiply-adds")
    assert_same(memory(30, 1, 10**9), 31 / 30, "a step of k loads 30 numbers and a vector for 30 multiply-adds")
    for registers, tile in ((32, (14, 2)), (16, (6, 2))):
        assert Answers("matmul_steps").best_tile(registers) == tile, "a register each for r v sums, v of B and 1 of A"


@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (14, 3, 32), (15, 7, 33), (31, 1, 5)])
def test_matmul_steps_2(rng, m, k, n):
    A, B = rng.standard_normal((m, k)), rng.standard_normal((k, n))
    assert_same(Answers("matmul_steps").any_shape(A, B), A @ B, "are pieces that stick out filled with zeros, and cut?")


def test_what_tuning_changed_1(rng):
    before, after = (make_model(seed=seed) for seed in (1, 2))
    between, ids = Answers("what_tuning_changed").between, np.array([[1, 2, 3]])
    for share, model in ((0, before), (1, after)):
        found = between(before, after, share)(ids).data
        assert_same(found, model(ids).data, "0 is the model before, 1 the one after", rtol=1e-5)
    middle = dict(between(before, after, 0.5).named_parameters())["wte.weight"].data
    assert_same(middle, (before.wte.weight.data + after.wte.weight.data) / 2, "0.5 is the mean of both")
    assert not np.array_equal(before.wte.weight.data, after.wte.weight.data), "the models given must stay as they are"


def test_what_tuning_changed_2(rng):
    rank_for = Answers("what_tuning_changed").rank_for
    change = rng.standard_normal((20, 3)) @ rng.standard_normal((3, 10))
    assert rank_for(change, 0.999999) == 3, "a product of (20, 3) and (3, 10) has three singular values that aren't 0"
    for share, rank in ((9 / 11 - 1e-9, 1), (9 / 11 + 1e-9, 2)):
        assert rank_for(np.diag([3.0, 1.0, 1.0]), share) == rank, "squares are added up: 9, 1 and 1 of 11"
