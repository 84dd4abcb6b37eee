"""Each kernel beside NumPy, beside PyTorch if it is installed, and beside the machine's peak."""

from collections.abc import Callable, Iterator

import numpy as np
from numba import get_num_threads

from tinyft import losses, ops
from tinyft.kernels.adamw import adamw_step
from tinyft.kernels.jit import HAS_BFLOAT16
from tinyft.kernels.matmul import gemm
from tinyft.segments import segments_of
from tinyft.tensor import Tensor

from .timing import Table, interleaved, ratios

ROWS, LAYERS = 1024, 12
PRODUCTS = {"c_attn": (768, 2304), "attn.c_proj": (768, 768), "c_fc": (768, 3072), "mlp.c_proj": (3072, 768)}


def _products(rng: np.random.Generator) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(name, how often in a training step, a, b): forward and both gradients, a layer's and the output layer's."""
    for name, (n_in, n_out) in PRODUCTS.items():
        x, dy = rng.standard_normal((ROWS, n_in), np.float32), rng.standard_normal((ROWS, n_out), np.float32)
        w = rng.standard_normal((n_in, n_out), np.float32)
        for case, a, b in (("Y = X W", x, w), ("dX = dY W'", dy, w.T), ("dW = X' dY", x.T, dy)):
            yield f"{name} {case}", LAYERS, a, b
    x, dy = rng.standard_normal((ROWS, 768), np.float32), rng.standard_normal((ROWS, 50257), np.float32)
    w = rng.standard_normal((50257, 768), np.float32)
    for case, a, b in (("Y = X W'", x, w.T), ("dX = dY W", dy, w), ("dW = dY' X", dy.T, x)):
        yield f"output layer {case}", 1, a, b


def _ways_to_multiply(a: np.ndarray, b: np.ndarray, torch) -> dict[str, Callable[[], object]]:
    """a @ b by everyone, into memory that is there already."""
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    ways = {"tinyft": lambda: gemm(a, b, out=out), "NumPy": lambda: np.matmul(a, b, out=out)}
    if torch:
        ta, tb, to = (torch.from_numpy(array) for array in (a, b, out))
        ways["PyTorch"] = lambda: torch.mm(ta, tb, out=to)
    if HAS_BFLOAT16:
        ways["tinyft_bf16"] = lambda: gemm(a, b, out=out, bfloat16=True)
    if HAS_BFLOAT16 and torch:
        ta16, tb16, to16 = ta.bfloat16(), tb.bfloat16(), to.bfloat16()
        ways["PyTorch_bf16"] = lambda: torch.mm(ta16, tb16, out=to16)
    return ways


def matmuls(table: Table, machine: dict, torch, rng: np.random.Generator, seconds: float = 1.0) -> None:
    """Every product by everyone, then what they come to in a training step."""
    table.title("matmul", f"matmul, {ROWS} rows", "of_peak: tinyft in float32 beside the machine's peak in float32")
    total_work, total_times = 0, {}
    for name, count, a, b in _products(rng):
        times, work = interleaved(_ways_to_multiply(a, b, torch), seconds), 2 * a.shape[0] * a.shape[1] * b.shape[1]
        speeds = {peer: work / taken / 1e9 for peer, taken in times.items()}
        table.add(name, "GFLOP/s", **speeds, of_peak=speeds["tinyft"] / machine["peak"])
        total_work += count * work
        for peer, taken in times.items():
            total_times[peer] = total_times.get(peer, 0) + count * taken
    table.title("matmul_total", f"all products of a training step, {LAYERS} layers and the output layer",
                "the ratios are of total times, so that each product weighs what it costs")
    _add_total(table, "float32", total_work, total_times, "tinyft", ("NumPy", "PyTorch"), machine["peak"])
    if HAS_BFLOAT16:
        _add_total(table, "bfloat16", total_work, total_times, "tinyft_bf16", ("PyTorch_bf16", "tinyft"))


def _add_total(table: Table, dtype: str, work: int, times: dict[str, float], ours: str, others: tuple[str, ...],
               peak: float | None = None) -> None:
    """Speed over all products, and how many times as long as ours the others take."""
    compared = {peer: times[peer] for peer in (ours, *others) if peer in times}
    speeds = {peer: work / taken / 1e9 for peer, taken in compared.items()}
    of_peak = {"of_peak": speeds[ours] / peak} if peak else {}
    table.add(f"all products, {dtype}", "GFLOP/s", **speeds, **ratios(compared, ours), **of_peak)


def _both_ways(function, *arrays):
    """Forward and backward of an op, as a function without arguments."""
    tensors = [Tensor(array, requires_grad=array.dtype.kind == "f") for array in arrays]
    gradient = np.ones_like(function(*tensors).data)

    def run():
        function(*tensors).backward(gradient)
        for tensor in tensors:
            tensor.grad = None

    return run


def _torch_both_ways(torch, function, *arrays):
    tensors = [torch.from_numpy(array).requires_grad_(array.dtype.kind == "f") for array in arrays]
    gradient = torch.ones_like(function(*tensors))

    def run():
        function(*tensors).backward(gradient)
        for tensor in tensors:
            tensor.grad = None

    return run


def elementwise(table: Table, torch, rng: np.random.Generator) -> None:
    """Everything that is no matrix product, forward and backward."""
    table.title("kernels", "other kernels, forward + backward")

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    qkv, targets = normal(8 * 128, 3 * 768), rng.integers(0, 50257, ROWS)
    segments = segments_of([128] * 8)

    def torch_attention(qkv):
        q, k, v = qkv.view(8, 128, 3, 12, 64).permute(2, 0, 3, 1, 4)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    f = torch.nn.functional if torch else None
    cases = [
        ("softmax (12288, 128)", ops.softmax, lambda x: f.softmax(x, -1), [normal(12288, 128)]),
        ("gelu (1024, 3072)", ops.gelu, lambda x: f.gelu(x, approximate="tanh"), [normal(ROWS, 3072)]),
        ("layer_norm (1024, 768)", ops.layer_norm, lambda x, w, b: f.layer_norm(x, (768,), w, b),
         [normal(ROWS, 768), normal(768), normal(768)]),
        ("attention (8, 12, 128, 64)", lambda qkv: ops.causal_attention(qkv, n_head=12, segments=segments),
         torch_attention, [qkv]),
        ("cross_entropy (1024, 50257)", losses.cross_entropy, lambda x, y: f.cross_entropy(x, y),
         [normal(ROWS, 50257), targets]),
    ]
    for name, ours, theirs, arrays in cases:
        candidates = {"tinyft": _both_ways(ours, *arrays)}
        if torch:
            candidates["PyTorch"] = _torch_both_ways(torch, theirs, *arrays)
        times = interleaved(candidates)
        table.add(name, "ms", **{peer: 1000 * t for peer, t in times.items()}, **ratios(times))


def optimizer(table: Table, machine: dict, torch, rng: np.random.Generator) -> None:
    """AdamW over as many numbers as GPT-2 124M has."""
    n = 124_439_808
    weight, grad, m, v = (np.full(n, value, np.float32) for value in (0.1, 0.01, 0.0, 0.0))
    candidates = {"tinyft": lambda: adamw_step(weight, grad, m, v, 1.0, 1e-4, 0.9, 0.999, 1e-8, 0.1, 10, 0)}
    if torch:
        parameter = torch.full((n,), 0.1, requires_grad=True)
        parameter.grad = torch.full((n,), 0.01)
        candidates["PyTorch_fused"] = torch.optim.AdamW([parameter], lr=1e-4, weight_decay=0.1, fused=True).step
    times = interleaved(candidates, 2.0)
    speeds = {peer: 7 * 4 * n / t / 1e9 for peer, t in times.items()}
    table.add("AdamW, 124 M parameters", "GB/s", **speeds, **ratios(times),
              of_bandwidth=speeds["tinyft"] / machine["bandwidth"])


def loss_by_live_targets(table: Table, rng: np.random.Generator) -> None:
    """Output layer and loss, forward and backward: -100 targets cost next to nothing."""
    table.title("loss", f"output layer + loss, {ROWS} rows of GPT-2 124M: what -100 targets save")
    hidden = rng.standard_normal((ROWS, 768), np.float32)
    weight = np.float32(0.02) * rng.standard_normal((50257, 768), np.float32)  # as GPT-2's is drawn
    everything = rng.integers(0, 50257, ROWS)
    for share in (1.0, 0.5, 0.25, 0.1, 0.0):
        targets = everything.copy()
        targets[rng.permutation(ROWS)[int(share * ROWS):]] = losses.IGNORE
        run = _both_ways(losses.linear_cross_entropy, hidden, weight, targets)
        seconds = interleaved({"tinyft": run}, 1.0)["tinyft"]
        chunk = min(max(1, int(share * ROWS)), losses.LOGITS_BYTES // (4 * 50257))
        table.add(f"{share:.0%} targets", "ms", tinyft=1000 * seconds,
                  logits_MB=(4e-6 * 50257 * chunk) if share else 0.0, all_logits_MB=4e-6 * 50257 * ROWS)


def share_threads(torch) -> None:
    """Give PyTorch as many threads as tinyft has."""
    if torch:
        torch.set_num_threads(get_num_threads())
