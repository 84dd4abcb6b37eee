"""The kernels' arithmetic once more: one line of mathematics after the other, in float64.

Also how far a kernel may be off. A sum of n rounded terms is wrong by about sqrt(n) roundings of u = eps / 2,
since roundings err in both directions (Higham and Mary, "A new approach to probabilistic rounding error
analysis", 2019); the reference, itself float64, can be wrong by as much again where the kernel is float64,
which makes u an eps. Every tolerance here is a small number of eps, counted from the roundings on the way,
times the sum of the terms' absolute values: cancellation doesn't make rounding errors smaller.
"""

import math

import numpy as np

from tinyft.kernels.attention import attention_backward, attention_forward
from tinyft.kernels.matmul import gemm
from tinyft.segments import segments_of


def wide(*arrays):
    """The arrays in float64."""
    converted = tuple(np.asarray(array, np.float64) for array in arrays)
    return converted if len(converted) > 1 else converted[0]


def eps(dtype) -> float:
    return float(np.finfo(dtype).eps)


def sum_error(n: int, dtype) -> float:
    """Bound for the error of a sum of n products, relative to the sum of their absolute values."""
    return (2 + math.sqrt(n)) * eps(dtype)


def assert_within(got: np.ndarray, expected: np.ndarray, bound) -> None:
    """|got - expected| <= bound everywhere; NaN counts as wrong."""
    assert got.shape == expected.shape
    error = np.abs(wide(got) - expected)
    bound = np.broadcast_to(bound, expected.shape)
    wrong = ~(error <= bound)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(f"{wrong.sum()} of {wrong.size} wrong; at {at} got {got[at]!r}, "
                             f"expected {expected[at]!r} +- {bound[at]:.3g}")


# ---- one function for each kernel


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(dout, out):
    dx = np.empty_like(out)
    for row in range(len(out)):
        jacobian = np.diag(out[row]) - np.outer(out[row], out[row])
        dx[row] = jacobian @ dout[row]
    return dx


def layer_norm(x, weight, bias, epsilon):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * weight + bias


def layer_norm_backward(dout, x, weight, epsilon):
    """dx through the full Jacobian of each row, dweight, dbias."""
    width = x.shape[1]
    mean = x.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt(x.var(axis=1, keepdims=True) + epsilon)
    normal = (x - mean) * rstd
    dx = np.empty_like(x)
    for row in range(len(x)):
        # d normal_i / d x_j = rstd * (delta_ij - 1/C - normal_i normal_j / C)
        jacobian = rstd[row] * (np.eye(width) - 1 / width - np.outer(normal[row], normal[row]) / width)
        dx[row] = (dout[row] * weight) @ jacobian
    return dx, (dout * normal).sum(axis=0), dout.sum(axis=0)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x):
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


def cross_entropy(logits, targets):
    """Losses of each row, and the gradient of their sum."""
    probabilities = softmax(logits)
    rows = np.arange(len(targets))
    top = logits.max(axis=1)
    losses = np.log(np.exp(logits - top[:, None]).sum(axis=1)) - (logits[rows, targets] - top)
    onehot = np.zeros_like(logits)
    onehot[rows, targets] = 1
    return losses, probabilities - onehot


def embedding_backward(dout, ids, dweight):
    total = dweight.copy()
    for row, token in enumerate(ids):
        total[token] += dout[row]
    return total


def adamw(weight, grad, m, v, grad_scale, learning_rate, beta1, beta2, epsilon, weight_decay, step):
    """Algorithm 2 of the AdamW paper, line by line."""
    g = grad * grad_scale
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    update = learning_rate * m_hat / (np.sqrt(v_hat) + epsilon)
    return weight - update - learning_rate * weight_decay * weight, m, v, update


