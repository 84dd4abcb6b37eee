"""What is written above each backward pass: that it is there, that it is right, and that the code does it."""

import inspect
import math
import re

import numpy as np
import pytest

from tinyft import Tensor, arithmetic, lora, losses, ops
from tinyft.segments import segments_of

FORM = ("shapes", "forward", "chain", "result")
OPS = {name: function for module in (arithmetic, ops, losses, lora) for name, function in vars(module).items()
       if getattr(function, "is_op", False)}
FUNCTIONS = {"exp": np.exp, "log": np.log, "tanh": np.tanh, "sqrt": np.sqrt, "pi": math.pi}


def derivation_of(source: str) -> dict[str, list[str]]:
    """The lines of a derivation by their labels; {} where there is none."""
    lines = [line.strip() for line in source.split("\n")]
    begin = next((i for i, line in enumerate(lines) if line.startswith("# shapes ")), None)
    found: dict[str, list[str]] = {}
    for line in lines[begin:] if begin is not None else []:
        labelled = re.fullmatch(r"# (\w+|)\s+(\S.*)", line)
        if not labelled:
            break
        label = labelled[1] if labelled[1] in FORM else ""
        if label:
            found[label] = []
        found[list(found)[-1]].append(labelled[2] if label or not labelled[1] else line[2:].strip())
    return found


def statements(lines: list[str]) -> list[str]:
    """`name[i, j] = ...`, one after the other; lines of prose have none."""
    return [part.strip() for line in lines for part in line.split(";") if re.match(r"\s*\w+(\[[\w, ]+\])? = ", part)]


def with_sums(text: str) -> str:
    """sum_i takes in all that follows, up to the end or the closing bracket: as a call of Python."""
    while found := list(re.finditer(r"\bsum_(\w) ", text)):
        at = found[-1]
        depth, end = 0, at.end()
        while end < len(text) and depth >= 0:
            depth += (text[end] in "([") - (text[end] in ")]")
            end += depth >= 0
        text = f"{text[: at.start()]}sum_over({at[1]!r}, lambda {at[1]}: {text[at.end() : end]}){text[end:]}"
    return text


def carry_out(lines: list[str], known: dict, sizes: dict[str, int]) -> dict:
    """All that is known, and what the statements make of it."""
    known = dict(known)

    def sum_over(letter, term):
        return sum(term(i) for i in range(sizes[letter]))

    for statement in statements(lines):
        left, right = statement.split(" = ", 1)
        name, _, letters = left.rstrip("]").partition("[")
        letters = letters.split(", ") if letters else []
        code = compile(with_sums(right), statement, "eval")
        values = np.empty([sizes[letter] for letter in letters])
        for at in np.ndindex(*values.shape):
            where = dict(zip(letters, at, strict=True))
            found = eval(code, {**FUNCTIONS, "sum_over": sum_over, **known, **where})
            if not letters:
                values = np.asarray(found)
                break
            values[at] = found
        known[name] = values
    return known


RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.standard_normal(shape)


def positive(*shape):
    return RNG.uniform(0.5, 2, shape)


def case(call, inputs, sizes=None, **constants):
    return call, inputs, sizes or {}, constants


def attention(q, k, v):
    """The op wants them side by side: products with pieces of the identity put them there."""
    left, middle, right = (Tensor(piece) for piece in np.split(np.eye(9), 3))
    return ops.causal_attention(q @ left + k @ middle + v @ right, n_head=1, segments=segments_of([4]), scale=0.7)


TARGETS, LIVE = np.array([2, 0, 4, 1]), np.array([1, 0, 1, 1])
KEPT = (np.random.default_rng(7).random((3, 4), dtype=np.float32) >= 0.25) / 0.75
LORA_KEPT = np.random.default_rng(7).random((3, 4), dtype=np.float32) >= 0.25
N_C, T_D = {"n": 3, "c": 4, "e": 4}, {"i": 4, "j": 4, "t": 4, "d": 3}

