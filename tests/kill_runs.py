"""A small training run, killed again and again and resumed: does it end with the very same weights and losses?

python tests/kill_runs.py --kills 1000

Kills with SIGKILL at random instants, while a file or folder is half written, and at single file operations; some runs
are ended with SIGTERM, and some of these killed while they save. Runs tune whole models and adapters, with and without
half accumulated steps, with states after every event and few of them. After every kill there must be a state that loads
once there was one, and a model that loads once there was one; model/ must hold the files of one save; no state may be
damaged. In the end weights, folder and metrics.jsonl must be those of a run that nobody has disturbed, and nothing half
written may lie about.
Needs fork, as Linux and macOS have it.
"""

import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ["NUMBA_THREADING_LAYER"] = "workqueue"  # OpenMP's threads don't survive a fork
os.environ["NUMBA_NUM_THREADS"] = "1"

import numpy as np
from numba.np.ufunc import parallel
from tiny import TOKENIZER, make_entries, make_model, make_set

import tinyft.adapters
import tinyft.checkpoint
import tinyft.keeper
import tinyft.report
import tinyft.tensor_files
from tinyft import AdamW, Settings, cli, fit, load_model_and_tokenizer, save_model, warm_up
from tinyft.adapters import load_unmerged
from tinyft.checkpoint import weights_fingerprint
from tinyft.files import write_text
from tinyft.lora import LoraConfig, add_lora, has_lora, lora_parameters
from tinyft.run import _identity
from tinyft.state import FOLDER, find_states, load_state

EXAMPLES = "  python tests/kill_runs.py --kills 20\n  python tests/kill_runs.py --kills 1000 --minutes 25\n"
INTERRUPTED, DONE = 128 + signal.SIGTERM, 0


@dataclass(frozen=True)
class Variant:
    """A kind of run."""

    lora: bool = False
    micro_batch_size: int | None = None
    minutes: float | None = 0.0  # 0: a state after every event
    steps: int | None = None
    moments: str = "float32"


VARIANTS = {
    "full": Variant(),
    "full, half steps": Variant(micro_batch_size=1),
    "full, few states": Variant(minutes=None, steps=4, micro_batch_size=3),
    "LoRA": Variant(lora=True),
    "LoRA, half steps": Variant(lora=True, micro_batch_size=2),
    "LoRA, few states": Variant(lora=True, minutes=None, steps=3),
    "full, moments in bfloat16": Variant(micro_batch_size=2, moments="bfloat16"),
}


# ---- the run, in a process of its own


def start_model(variant: Variant):
    """The model that a run starts from."""
    model = make_model(n_positions=64)
    if variant.lora:
        add_lora(model, LoraConfig(rank=2, alpha=8, dropout=0.1), np.random.default_rng(3))
    model.set_dropout(0.1)
    return model


def settings_of(variant: Variant) -> Settings:
    return Settings(epochs=3, batch_size=4, micro_batch_size=variant.micro_batch_size, learning_rate=3e-3, max_steps=8,
                    evaluate_every=2, patience=0, moments=variant.moments)


def sets():
    how = dict(mask_prompt=True, max_length=64)
    return make_set(make_entries(14), **how), make_set(make_entries(20, seed=9)[16:], **how)


def trained(model):
    """The parameters that a saved folder must hold."""
    return lora_parameters(model) if has_lora(model) else dict(model.named_parameters())


def mark_saves() -> None:
    """Let every file of a saved folder name the weights that it was written with."""
    save_tuned, describe, mark = tinyft.keeper.save_tuned, tinyft.checkpoint.model_description, [""]

    def marking(model, tokenizer, folder, base):
        mark[0] = weights_fingerprint(trained(model))
        save_tuned(model, tokenizer, folder, base)

    def description(*arguments):
        files = {}
        for name, content in describe(*arguments).items():
            if name == "merges.txt":
                content = content.replace(b"#version: 0.2", f"#version: 0.2 {mark[0]}".encode())
            elif name.endswith(".json") and name != "vocab.json":
                content = json.dumps(json.loads(content) | {"saved with": mark[0]}).encode()
            files[name] = content
        return files

    tinyft.keeper.save_tuned = marking
    tinyft.checkpoint.model_description = tinyft.adapters.model_description = description


