"""Read damaged files, many of them, and tell what was not refused as it should be.

    python tests/fuzz.py --inputs 20000                 # a table by format; findings in fuzz-findings/
    python tests/fuzz.py --inputs 1000000 --json fuzz.json
    python tests/fuzz.py --format config --seed 0 --only 1234    # one input again, with its traceback

A file may be read, or refused by a ValueError of one printable line. All else is a finding: another error, more than
--seconds of work, more memory than --memory, a file opened outside of the folder, a program started. What a seed and a
number give is always the same input.
"""

import argparse
import faulthandler
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz_formats import Format, make_formats  # noqa: E402

from tinyft.kernels.cache import cache_folder  # noqa: E402

BATCH = 100  # inputs of one format at a time, between two looks at the memory
KEPT = 3  # examples of a finding
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn", "socket.connect", "os.remove",
             "os.rename", "shutil.rmtree")


class TooLong(BaseException):
    """Raised by the alarm; no handler of the package's may take it for its own."""


@dataclass
class Account:
    """What became of a format's inputs. seconds: of this processor; memory: the most, above what stood there before."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    megabytes: float = 0.0
    findings: dict[str, int] = field(default_factory=dict)


class Watch:
    """An audit hook that notes what is opened, and started, outside of a folder."""

    def __init__(self):
        self.folder, self.seen, self.cache = "", [], str(Path(cache_folder() or "/dev/null").parent)
        inside = [sys.prefix, sys.base_prefix, str(ROOT), "/proc/", "/sys/", "/usr/", "/dev/null", self.cache]
        self.known = tuple(os.path.realpath(path) for path in inside)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.folder:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith((self.folder, *self.known)):
                self.seen.append(f"opened {path}")
        elif event in FORBIDDEN and not any(known in str(arguments) for known in ("template_process.py", self.cache)):
            self.seen.append(f"{event} {str(arguments)[:100]}")


class Fuzzer:
    """Reads inputs one after the other and keeps account."""

    def __init__(self, options: argparse.Namespace, formats: dict[str, Format], scratch: Path):
        self.options, self.scratch, self.watch = options, scratch, Watch()
        self.formats = {name: made for name, made in formats.items() if not options.format or name in options.format}
        self.accounts = {name: Account() for name in self.formats}
        self.written: dict[str, set[str]] = {}
        self.now = None  # a file that says which input is read, for when it ends the process

    def confine(self) -> None:
        """Watch and limit this process from now on."""
        def alarm(*_) -> None:
            raise TooLong

        for name, made in self.formats.items():  # modules that are imported and kernels that are compiled count once
            made.read(self.folder_of(name))
        sys.addaudithook(self.watch)
        signal.signal(signal.SIGALRM, alarm)
        size = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
        most = size + (self.options.memory << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def folder_of(self, name: str) -> Path:
        """The whole folder of a format, written when it is first asked for."""
        folder = self.scratch / "read" / name
        if name not in self.written:
            for file, content in self.formats[name].files.items():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(content)
            self.formats[name].prepare(folder)
            self.written[name] = set()
        return folder

    def make(self, name: str, number: int) -> dict[str, bytes]:
        """The files of one input that differ from the whole folder's."""
        return self.formats[name].damaged(random.Random(f"{self.options.seed} {name} {number}"))

    def read(self, name: str, number: int) -> tuple[str | None, str, float]:
        """(what is wrong or None, what was said, seconds) of one input."""
        form, folder, changed = self.formats[name], self.folder_of(name), self.make(name, number)
        for file in self.written[name] - changed.keys():
            (folder / file).write_bytes(form.files[file])
        for file, content in changed.items():
            (folder / file).write_bytes(content)
        self.written[name] = set(changed)
        self.watch.folder, self.watch.seen = os.path.realpath(folder), []
        wrong, said = None, ""
        signal.setitimer(signal.ITIMER_REAL, 20 + 10 * self.options.seconds)  # by the clock: others work here, too
        start = time.process_time()
        try:
            form.read(folder)
        except ValueError as error:
            said, wrong = str(error), _refused_badly(error, folder)
        except TooLong as error:
            said, wrong = traceback.format_exc(), f"never ends: {_place(error)}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            said, wrong = traceback.format_exc(), f"{type(error).__name__}: {_place(error)}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            seconds, self.watch.folder = time.process_time() - start, ""
        if self.watch.seen:
            wrong, said = f"left the folder: {self.watch.seen[0]}", "\n".join(self.watch.seen)
        elif wrong is None and seconds > self.options.seconds:
            wrong = f"slow: {said[:60] or 'accepted'}"
        return wrong, said, seconds

    def batch(self, name: str, numbers: range) -> None:
        """Read some inputs of one format."""
        account = self.accounts[name]
        before = _reset_peak()
        for number in numbers:
            if self.now is not None:
                os.pwrite(self.now, f"{name} {number}".ljust(60).encode(), 0)
            wrong, said, seconds = self.read(name, number)
            account.inputs += 1
            account.accepted += not said
            account.refused += bool(said) and wrong is None
            account.slowest, account.seconds = max(account.slowest, seconds), account.seconds + seconds
            if wrong is not None:
                self.keep(name, number, wrong, said)
        account.megabytes = max(account.megabytes, _peak() - before)

    def keep(self, name: str, number: int, wrong: str, said: str) -> None:
        """Count a finding; save the first few of its kind with their files."""
        found = self.accounts[name].findings
        found[wrong] = found.get(wrong, 0) + 1
        if found[wrong] > KEPT:
            return
        folder = self.options.findings / f"{name}-{self.options.seed}-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in self.make(name, number).items():
            (folder / file.replace("/", "_")).write_bytes(content)
        again = f"python tests/fuzz.py --format {name} --seed {self.options.seed} --only {number}"
        (folder / "finding.txt").write_text(f"{wrong}\n{again}\n\n{said}\n", errors="backslashreplace")


