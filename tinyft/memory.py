"""Memory: what a run will need, what the machine has, how much was taken; and freed memory kept for the next step."""

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numba import get_num_threads

from .gpt2 import GPT2, Block, GPT2Config, needed_lengths
from .kernels.matmul import PIECE_BYTES, SHARED_BYTES
from .losses import IGNORE, LOGITS_BYTES
from .nn import Linear
from .segments import lay_out

try:
    import resource
except ImportError:  # not on Windows
    resource = None

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

# Python, NumPy, Numba and tinyft's compiled kernels; then what a tokenizer takes for each of its tokens. Measured with
# Python 3.11, NumPy 2 and Numba 0.6x on Linux.
PROGRAM_BYTES, TOKEN_BYTES = 185 * 10**6, 900
PLOT_BYTES = 35 * 10**6  # matplotlib, once it has drawn
ENGINE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1 + 4 / 64}  # of a weight in an engine; 64 share a scale
ENGINE_ROWS = 512  # tokens that an engine has room to compute at a time


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed arrays for the next ones; True if it listened (glibc only).

    This holds for the whole process from then on, for what isn't tinyft's as well: memory in use may fall,
    but what the process holds stays at its peak.

    By default each large array is fresh memory from the system, and every first touch of one of its pages is
    a fault that costs as much as the arithmetic on that page. A training step asks for the same sizes again
    and again, so that kept memory always fits.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_megabytes() -> float:
    """The most memory that this process has held so far, in MB (10**6 bytes); NaN where the system can't say."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, whose number begins with that of the process that started this one
        peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        return int(peak.split()[1]) * 1024 / 1e6 if peak else math.nan  # some sandboxes leave it out
    if resource is None:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


# ---- what there is


def _read(path: Path) -> str:
    """What a small file says; "" where it can't be read."""
    with suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _numbers(path: Path) -> dict[str, int]:
    """The lines `name number` or `name: number kB` of a file, in bytes."""
    found = {}
    for line in _read(path).splitlines():
        name, *rest = line.replace(":", " ").split()
        if rest and rest[0].isdecimal():
            found[name] = int(rest[0]) * (1024 if rest[1:] == ["kB"] else 1)
    return found


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that count this process's memory, up to the mount; some may not exist."""
    mount = root / "sys/fs/cgroup"
    yield from (mount, mount / "memory")  # a container sees its own group here, and may be told a path outside
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        group = PurePosixPath(path)
        if ".." in group.parts or controllers and "memory" not in controllers.split(","):
            continue
        for folder in (group, *group.parents):
            yield mount / ("memory" if controllers else "") / str(folder).lstrip("/")


def _left_in_group(folder: Path) -> float:
    """What a control group, version 1 or 2, allows beyond what is in use; infinite without a limit."""
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        with suppress(ValueError):  # version 2 writes "max" where there is no limit
            most, used = int(_read(folder / limit)), int(_read(folder / usage))
            stat = _numbers(folder / "memory.stat")
            # Files that are kept in memory give way, but they count as used.
            kept = sum(stat.get("total_" + name, stat.get(name, 0)) for name in ("inactive_file", "active_file"))
            return most - max(0, used - kept)
    return math.inf