def train_once(variant: Variant, base: Path, folder: Path) -> None:
    """Start, or go on if there is a state."""
    training, validation = sets()
    fit(start_model(variant), TOKENIZER, training, validation, settings_of(variant), np.random.default_rng(5), folder,
        resume=bool(find_states(folder)), state_minutes=variant.minutes, state_steps=variant.steps, base=str(base))


def in_child(function, log: Path) -> int:
    """Fork a process that runs a function; what it says goes to a file. Returns its number."""
    sys.stdout.flush()
    if (child := os.fork()) != 0:
        return child
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ["TINYFT_DEBUG"] = "1"
        cli.run(function)
        status = DONE
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback  # only where a run has failed
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def die_at(operation: int) -> None:
    """Kill this process when it is about to do its n-th file operation: a tensor's writing, or a change of names."""
    left = [operation]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple) -> None:
        changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.chmod", "ctypes.dlopen")
        if changes or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            count()

    class Counting(io.FileIO):
        """A file without a buffer: what was written before the kill is there."""

        def write(self, content) -> int:
            count()
            return super().write(content)

    sys.addaudithook(watch)
    tinyft.tensor_files.open = Counting


# ---- killing it


def half_written(folder: Path) -> bool:
    """Whether a writer is at work."""
    for place in (folder, folder / FOLDER):
        try:
            if any(name.endswith(".part") for name in os.listdir(place)):
                return True
        except FileNotFoundError:
            pass
    return False