def _refused_badly(error: ValueError, folder: Path) -> str | None:
    """Why an error is not one of ours, or None if it is."""
    said = str(error)
    if type(error) is not ValueError and type(error).__name__ != "Damaged":
        return f"{type(error).__name__}: {_place(error)}"
    if not any(name in said for name in (str(folder), "chat template", "tokenizer", "the text has", "model folder")):
        return f"names no file: {_place(error)}"
    if not said.isprintable() or len(said) > 3000:
        return f"not one short line: {_place(error)}"
    return None


def _place(error: BaseException) -> str:
    """Where in the package an error came up."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tinyft/" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside of the package"


def _peak() -> float:
    """The most memory since the last reset, in MB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def _reset_peak() -> float:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return _peak()


def table(accounts: dict[str, Account]) -> str:
    """A line for each format, and one for all."""
    lines = [f"{'format':15} {'inputs':>9} {'refused':>9} {'accepted':>9} {'slowest':>9} {'memory':>8} {'a second':>9}"
             "  findings"]
    total = Account()
    for name, a in [*accounts.items(), ("all", total)]:
        rate = a.inputs / a.seconds if a.seconds else 0
        lines.append(f"{name:15} {a.inputs:9,} {a.refused:9,} {a.accepted:9,} {a.slowest:7.2f} s {a.megabytes:5.0f} MB "
                     f"{rate:9,.0f}  {sum(a.findings.values()):,} of {len(a.findings)} kinds")
        total.inputs, total.refused, total.accepted = (total.inputs + a.inputs, total.refused + a.refused,
                                                       total.accepted + a.accepted)
        total.slowest, total.seconds = max(total.slowest, a.slowest), total.seconds + a.seconds
        total.megabytes = max(total.megabytes, a.megabytes)
        if a is not total:
            total.findings |= {f"{name}: {what}": count for what, count in a.findings.items()}
    lines += [f"  {count:7,}  {what}" for what, count in Counter(total.findings).most_common()]
    return "\n".join(lines)