CASES = {
    "add": case(ops.add, {"x": normal(2, 3), "y": normal(2, 3)}),
    "sub": case(ops.sub, {"x": normal(2, 3), "y": normal(2, 3)}),
    "mul": case(ops.mul, {"x": normal(2, 3), "y": normal(2, 3)}),
    "div": case(ops.div, {"x": normal(2, 3), "y": positive(2, 3)}),
    "neg": case(ops.neg, {"x": normal(2, 3)}),
    "pow": case(lambda x: ops.pow(x, 2.5), {"x": positive(2, 3)}, y=2.5),
    "pow of a number": case(lambda y: ops.pow(1.7, y), {"y": normal(2, 3)}, x=1.7),
    "exp": case(ops.exp, {"x": normal(2, 3)}),
    "log": case(ops.log, {"x": positive(2, 3)}),
    "tanh": case(ops.tanh, {"x": normal(2, 3)}),
    "relu": case(ops.relu, {"x": normal(2, 3)}),
    "reshape": case(lambda x: ops.reshape(x, shape=(6,)), {"x": normal(6)}, {"r": 6}),
    "transpose": case(ops.transpose, {"x": normal(2, 3)}, {"i": 2, "j": 3}),
    "index": case(lambda x: ops.index(x, key=np.array([2, 0, 2])), {"x": normal(4)}, {"n": 3, "m": 4},
                  key=np.array([2, 0, 2])),
    "sum": case(lambda x: ops.sum(x, axis=0), {"x": normal(2, 3)}, {"i": 2, "j": 3}),
    "matmul": case(ops.matmul, {"a": normal(2, 3), "b": normal(3, 4)}, {"m": 2, "k": 3, "n": 4}),
    "linear": case(ops.linear, {"x": normal(2, 3), "weight": normal(3, 4), "bias": normal(4)},
                   {"n": 2, "c": 3, "d": 4}),
    "softmax": case(ops.softmax, {"x": normal(2, 4)}, {"n": 2, "v": 4, "w": 4}),
    "layer_norm": case(lambda x, weight, bias: ops.layer_norm(x, weight, bias, eps=0.1),
                       {"x": normal(3, 4), "weight": normal(4), "bias": normal(4)}, N_C, C=4, eps=0.1),
    "gelu": case(ops.gelu, {"x": normal(2, 3)}),
    "embedding": case(lambda weight: ops.embedding(weight, np.array([1, 4, 1])), {"weight": normal(5, 2)},
                      {"n": 3, "c": 2, "v": 5}, ids=np.array([1, 4, 1])),
    "causal_attention": case(attention, {"q": normal(4, 3), "k": normal(4, 3), "v": normal(4, 3)}, T_D, scale=0.7),
    "dropout": case(lambda x: ops.dropout(x, p=0.25, rng=np.random.default_rng(7)), {"x": normal(3, 4)}, kept=KEPT),
    "cross_entropy": case(lambda logits: losses.cross_entropy(logits, np.where(LIVE, TARGETS, -100)),
                          {"logits": normal(4, 5)}, {"n": 4, "m": 4, "v": 5, "w": 5}, targets=TARGETS, live=LIVE),
    "linear_cross_entropy": case(
        lambda hidden, weight: losses.linear_cross_entropy(hidden, weight, TARGETS, counts=1 + LIVE, total=9),
        {"hidden": normal(4, 3), "weight": normal(5, 3)}, {"n": 4, "c": 3, "v": 5, "w": 5}, targets=TARGETS,
        counts=1 + LIVE, total=9),
    "lora_linear": case(
        lambda x, weight, bias, A, B: lora.lora_linear(x, weight, bias, A, B, scale=1.5, p=0.25,
                                                       rng=np.random.default_rng(7)),
        {"x": normal(3, 4), "weight": normal(4, 5), "bias": normal(5), "A": normal(2, 4), "B": normal(5, 2)},
        {"n": 3, "c": 4, "d": 5, "r": 2}, scale=1.5 / 0.75, kept=LORA_KEPT),
}


def test_every_op_has_a_case():
    assert {name.split(" ")[0] for name in CASES} == set(OPS)


@pytest.mark.parametrize("name", OPS)
def test_every_backward_pass_has_a_derivation_in_one_form(name):
    found = derivation_of(inspect.getsource(OPS[name].__wrapped__))
    assert tuple(found) == FORM and sum(map(len, found.values())) <= 8
    assert statements(found["forward"])[-1].startswith("out") and statements(found["result"])[-1].startswith("d")


def check(derivation, call, inputs, sizes, constants):
    """AssertionError unless the derivation is right, and what the op does."""
    known = {**inputs, **constants}
    forward = carry_out(derivation["forward"], known, sizes)
    tensors = {name: Tensor(array, requires_grad=True) for name, array in inputs.items()}
    out = call(*tensors.values())
    np.testing.assert_allclose(forward["out"], out.data, rtol=1e-9, atol=1e-12)
    dout = np.random.default_rng(5).standard_normal(out.shape)
    out.backward(dout)
    results = carry_out(derivation["result"], {**forward, "dout": dout}, sizes)

    def loss(name, array):
        return np.sum(dout * carry_out(derivation["forward"], {**known, name: array}, sizes)["out"])

    for name, array in inputs.items():
        written = np.broadcast_to(results[f"d{name}"], array.shape)
        np.testing.assert_allclose(written, tensors[name].grad, rtol=1e-9, atol=1e-12, err_msg=f"d{name} in the code")
        for at in np.ndindex(*array.shape):
            step = np.zeros_like(array)
            step[at] = 1e-6
            slope = (loss(name, array + step) - loss(name, array - step)) / 2e-6
            assert abs(written[at] - slope) < 1e-6 * (1 + abs(slope)), f"d{name}{at} is {written[at]}, expected {slope}"


@pytest.mark.parametrize("name", CASES)
def test_the_formulas_are_right_and_what_the_code_does(name):
    check(derivation_of(inspect.getsource(OPS[name.split(" ")[0]].__wrapped__)), *CASES[name])


@pytest.mark.parametrize("name, right, wrong", [
    ("sub", "dy = -dout", "dy = dout"),
    ("matmul", "sum_n dout[m, n] * b[k, n]", "sum_n dout[m, n] * a[m, k]"),
    ("softmax", "- sum_w dout[n, w] * out[n, w]", "- sum_w dout[n, w]"),
    ("layer_norm", "(sum_e g[n, e] / C)", "sum_e g[n, e] / C"),
    ("causal_attention", "(v[j, d] - out[i, d])", "v[j, d]"),
    ("tanh", "forward  out = (exp(x)", "forward  out = (2 * exp(x)"),
    ("cross_entropy", "(v == targets[n])", "(v != targets[n])"),
])
def test_a_slip_in_a_formula_is_noticed(name, right, wrong):
    source = inspect.getsource(OPS[name].__wrapped__)
    assert source.count(right) == 1
    with pytest.raises((AssertionError, IndexError)):
        check(derivation_of(source.replace(right, wrong)), *CASES[name])