def kill_it(child: int, folder: Path, how: str, chance: random.Random, seconds: float) -> None:
    """Wait for the instant, and send the signal. seconds: that a whole run takes."""
    end, seen = time.monotonic() + chance.uniform(0, seconds), chance.randrange(12)
    if how == "operation":
        return
    while time.monotonic() < end and how != "writing":
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.0005)
    while how == "writing":
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        if half_written(folder):
            seen -= 1
            if seen < 0:
                break
        time.sleep(chance.uniform(0, 0.0005))
    os.kill(child, signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
    if how == "SIGTERM" and chance.random() < 0.5:  # and no patience with it
        time.sleep(chance.uniform(0, 0.02))
        if not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            os.kill(child, chance.choice((signal.SIGTERM, signal.SIGKILL)))


def check_folder(variant: Variant, folder: Path, had: set[str]) -> set[str]:
    """What loads, of "state" and "model"; AssertionError if not all is there that there `had` been before."""
    there = set()
    if find_states(folder):
        model = start_model(variant)
        said: list[str] = []
        training, _ = sets()
        identity = _identity(model, settings_of(variant), training, None)
        load_state(folder, AdamW(model, moments=variant.moments), identity, said.append)
        assert not said, said
        there.add("state")
    if any((folder / "model" / name).exists() for name in ("model.safetensors", "adapter_model.safetensors")):
        check_model(folder / "model")
        there.add("model")
    assert had <= there, f"{folder}: there was a {' and a '.join(had)}, now there is {there or 'nothing'}"
    return there


def check_model(folder: Path) -> None:
    """AssertionError unless all files of a model folder were written by one save."""
    model, tokenizer = load_unmerged(folder)
    mark = weights_fingerprint(trained(model))
    marked = [path for path in folder.iterdir() if path.name in
              ("config.json", "generation_config.json", "tokenizer_config.json", "merges.txt")]
    assert len(marked) == 3 + (not has_lora(model))
    for path in marked:
        assert mark in path.read_text("utf-8"), f"{path} was not saved with the weights"
    assert tokenizer.merges.ranks == TOKENIZER.merges.ranks
    assert load_model_and_tokenizer(folder)[0].config == model.config


def result(folder: Path) -> tuple[dict[str, bytes], list[dict]]:
    """What a run leaves: the files of its model, and its events but for the time they took."""
    left = [str(path) for path in folder.rglob(".*")]
    assert not left, f"half written: {left}"
    files = {path.name: path.read_bytes() for path in sorted((folder / "model").iterdir())}
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return files, [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def chain(variant: Variant, base: Path, folder: Path, expected, seconds: float, chance: random.Random,
          counts: Counter) -> None:
    """One run, killed until it has come to its end; `counts` gets what happened."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    log, had = folder.with_suffix(".log"), set()
    log.unlink(missing_ok=True)
    while True:
        how = chance.choices(("instant", "writing", "operation", "SIGTERM"), (4, 4, 4, 1))[0]
        operation = chance.randint(1, chance.choice((150, 2500)))

        def run(how=how, operation=operation) -> None:
            if how == "operation":
                die_at(operation)
            train_once(variant, base, folder)

        child = in_child(run, log)
        kill_it(child, folder, how, chance, seconds)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == DONE:
            break
        wanted = (-signal.SIGKILL, -signal.SIGTERM, INTERRUPTED) if how == "SIGTERM" else (-signal.SIGKILL,)
        assert code in wanted, f"ended with {code}:\n{log.read_text('utf-8')}"
        counts["SIGTERM, and it saved" if code == INTERRUPTED else
               "SIGTERM" if code == -signal.SIGTERM else f"SIGKILL, {how}"] += 1
        counts["while something was half written"] += half_written(folder)
        counts["kills"] += 1
        had = check_folder(variant, folder, had)
    found = result(folder)
    assert found[0] == expected[0], f"{folder}: the model is another one than that of the undisturbed run"
    assert found[1] == expected[1], f"{folder}: metrics.jsonl tells of other losses than that of the undisturbed run"
    counts["runs"] += 1


def share_no_lock() -> None:
    """Numba has one lock for all processes that are forked: one that is killed holding it would stop all others."""
    parallel._backend_init_process_lock = threading.RLock()


def prepare(work: Path) -> tuple[Path, dict[str, tuple]]:
    """The base model that adapters belong to; and of every variant what an undisturbed run leaves, and its seconds."""
    base, expected = work / "base", {}
    save_model(make_model(n_positions=64), TOKENIZER, base)
    tinyft.report.plot_losses = lambda events, path, title: write_text(path, "a plot")  # matplotlib takes a second
    share_no_lock()
    warm_up()
    mark_saves()
    for name, variant in VARIANTS.items():
        folder = work / f"undisturbed {name}"
        for _ in range(2):  # the first one loads kernels
            shutil.rmtree(folder, ignore_errors=True)
            begin = time.monotonic()
            train_once(variant, base, folder)
        expected[name] = result(folder), time.monotonic() - begin
        check_model(folder / "model")
        assert len({line["loss"] for line in expected[name][0][1]}) > 8
    return base, expected


def kill_runs(kills: int, seed: int, minutes: float, work: Path, say=print) -> Counter:
    """Kill runs so often, or for so long; returns how many of what there were. AssertionError at a fault."""
    base, expected = prepare(work)
    say("seconds of an undisturbed run: " + ", ".join(f"{name} {found[1]:.2f}" for name, found in expected.items()))
    chance, counts, begin, said = random.Random(seed), Counter(), time.monotonic(), 0.0
    while counts["kills"] < kills and time.monotonic() - begin < 60 * minutes:
        name = list(VARIANTS)[(counts["runs"]) % len(VARIANTS)]
        before = counts["kills"]
        chain(VARIANTS[name], base, work / "run", *expected[name], chance, counts)
        counts[name] += counts["kills"] - before
        if time.monotonic() - said > 10:
            said = time.monotonic()
            say(f"{counts['kills']} kills, {counts['runs']} runs came to their end, {said - begin:.0f} s")
    return counts


def main() -> None:
    """Kill, check, count."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    parser.add_argument("--kills", type=cli.positive_int, default=100, metavar="N", help="how many at least")
    parser.add_argument("--minutes", type=cli.positive_float, default=60.0, metavar="M", help="stop after these")
    parser.add_argument("--seed", type=cli.not_negative_int, default=0, metavar="S", help="of the instants")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        counts = kill_runs(options.kills, options.seed, options.minutes, Path(work),
                           lambda text: print(text, flush=True))
    print(f"all bit-identical: {counts.pop('kills')} kills in {counts.pop('runs')} runs ("
          + ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())) + ")")


if __name__ == "__main__":
    cli.run(main)
