"""What the scripts beside this file share: an environment for a harness, our server while it runs, and tables.

A harness gets a virtual environment of its own, since each pins what the others, or tinyft, can't live with.
"""

import http.client
import json
import os
import re
import signal
import string
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tinyft.evaluation.endpoints import check_key, is_loopback
from tinyft.files import one_line, read_text, write_text

HERE = Path(__file__).resolve().parent
SERVE = HERE.parent / "serve.py"
RECEIPT = "tinyft-installed.txt"  # in an environment made here: what was installed, empty until all of it is
STARTING_INTERVAL, STOPPING_SECONDS = 0.1, 30


@dataclass(frozen=True)
class Harness:
    """A package that evaluates models.

    pin: its release, as pip spells it. It is installed without what it declares to need, most of which a run here never
    imports; what it does import stands in `folder`/requirements.txt.
    """

    pin: str
    folder: Path

    @property
    def package(self) -> str:
        """Its name in a package index."""
        return self.pin.partition("==")[0]

    @property
    def requirements(self) -> Path:
        """What else is to be installed."""
        return self.folder / "requirements.txt"

    def default_environment(self) -> Path:
        """Where its environment goes unless another folder is named."""
        base = os.environ.get("TINYFT_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "tinyft" / f"{self.folder.name}-env"


def add_options(parser, harness: Harness, output: str) -> None:
    """Options that the scripts have in common."""
    parser.add_argument("--environment", type=Path, default=harness.default_environment(), metavar="FOLDER",
                        help=f"a virtual environment with {harness.package}, made if there is none (default: "
                        "%(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path(output), metavar="FOLDER",
                        help="where results and logs go (default: %(default)s)")
    parser.add_threads()


def make_environment(harness: Harness, folder: Path) -> Path:
    """Make a virtual environment with the harness in it, unless it stands; goes on where it was interrupted.

    Returns the folder of its commands. ValueError if `folder` holds something else, or pip fails.
    """
    folder = folder.absolute()
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    receipt, wanted = folder / RECEIPT, f"{harness.pin}\n{read_text(harness.requirements)}"
    if not receipt.exists() and folder.exists() and any(folder.iterdir()):  # not made here, and so left as it is
        if not _is_installed(harness, commands / "python"):
            raise ValueError(f"--environment {folder}: there is something, but no environment with {harness.package}; "
                             "name a folder that doesn't exist, to be made")
        return commands
    if receipt.exists() and read_text(receipt) == wanted:
        return commands
    print(f"making    {folder}: {harness.pin} with what it needs, from pip's index", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(receipt, "")
    log = folder / "pip.log"
    pip = [commands / "python", "-m", "pip", "--disable-pip-version-check", "install"]
    run_logged([sys.executable, "-m", "venv", folder], log)
    run_logged([*pip, "-r", harness.requirements], log)
    run_logged([*pip, "--no-deps", harness.pin], log)
    write_text(receipt, wanted)
    return commands


def _is_installed(harness: Harness, python: Path) -> bool:
    code = f"import importlib.metadata; importlib.metadata.version({harness.package!r})"
    return python.exists() and subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def run_logged(command: Sequence[object], log: Path, environment: dict[str, str] | None = None) -> None:
    """Run a command whose words go to a file. ValueError with the last of them if it fails."""
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=file,
                              stderr=subprocess.STDOUT, env=environment or _environment())
    if done.returncode:
        raise ValueError(f"{Path(str(command[0])).name} failed with exit status {done.returncode}; {log} ends with: "
                         f"{_last_line(log)}")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "nothing"


def _environment() -> dict[str, str]:
    """This process's variables, but for those that would reach into another environment, or lock our server."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TINYFT_API_KEY")}


def client_environment(url: str, key: str = "none", **more: str) -> dict[str, str]:
    """Variables that lead OpenAI's client to a local server, and nobody to the Hugging Face hub."""
    directly = {}
    if is_loopback(url):  # a proxy can't reach this machine's own servers; clients read one name or the other
        local = "127.0.0.1,localhost,::1"
        directly = {name: ",".join(filter(None, (os.environ.get(name), local))) for name in ("NO_PROXY", "no_proxy")}
    return _environment() | {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1", **directly, **more}


def safe_name(text: str) -> str:
    """A model's name in which harnesses find no sign that means something to them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "model"


@contextmanager
def serving(model: Path, name: str, log: Path, threads: int | None = None) -> Iterator[str]:
    """A server for the model on a free port, stopped when the block ends; gives its address, ending in /v1.

    ValueError with the server's last words if it can't start.
    """
    command = [sys.executable, SERVE, model, "--name", name, "--port", "0"]
    command += ["--threads", threads] if threads else []
    kept = {name: value for name, value in os.environ.items() if name != "TINYFT_API_KEY"}
    before = signal.signal(signal.SIGTERM, _interrupt)  # so that the server never outlives us
    with open(log, "w", encoding="utf-8") as file:
        server = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=file,
                                  stderr=subprocess.STDOUT, env=kept)
    try:
        while not (ready := re.search(r"^serving +(http://\S+)", read_text(log), re.MULTILINE)):
            if server.poll() is not None:
                raise ValueError(f"the server for {model} did not start: {_last_line(log).removeprefix('error: ')}")
            time.sleep(STARTING_INTERVAL)
        print(f"serving   {model} as {name} at {ready[1]}", flush=True)
        yield f"{ready[1]}/v1"
    finally:
        server.terminate()
        try:
            server.wait(STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: its target would get the API key."""

    def redirect_request(self, *arguments: object) -> None:
        """None, so that nobody follows it."""


def served_models(url: str, key: str = "none") -> list[dict]:
    """What a server in OpenAI's protocol says at /models: at least one model, each with an id.

    ValueError if nobody answers as such a server does.
    """
    check_key(key)
    proxies = urllib.request.ProxyHandler({} if is_loopback(url) else None)
    try:
        request = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.build_opener(proxies, _NoRedirects).open(request, timeout=30) as answer:
            listed = json.load(answer)["data"]
        models = [model for model in listed if isinstance(model["id"], str)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, http.client.HTTPException) as error:
        raise ValueError(f"{url}: no server in OpenAI's protocol answers there ({one_line(error)})") from None
    if not models:
        raise ValueError(f"{url}: the server lists no model; load one there, or check the URL")
    return models


def fill_in(template: Path, target: Path, **values: object) -> None:
    """Write a YAML file from one with $name in the places of values. ValueError if a value is missing."""
    quoted = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}  # JSON is YAML
    try:
        write_text(target, string.Template(read_text(template)).substitute(quoted))
    except KeyError as error:
        raise ValueError(f"{template}: there is no value for ${error.args[0]}; expected {', '.join(values)}") from None


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of text, the first to the left and the others, numbers mostly, to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in
                                                   zip(row[1:], widths[1:], strict=True))]) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