def split_heads(qkv, heads):
    """(N, 3C) -> three of (heads, N, size)."""
    tokens, stride = qkv.shape
    return qkv.reshape(tokens, 3, heads, stride // 3 // heads).transpose(1, 2, 0, 3)


def rows_in_full(segments):
    """(the numbers of a row's tokens, how many of them it shares with earlier segments) of each segment."""
    for segment, own in enumerate(np.diff(segments.starts)):
        tokens = segments.row(segment)
        yield tokens, len(tokens) - own


def attention(qkv, heads, segments):
    """One query at a time; each row has its own copies of the tokens that it shares."""
    out = np.zeros((len(qkv), heads, qkv.shape[1] // 3 // heads))
    for tokens, shared in rows_in_full(segments):
        q, k, v = split_heads(qkv[tokens], heads)
        for t in range(shared, len(tokens)):
            for head in range(heads):
                weights = softmax(k[head, : t + 1] @ q[head, t] / math.sqrt(q.shape[2]))
                out[tokens[t], head] = weights @ v[head, : t + 1]
    return out.reshape(len(qkv), qkv.shape[1] // 3)


def attention_gradient(dout, qkv, heads, segments, magnitude=False):
    """One query at a time; the gradients of a token's copies are summed.

    magnitude: the sum of absolute values of the terms instead of their sum.
    """
    dqkv = np.zeros_like(qkv)
    sign, size_of = (1, np.abs) if magnitude else (-1, lambda x: x)
    for tokens, shared in rows_in_full(segments):
        q, k, v = split_heads(qkv[tokens], heads)
        dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
        size = q.shape[2]
        scale = 1 / math.sqrt(size)
        do = dout[tokens].reshape(len(tokens), heads, size).transpose(1, 0, 2)
        for head in range(heads):
            for t in range(shared, len(tokens)):
                seen = slice(t + 1)
                weights = softmax(k[head, seen] @ q[head, t] * scale)
                dweights = size_of(v[head, seen]) @ size_of(do[head, t])
                dscores = weights * (dweights + sign * (weights @ dweights)) * scale
                dv[head, seen] += np.outer(weights, size_of(do[head, t]))
                dk[head, seen] += np.outer(dscores, size_of(q[head, t]))
                dq[head, t] += dscores @ size_of(k[head, seen])
        dqkv[tokens] += np.stack([dq, dk, dv]).transpose(2, 0, 1, 3).reshape(qkv[tokens].shape)
    return dqkv


# ---- checks that also run in a fresh interpreter with narrower vectors, see test_jit.py


def check_matmul(rng, rows, depth, columns, dtype, a_transposed=False, b_transposed=False, bias=False,
                 accumulate=False):
    a = rng.standard_normal((depth, rows) if a_transposed else (rows, depth)).astype(dtype)
    b = rng.standard_normal((columns, depth) if b_transposed else (depth, columns)).astype(dtype)
    a, b = a.T if a_transposed else a, b.T if b_transposed else b
    extra = rng.standard_normal(columns if bias else (rows, columns)).astype(dtype)
    out = extra.copy() if accumulate else None
    got = gemm(a, b, out=out, accumulate=accumulate, bias=extra if bias else None)
    expected, magnitude = wide(a) @ wide(b), np.abs(wide(a)) @ np.abs(wide(b))
    if bias or accumulate:
        expected, magnitude = expected + wide(extra), magnitude + np.abs(wide(extra))
    assert got.dtype == dtype
    assert out is None or got is out
    assert_within(got, expected, sum_error(depth, dtype) * magnitude)


def attention_error(qkv, heads, segments) -> float:
    """Relative error of a softmax weight, and of the sum over the weights of a row.

    A score is wrong by its sum's error, once more by (score - top) * scale; the exponential turns that into a
    relative error, for the weight and for the denominator, and adds its own 2 ulp.
    """
    q, k, _ = split_heads(np.abs(wide(qkv)), heads)
    size = q.shape[2]
    score = max(((q[:, tokens[shared:]] @ k[:, tokens].transpose(0, 2, 1)).max(initial=0)
                 for tokens, shared in rows_in_full(segments)), default=0) / math.sqrt(size)
    one_score = sum_error(size, qkv.dtype) * score + 2 * eps(qkv.dtype) * score
    return 2 * one_score + 4 * eps(qkv.dtype) + 2 * sum_error(segments.longest, qkv.dtype)


def most_looked_at(segments) -> int:
    """How many queries see the token that most of them see."""
    queries, rows = np.diff(segments.starts), np.diff(segments.seen_starts)
    return int(np.bincount(segments.seen, np.repeat(queries, rows)).max(initial=0))


def check_attention(rng, segments, heads, size, dtype, threads=2):
    tokens = int(segments.starts[-1])
    qkv = rng.standard_normal((tokens, 3 * heads * size)).astype(dtype)
    dout = rng.standard_normal((tokens, heads * size)).astype(dtype)
    error = attention_error(qkv, heads, segments)
    out, lse = attention_forward(qkv, heads, segments, 1 / math.sqrt(size), threads)
    assert out.dtype == dtype
    # With |v| the same sum has no cancellation.
    magnitude = attention(np.concatenate([wide(qkv)[:, : 2 * heads * size],
                                          np.abs(wide(qkv))[:, 2 * heads * size :]], axis=1), heads, segments)
    assert_within(out, attention(wide(qkv), heads, segments), error * magnitude)

    dqkv = attention_backward(dout, qkv, heads, segments, 1 / math.sqrt(size), lse, threads)
    assert dqkv.dtype == dtype
    magnitude = attention_gradient(wide(dout), wide(qkv), heads, segments, magnitude=True)
    # Weights are formed again (the same error once more), and two more sums follow: over `size`, over queries or keys.
    error = 2 * error + sum_error(size, dtype) + sum_error(max(most_looked_at(segments), segments.longest), dtype)
    assert_within(dqkv, attention_gradient(wide(dout), wide(qkv), heads, segments), error * magnitude)


def check_a_few_shapes():
    """Of the two kernels that name vectors, in one type: compiling is what takes the time."""
    rng = np.random.default_rng(0)
    for a_transposed in (False, True):
        for b_transposed in (False, True):
            check_matmul(rng, 31, 389, 67, np.float32, a_transposed, b_transposed, bias=True)
            check_matmul(rng, 6, 5, 3, np.float32, a_transposed, b_transposed)
    check_attention(rng, segments_of([1, 0, 97, 13], [-1, -1, 0, 2], [0, 0, 0, 62]), 3, 5, np.float32)
    check_attention(rng, segments_of([64]), 2, 32, np.float32)