def save(path: Path, options: argparse.Namespace, accounts: dict[str, Account], clock: float) -> None:
    """The table so far, whole or not at all."""
    beside = path.with_suffix(".part")
    whole = {"seed": options.seed, "inputs": sum(a.inputs for a in accounts.values()), "clock_seconds": round(clock),
             "formats": {name: asdict(account) for name, account in accounts.items()}}
    beside.write_text(json.dumps(whole, indent=1))
    os.replace(beside, path)


def restore(options: argparse.Namespace, fuzzer: Fuzzer, now: Path) -> None:
    """Go on with what --json has counted, behind the input that ended the process."""
    if not (options.json and options.resume and options.json.exists()):
        return
    for name, account in json.loads(options.json.read_text())["formats"].items():
        if name in fuzzer.accounts:
            fuzzer.accounts[name] = Account(**account)
    if now.exists():
        name, number = now.read_text().split()
        fuzzer.accounts[name].inputs = int(number) + 1
        fuzzer.keep(name, int(number), "ended the process", "")
    now.unlink(missing_ok=True)


def run(fuzzer: Fuzzer) -> None:
    """All formats in turn, until there are enough inputs, or time is over."""
    options, start, shown = fuzzer.options, time.monotonic(), time.monotonic()
    shares = {name: made.share for name, made in fuzzer.formats.items()}
    while sum(a.inputs for a in fuzzer.accounts.values()) < options.inputs:
        # The one that is furthest behind its share.
        name = min(shares, key=lambda name: fuzzer.accounts[name].inputs / shares[name])
        done = fuzzer.accounts[name].inputs
        left = options.inputs - sum(a.inputs for a in fuzzer.accounts.values())
        faulthandler.dump_traceback_later(600, exit=True)
        fuzzer.batch(name, range(done, done + min(BATCH, left)))
        clock = time.monotonic() - start
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            print(f"{sum(a.inputs for a in fuzzer.accounts.values()):,} inputs, {clock:.0f} s", flush=True)
            if options.json:
                save(options.json, options, fuzzer.accounts, clock)
        if options.minutes and clock > 60 * options.minutes:
            break
    faulthandler.cancel_dump_traceback_later()
    print(table(fuzzer.accounts))
    print(f"{time.monotonic() - start:.0f} s by the clock")
    if options.json:
        save(options.json, options, fuzzer.accounts, time.monotonic() - start)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="how many in all (%(default)s)")
    parser.add_argument("--minutes", type=float, help="stop then, whatever the inputs")
    parser.add_argument("--seed", type=int, default=0, help="others make other inputs (%(default)s)")
    parser.add_argument("--format", action="append", help="only this one; may be given several times")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one input of --format, with its traceback")
    parser.add_argument("--seconds", type=float, default=2.0,
                        help="of work for an input, or it is a finding (%(default)s)")
    parser.add_argument("--memory", type=int, default=1024, metavar="MB",
                        help="beyond what Python itself takes (%(default)s)")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), metavar="FOLDER",
                        help="where they are kept (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the table as it grows")
    parser.add_argument("--resume", action="store_true", help="go on with what --json has counted")
    return parser.parse_args(arguments)


def main() -> None:
    """Read them, and say what was found; exits with 1 if anything was."""
    options = parse_arguments()
    memory = Path("/dev/shm")
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None)).resolve()
    try:
        # A damaged adapter may name any model of the hub as its base.
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "read" / "adapter" / "hub")}
        fuzzer = Fuzzer(options, make_formats(scratch / "made"), scratch)
        fuzzer.confine()
        now = options.json.with_suffix(".now") if options.json else scratch / "none"
        restore(options, fuzzer, now)
        if options.only is not None:
            wrong, said, seconds = fuzzer.read(options.format[0], options.only)
            for file, content in fuzzer.make(options.format[0], options.only).items():
                print(f"{file}: {content[:2000]!r}")
            sys.exit(f"{wrong or 'nothing wrong'} ({seconds:.2f} s)\n{said}")
        if options.json:
            fuzzer.now = os.open(now, os.O_RDWR | os.O_CREAT)
        run(fuzzer)
        now.unlink(missing_ok=True)
        sys.exit(any(a.findings for a in fuzzer.accounts.values()))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