def available_bytes(*, root: Path = Path("/")) -> float:
    """How much memory this process may have in all, what it holds already included; infinite where nothing says.

    On Linux what the system can give without swapping, or what the limits of the process's control groups leave. On
    Windows what is free. On macOS, where nothing simple says what is free, all that the machine has.
    """
    own = _numbers(root / "proc/self/status").get("RssAnon", 0)
    if (free := _numbers(root / "proc/meminfo").get("MemAvailable")) is not None:
        return own + max(0, min(free, *map(_left_in_group, _groups(root))))
    if sys.platform == "win32":
        return _free_on_windows()
    with suppress(ValueError, OSError, AttributeError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


def _free_on_windows() -> float:
    """From GlobalMemoryStatusEx, whose structure has two 32-bit numbers and then seven of 64 bits."""
    status = (ctypes.c_uint64 * 8)()
    ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
    done = ctypes.windll.kernel32.GlobalMemoryStatusEx(status)
    return float(status[2]) if done else math.inf  # total, then available


# ---- what a run will need


def longest_batch(data, rows: int, *, batch_tokens: int | None = None, share: bool = True) -> tuple[int, int]:
    """Tokens that are computed, and those of them with a target, in the longest micro-batch of `rows` rows of a set.

    data: an InstructionSet or a TextSet. batch_tokens: what a step's rows have together at most. share: whether tokens
    in which rows begin alike are computed once; not so with dropout.
    """
    indices = data.longest_rows(rows)
    inputs, targets = data.collate(indices)
    lengths = needed_lengths(targets)
    if batch_tokens is not None:
        fitting = max(1, int((np.cumsum(lengths) <= batch_tokens).sum()))
        inputs, targets, lengths = inputs[:fitting], targets[:fitting], lengths[:fitting]
    segments, _ = lay_out(inputs, lengths, share=share)
    return int(segments.starts[-1]), int((targets != IGNORE).sum())


@dataclass(frozen=True)
class _Run:
    """What an estimate is made from. Sizes are in elements of `itemsize` bytes where nothing else is said."""

    config: GPT2Config
    itemsize: int
    weight_bytes: int
    frozen_matrices: int  # elements that are kept in float32 and could be kept in fewer bits
    trainable: int
    adapts: bool  # whether a few parameters beside frozen matrices are learned
    learns_table: bool
    blocks: tuple[tuple[float, float], ...]  # kept by each for the way back: for a token up to attention, and behind it
    tokens: int
    targets: int
    rows: int
    several: bool
    recompute: bool
    moment_bytes: int
    replies: str | None
    reply_tokens: int
    merges: bool
    program: int


@dataclass(frozen=True)
class Estimate:
    """How much memory a run takes, in bytes.

    Not all of it at once: `total` is what is needed at the worst moment.
    """

    weights: int
    moments: int
    gradients: int
    activations: int  # what ops keep for the backward pass, and what comes and goes around it
    logits: int  # a part of them at a time, and the token table's gradient, which is formed with them
    replies: int  # an engine, which has a copy of the weights
    program: int
    total: int
    tokens: int
    remedies: tuple[tuple[str, int], ...] = ()  # options that save memory, and how much; what saves most comes first

    def lines(self) -> list[str]:
        """The total and the parts."""
        replies = f", a copy of the weights for replies {mb(self.replies)}" if self.replies else ""
        return [f"about {mb(self.total)}: weights {mb(self.weights)}, moments {mb(self.moments)}, program "
                f"{mb(self.program)}",
                f"and what comes and goes: gradients {mb(self.gradients)}, activations of {self.tokens:,} tokens "
                f"{mb(self.activations)}",
                f"logits with their part of the gradients {mb(self.logits)}{replies}"]


def mb(size: float) -> str:
    """Bytes as a text in MB (10**6 bytes)."""
    return f"{size / 1e6:,.0f} MB"


def _kept_by_block(block: Block, heads: int, flows: bool) -> tuple[float, float, bool]:
    """Elements that the ops of a block keep for a token, up to attention and behind it; whether gradients flow out.

    flows: whether they flow into what comes in. From there on each op keeps what its backward function names: norms and
    activations their input, a layer its input if its weight or adapter learns, attention queries, keys and values.
    """
    width, inner = block.attn.c_proj.weight.shape[0], block.mlp.c_proj.weight.shape[0]
    before, behind = [(block.ln_1, width + 2), (block.attn.c_attn, width), (None, 3 * width + heads)], [
        (block.attn.c_proj, width), (block.ln_2, width + 2), (block.mlp.c_fc, width), (None, inner),
        (block.mlp.c_proj, inner)]
    sums = []
    for half in (before, behind):
        kept = 0.0
        for part, size in half:
            learns = part is not None and any(True for _ in part.trainable_parameters())
            flows = flows or learns
            if isinstance(part, Linear):
                adapter = getattr(part, "lora_A", None)
                kept += size if part.weight.requires_grad or adapter is not None else 0
                kept += len(adapter.data) + (size / 4 if part.drop.p else 0) if adapter is not None else 0
            else:
                kept += size if flows else 0
        drops = block.drop.p > 0 and half is behind and flows
        sums.append(kept + (2 * width if drops else 0))
    return *sums, flows


def _describe_blocks(model: GPT2) -> tuple[tuple[float, float], ...]:
    blocks, flows = [], model.wte.weight.requires_grad or model.wpe.weight.requires_grad
    for block in model.h:
        *kept, flows = _kept_by_block(block, model.config.n_head, flows)
        blocks.append(tuple(kept))
    return tuple(blocks)


def _describe(model: GPT2, **options) -> _Run:
    parameters = dict(model.named_parameters())
    itemsize = model.wpe.weight.dtype.itemsize
    # A matrix that is kept in fewer bits says so itself.
    sizes = {name: getattr(p, "nbytes", p.size * itemsize) for name, p in parameters.items()}
    frozen = sum(p.size for name, p in parameters.items()
                 if not p.requires_grad and len(p.shape) == 2 and sizes[name] == p.size * itemsize)
    trainable = model.n_parameters(trainable=True)
    return _Run(model.config, itemsize, sum(sizes.values()), frozen, trainable,
                trainable < model.n_parameters() // 10, model.output_weight.requires_grad,
                _describe_blocks(model),
                recompute=getattr(model, "recompute", False), **options)


def _activations(run: _Run) -> float:
    """Elements that are kept for the backward pass, and the gradients on their way through a block."""
    tokens, targets, width = run.tokens, min(run.tokens, run.targets), run.config.n_embd
    kept = [tokens * before + (targets if block == len(run.blocks) - 1 else tokens) * behind
            for block, (before, behind) in enumerate(run.blocks)]
    passing = width + (run.config.n_inner or 4 * width)
    ends = targets * (3 * width + 2)  # the last norm's input and output, and the output's gradient
    if not run.recompute:
        return sum(kept) + targets * passing + ends
    inputs = sum(width * tokens for elements in kept if elements)
    return inputs + max(0, max(kept) - width * tokens) + tokens * passing + ends


def _matrix_elements(config: GPT2Config) -> int:
    """Of the token table, an output layer of its own, and the layers of all blocks."""
    inner = config.n_inner or 4 * config.n_embd
    return config.n_embd * (config.vocab_size * (1 if config.tie_word_embeddings else 2)
                            + config.n_layer * (4 * config.n_embd + 2 * inner))


def _engine(run: _Run) -> float:
    """Bytes of an engine: weights, room for a step, keys and values of so many tokens."""
    config, inner = run.config, run.config.n_inner or 4 * run.config.n_embd
    matrices = _matrix_elements(config)
    room = ENGINE_ROWS * (3 * config.n_embd + 2 * inner) + 2 * run.reply_tokens * config.n_layer * config.n_embd
    return matrices * ENGINE_BYTES[run.replies] + (room + config.n_positions * config.n_embd) * run.itemsize


def _estimate(run: _Run) -> Estimate:
    config, size = run.config, run.itemsize
    table = config.vocab_size * config.n_embd * size if run.learns_table else 0
    logits = min(run.targets * config.vocab_size * size, LOGITS_BYTES) + table
    gradients, activations = run.trainable * size, int(_activations(run) * size)
    moments = 2 * run.trainable * run.moment_bytes
    replies = int(_engine(run)) if run.replies else 0
    # The gradients of a micro-batch stay while the next one is computed, that of the token table too: there are two of
    # it then. Else gradients take the place of activations, block by block.
    step = gradients + activations + logits if run.several else max(activations + logits, gradients)
    # A merged model is made when all else is done, beside the one that was trained.
    merged = size * (config.n_positions * config.n_embd + _matrix_elements(config)) if run.merges else 0
    total = run.program + run.weight_bytes + max(moments + max(step, replies), merged)
    return Estimate(run.weight_bytes, moments, gradients, activations, logits, replies, run.program, total, run.tokens)


def _remedies(run: _Run, total: int) -> Iterator[tuple[str, int]]:
    """Options that would make a run smaller, and by how many bytes."""
    config, inner = run.config, run.config.n_inner or 4 * run.config.n_embd
    adapters = 8 * config.n_layer * (8 * config.n_embd + 2 * inner)  # of rank 8, beside all four layers of a block
    lora = replace(run, trainable=adapters, adapts=True, learns_table=False, frozen_matrices=_matrix_elements(config),
                   weight_bytes=run.weight_bytes + adapters * run.itemsize)
    choices = {"--recompute": replace(run, recompute=True), "--moments bfloat16": replace(run, moment_bytes=2)}
    if not run.adapts:
        choices["--lora-rank 8"] = lora
    adapted = run if run.adapts else lora
    for kept_as, smaller in (("int8", 4 - ENGINE_BYTES["int8"]), ("bfloat16", 2)):
        name = f"--base-weights {kept_as}" if run.adapts else f"--lora-rank 8 --base-weights {kept_as}"
        choices[name] = replace(adapted, weight_bytes=adapted.weight_bytes - int(adapted.frozen_matrices * smaller))
    single = replace(run, several=True, rows=1, tokens=-(-run.tokens // run.rows), targets=-(-run.targets // run.rows))
    if run.rows > 1:
        choices["--micro-batch-size 1"] = single
    choices["--recompute --micro-batch-size 1 --moments bfloat16"] = replace(single, recompute=True, moment_bytes=2)
    if length := run.tokens // run.rows // 2:
        tokens = length * run.rows
        choices[f"--max-length {length}"] = replace(run, tokens=tokens, targets=min(run.targets, tokens))
    for option, smaller in choices.items():
        saved = total - _estimate(smaller).total
        if saved > 0.03 * total:
            yield option, saved


def estimate(model: GPT2, tokens: int, targets: int, *, rows: int = 1, several: bool = False,
             moments: str = "float32", replies: str | None = None, reply_tokens: int = 0,
             merges: bool = False, plots: bool = False) -> Estimate:
    """What training a model will take, before anything of it is done; within about a tenth.

    tokens, targets, rows: of the longest micro-batch, see `longest_batch`. several: whether a step has more than one.
    moments: how AdamW keeps them. replies: how an engine that answers during the run keeps its weights, None without
    one, and reply_tokens: of all its prompts and replies together, in whole blocks of its cache. merges: whether the
    adapters are merged into a copy at the end. plots: whether matplotlib draws. What the model says itself is read
    from it: what is frozen, adapters, dropout, recomputation, weights in fewer bits.
    """
    program = PROGRAM_BYTES + TOKEN_BYTES * model.config.vocab_size + SHARED_BYTES + PIECE_BYTES * get_num_threads()
    run = _describe(model, tokens=tokens, targets=targets, rows=rows, several=several,
                    moment_bytes=2 if moments == "bfloat16" else model.wpe.weight.dtype.itemsize, replies=replies,
                    reply_tokens=reply_tokens, merges=merges, program=program + PLOT_BYTES * plots)
    found = _estimate(run)
    return replace(found, remedies=tuple(sorted(_remedies(run, found.total), key=lambda remedy: -remedy[1])))


def check_fits(estimate: Estimate, available: float, processes: int = 1) -> None:
    """ValueError, with the options that help and what each saves, if a run needs more than is available.

    processes: how many of the same needs share what is available.
    """
    available /= processes
    if estimate.total <= available:
        return
    missing = estimate.total - available
    helps = [f"{option} saves {mb(saved)}{' (enough)' if saved >= missing else ''}"
             for option, saved in estimate.remedies]
    whose = f" to each of the {processes} ranks on this host; fewer ranks help" if processes > 1 else ""
    raise ValueError(f"this run needs about {mb(estimate.total)} of memory, and {mb(available)} are "
                     f"available{whose}; {'; '.join(helps) if helps else 'take a smaller model'}")
