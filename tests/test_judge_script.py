"""examples/judge.py, run as a user runs it, against a judge that is scripted and one that is ours."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from scripted_endpoint import fails, in_turn, longer, quoted, says, scripted
from tiny import EXAMPLES, ROOT, error_line, example, in_process

pytest.importorskip("httpx", reason="needs pip install '.[judge]'")

from tinyft.evaluation import endpoints  # noqa: E402 - what stands above may skip all this
from tinyft.evaluation.agreement import read_judgements  # noqa: E402


def write(path: Path, value) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path) -> Path:
    entries = [{"instruction": f"Say word {i}.", "input": "", "output": "ab" * i, "family": f"words/{'ab'[i % 2]}",
                "model_response": "c" * (5 * i)} for i in range(12)]
    write(tmp_path / "replies.json", entries)
    write(tmp_path / "other.json", [entry | {"model_response": "d" * 30} for entry in entries])
    return tmp_path


def by_length(body, number):
    if "A, B or TIE" in body["messages"][0]["content"]:
        return longer(body, number)
    return says("no idea" if "word 3." in quoted(body, "instruction") else f"Score: {len(quoted(body))}/100")


def run(folder: Path, url: str, *options) -> subprocess.CompletedProcess:
    return example("judge.py", folder / "replies.json", "--judge", url, *options, cwd=folder)


def test_the_script_scores_and_asks_nothing_twice(files):
    pytest.importorskip("matplotlib", reason="draws")
    write(files / "marks.json", [{"index": i, "mark": "wrong" if i < 6 else "half", "note": ""} for i in range(12)])
    with scripted(by_length) as (url, server):
        options = ("--marks", files / "marks.json", "--plot", files / "plot.png", "--api-key", "sk-secret")
        first = run(files, url, *options)
        assert first.returncode == 0, first.stderr
        assert len(server.bodies) == 11 + 3
        second = run(files, url, *options)
        assert second.returncode == 0 and len(server.bodies) == 14
    assert "score: mean 28.6 [" in first.stdout and "of 11 judged out of 12; 1 unparseable" in first.stdout
    assert "agreement with the marks" in first.stdout and "10 of 11 the same" in first.stdout
    assert second.stdout.split("\n\n", 1)[1] == first.stdout.split("\n\n", 1)[1]
    assert "0 answers" in second.stdout and "12 questions were known" in second.stdout
    found = json.loads((files / "judgements.json").read_text())
    assert found["kind"] == "scores" and len(found["judgements"]) == 12
    assert found["judgements"][3] == {
        "index": 3, "column": "score", "family": "words/b", "question": "Say word 3.", "reply": "c" * 15, "score": None,
        "said": ["no idea"] * 3, "refused": ""}
    assert found["summary"]["score"]["all"]["mean"] == pytest.approx(sum(5 * i for i in range(12) if i != 3) / 11)
    assert found["settings"]["model"] == "judge" and found["settings"]["seed"] == 123
    assert (files / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert not any(b"sk-secret" in path.read_bytes() for path in files.rglob("*") if path.is_file())


@pytest.mark.heavy
def test_the_script_compares(files):
    with scripted(by_length) as (url, server):
        result = run(files, url, "--compare", files / "other.json", "--limit", "8", "--parallel", "3")
        assert result.returncode == 0, result.stderr
        assert len(server.bodies) == 16 and 1 <= server.most_running <= 3
        again = run(files, url, "--compare", files / "other.json", "--limit", "8", "--agree-with",
                    files / "comparisons.json", "--output", "again.json")
    assert "1 wins, 1 ties, 6 losses; 8 judged out of 8" in result.stdout
    assert json.loads((files / "comparisons.json").read_text())["summary"]["all"]["losses"] == 6
    assert "8 of 8 the same (100%), Cohen's kappa 1.00" in again.stdout


@pytest.mark.heavy
def test_the_script_beside_the_untuned_model(files):
    with scripted(by_length) as (url, server):
        write(files / "marks.json", [{"index": i, "mark": "wrong" if i < 5 else "half"} for i in range(12)])
        result = run(files, url, "--before", files / "other.json", "--marks", files / "marks.json", "--rubric",
                     write(files / "rubric.txt", "Only length counts."))
        assert result.returncode == 0, result.stderr
        again = run(files, url, "--before", files / "other.json", "--rubric", files / "rubric.txt", "--agree-with",
                    files / "judgements.json", "--output", "again.json", "--cache", "judge_cache.jsonl")
    assert all("Only length counts." in body["messages"][0]["content"] for body in server.bodies)
    assert "before: mean 30.0 [30.0, 30.0] of 11 judged" in result.stdout
    assert "11 of 11 the same (100%), Cohen's kappa 1.00" in result.stdout  # people mark what comes after
    assert "after - before: -1.4 [" in result.stdout and "5 better, 5 worse" in result.stdout
    assert "22 of 22 the same (100%), Cohen's kappa 1.00" in again.stdout


def test_judgements_of_other_replies(files):
    mine = [{"index": 0, "column": "score", "reply": "a"}, {"index": 1, "column": "score", "reply": "b"}]
    write(files / "j.json", {"kind": "scores", "judgements": [mine[0] | {"score": 7}]})
    assert read_judgements(files / "j.json", "scores", mine) == [7, None]
    with pytest.raises(ValueError, match="judges other replies"):
        read_judgements(files / "j.json", "scores", mine[1:])
    for bad, of in (("85", "'85', expected a number from 0 to 100, or null"), (True, "True"), (150, "150"),
                    (float("nan"), "nan"), ([], "expected a number")):
        write(files / "j.json", {"kind": "scores", "judgements": [mine[0] | {"score": bad}]})
        with pytest.raises(ValueError, match=f"j.json, judgement 1: 'score' is .*{of}"):
            read_judgements(files / "j.json", "scores", mine)
    for bad in ("won", 3, ["win"]):
        write(files / "j.json", {"kind": "comparisons", "judgements": [mine[0] | {"outcome": bad}]})
        with pytest.raises(ValueError, match="judgement 1: 'outcome' is .* expected one of loss, tie, win, or null"):
            read_judgements(files / "j.json", "comparisons", mine)
    write(files / "j.json", {"kind": "scores", "judgements": [mine[0] | {"score": None}]})
    assert read_judgements(files / "j.json", "scores", mine) == [None, None]
    for bad in ([], {"kind": "comparisons", "judgements": []}, {"kind": "scores", "judgements": [{}]}):
        with pytest.raises(ValueError, match="expected what judge.py writes|not a judgement"):
            read_judgements(write(files / "j.json", bad), "scores", mine)


@pytest.mark.parametrize("options, said", [
    (("--compare", "other.json", "--marks", "m.json"), "leave out --before and --marks"),
    (("--thresholds", "80", "40"), "the first is above the second"),
    (("--output", "replies.json"), "named for something"), (("--cache", "judgements.json"), "named for something"),
    (("--rubric", "empty.txt"), "empty.txt is empty"), (("--before", "fewer.json"), "is not asked in"),
    (("--reply", "mine"), "no reply"), (("--marks", "no.json"), "no.json"), ((), "no connection"),
    (("--plot", "x.txt"), "--plot x.txt: expected a name that ends in .png, .svg, .pdf"),
    (("--plot", "png"), "--plot png: expected a name"),
])
def test_the_script_says_what_is_wrong(files, options, said, monkeypatch, capsys):
    write(files / "empty.txt", "\n")
    write(files / "fewer.json", json.loads((files / "other.json").read_text())[:3])
    monkeypatch.chdir(files)
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.001)
    line = in_process("judge.py", ["replies.json", "--judge", "http://127.0.0.1:1", *options], monkeypatch, capsys)
    assert line.startswith("error: ") and said in line and "\n" not in line


@pytest.mark.heavy
def test_a_fresh_run_asks_everything(files):
    mood = "40"
    with scripted(lambda body, number: says(mood)) as (url, server):
        assert run(files, url, "--limit", "2").returncode == 0
        mood = "60"
        fresh = run(files, url, "--limit", "2", "--fresh")
        assert "score: mean 60.0" in fresh.stdout and "2 answers" in fresh.stdout and len(server.bodies) == 4


def test_judgements_are_kept_where_they_cannot_be_drawn(files, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="draws")
    from tinyft.evaluation import judge_report

    def fail(figure, path):
        raise OSError("no space left")

    monkeypatch.setattr(judge_report, "_save", fail)
    monkeypatch.chdir(files)
    with scripted(by_length) as (url, _):
        for more, written in (((), "judgements.json"), (("--compare", "other.json"), "comparisons.json")):
            options = ["replies.json", "--judge", url, "--limit", "3", "--plot", "plot.PNG", *more]
            assert in_process("judge.py", options, monkeypatch, capsys) == "error: no space left"
            assert len(json.loads((files / written).read_text())["judgements"]) == 3


@pytest.mark.parametrize("host, given, sent", [
    ("127.0.0.1", (), True), ("judge.invalid", (), False), ("judge.invalid", ("--api-key", "sk"), None)])
def test_the_key_of_the_environment_stays_on_this_machine(files, host, given, sent, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-mine")
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.001)
    monkeypatch.chdir(files)
    keys = []
    make = endpoints.Endpoint.__init__
    monkeypatch.setattr(endpoints.Endpoint, "__init__",
                        lambda self, *options: keys.append(options[3]) or make(self, *options))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nothing is looked up
    with pytest.raises(SystemExit, match="no connection"):
        monkeypatch.setattr(sys, "argv", ["judge.py", "replies.json", "--judge", f"http://{host}:1", *given])
        runpy.run_path(str(EXAMPLES / "judge.py"), run_name="__main__")
    assert keys == ["sk-of-mine" if sent else given[1] if given else None]
    said = "OPENAI_API_KEY isn't sent over plain http to another machine; --api-key does it anyway"
    assert (said in capsys.readouterr().out) == (sent is False)


def test_a_judge_that_refuses_all(files):
    with scripted(in_turn(fails(400, "the prompt is too long"))) as (url, _):
        line = error_line(run(files, url))
    assert "refused all 12 questions" in line and "the prompt is too long" in line


@pytest.mark.heavy
def test_a_killed_run_goes_on(files):
    seconds = 0.0
    with scripted(lambda body, number: says(f"{len(quoted(body))}", seconds=seconds * (number > 3))) as (url, server):
        seconds = 3.0
        command = [sys.executable, str(EXAMPLES / "judge.py"), "replies.json", "--judge", url, "--parallel", "1"]
        process = subprocess.Popen(command, cwd=files, env={**os.environ, "PYTHONPATH": str(ROOT)},
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while len(server.bodies) < 5 and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seconds = 0.0
        kept = len((files / "judge_cache.jsonl").read_text().splitlines())
        assert kept == 4 and not (files / "judgements.json").exists()
        with open(files / "judge_cache.jsonl", "a") as cache:
            cache.write('{"key": "torn')
        before = len(server.bodies)
        result = run(files, url)
        assert result.returncode == 0, result.stderr
        assert len(server.bodies) - before == 12 - kept and "were no whole line" in result.stdout
    assert "of 12 judged out of 12" in result.stdout


@pytest.mark.heavy
def test_our_own_server_is_a_judge(files):
    """A real engine behind a real server: it can be asked, whatever a model with random weights makes of it."""
    pytest.importorskip("starlette", reason="needs pip install '.[serve]'")
    pytest.importorskip("uvicorn", reason="needs pip install '.[serve]'")
    from fake_scheduler import make_served
    from tiny import TOKENIZER, make_model

    from tinyft import Engine
    from tinyft.inference.scheduler import scheduler_of
    from tinyft.inference.server import Server, listen, serve
    from tinyft.inference.service import Service

    engine = Engine(make_model(n_positions=2048), max_rows=8)
    served = make_served(name="tiny", context=2048)
    server, listener = Server(Service(scheduler_of(engine), TOKENIZER), served), listen("127.0.0.1", 0)
    thread = threading.Thread(target=serve, args=(server, listener), daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        options = ("--limit", "3", "--max-new-tokens", "5", "--attempts", "2")
        first, second = run(files, url, *options), run(files, url, *options)
    finally:
        server.drain()
        thread.join(60)
    assert first.returncode == 0, first.stderr
    assert "tiny at" in first.stdout and "judged out of 3" in first.stdout
    said = [item["said"] for item in json.loads((files / "judgements.json").read_text())["judgements"]]
    assert all(1 <= len(texts) <= 2 and any(texts) for texts in said)
    assert "0 answers" in second.stdout
