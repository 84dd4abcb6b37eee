"""The arena over HTTP: names come after the vote, and nothing acknowledged is lost; the script."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_arena import Scripted, make_arena, prompt_lines, serving, told
from tiny import ROOT, error_line, example, in_process, save_tiny_model

WHY_NOT = "needs pip install httpx '.[arena]'"
httpx = pytest.importorskip("httpx", reason=WHY_NOT)
pytest.importorskip("starlette", reason=WHY_NOT)
pytest.importorskip("uvicorn", reason=WHY_NOT)

from tinyft.evaluation import arena_server  # noqa: E402 - what stands above may skip all this
from tinyft.evaluation.arena_server import ArenaServer  # noqa: E402
from tinyft.evaluation.journal import Journal  # noqa: E402
from tinyft.evaluation.votes import Vote, read_votes  # noqa: E402

NAMES = ("first-model", "second-model")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "votes.jsonl"


@pytest.fixture
def site(path):
    """An arena of two models behind HTTP -> (a client, the arena)."""
    arena = make_arena(path)
    with serving(ArenaServer(arena)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client, arena


def begin(client, prompt: str | None = "Hi?") -> dict:
    """A battle in the end."""
    reply = client.post("/api/battles", json={} if prompt is None else {"prompt": prompt})
    assert reply.status_code == 200, reply.text
    return told(client.get(f"/api/battles/{reply.json()['id']}/events"))[1]


def vote(client, id: str, winner: str = "a", **fields):
    return client.post(f"/api/battles/{id}/vote", json={"winner": winner, **fields})


# ---- over HTTP


def test_the_first_vote_of_a_battle_stands(site, path):
    client, _ = site
    battle = begin(client)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda winner: vote(client, battle["id"], winner).json(), ["a", "b", "tie", "bad"] * 4))
    [line] = read_votes(path)
    kept = {"model_a": "a", "model_b": "b", "tie": "tie", "tie (bothbad)": "bad"}[line["winner"]]
    assert {answer["winner"] for answer in answers} == {kept}


def test_a_vote_that_cannot_be_written_does_not_count(site, path, monkeypatch):
    client, arena = site
    battle = begin(client)

    def full(record):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(arena.journal, "append", full)
        reply = vote(client, battle["id"])
        assert reply.status_code == 507 and "No space left on device" in reply.json()["error"]["message"]
        assert "names" not in reply.text and "-model" not in reply.text
    assert read_votes(path) == []
    assert vote(client, battle["id"]).json()["state"] == "voted" and len(read_votes(path)) == 1


def test_names_come_after_the_vote_and_nowhere_before(path):
    with serving(ArenaServer(make_arena(path, prompts=prompt_lines("Hi?")))) as url:
        seen = []
        with httpx.Client(base_url=url, event_hooks={"response": [lambda reply: (reply.read(), seen.append(reply))]},
                          ) as client:
            client.get("/")
            client.get("/api/arena")
            battle = begin(client, None)
            vote(client, battle["id"], "c")
            vote(client, "other")
            client.get("/api/nothing")
            before = [str(reply.headers.raw) + reply.text for reply in seen]
            names = vote(client, battle["id"]).json()["names"]
    assert sorted(names) == sorted(NAMES) and len(before) == 7
    assert not any(name in text for name in NAMES for text in before)


def test_replies_are_told_as_they_come(path):
    slow, quick = Scripted("slow", "One", None, " two"), Scripted("quick", "Three")
    with serving(ArenaServer(make_arena(path, slow, quick))) as url:
        id = httpx.post(f"{url}/api/battles", json={"prompt": "Hi?"}).json()["id"]
        seen = ["", ""]
        with httpx.stream("GET", f"{url}/api/battles/{id}/events", timeout=30) as reply:
            for line in reply.iter_lines():
                value = json.loads(line.removeprefix("data: ")) if line else {}
                if "side" in value:
                    seen[value["side"]] += value["text"]
                    if sorted(seen) == ["One", "Three"]:
                        slow.go_on.set()
        assert sorted(seen) == ["One two", "Three"]
        pieces, battle = told(httpx.get(f"{url}/api/battles/{id}/events"))
        assert pieces == [] and sorted(battle["replies"]) == ["One two", "Three"], "whoever comes later sees all"


def test_who_comes_while_replies_are_written_gets_their_beginning(path):
    slow = Scripted("slow", *"abc", None, "d")
    with serving(ArenaServer(make_arena(path, slow, Scripted("quick")))) as url:
        id = httpx.post(f"{url}/api/battles", json={"prompt": "Hi?"}).json()["id"]
        for _ in range(2):  # the first one goes away
            with httpx.stream("GET", f"{url}/api/battles/{id}/events", timeout=30) as reply:
                text = ""
                for line in reply.iter_lines():
                    text += line
                    if '"abc"' in text or all(f'"{letter}"' in text for letter in "abc"):
                        break
        slow.go_on.set()
        assert "abcd" in told(httpx.get(f"{url}/api/battles/{id}/events", timeout=30))[1]["replies"]


def test_ratings_say_what_is_missing_and_then_what_they_are(site):
    pytest.importorskip("evalica", reason=WHY_NOT)
    client, arena = site
    assert "no votes yet" in client.get("/api/ratings").json()["why"]
    for number in range(4):
        battle = begin(client)
        left = arena.find(battle["id"]).sides[0].model.name
        wins = "first-model" if number else "second-model"
        vote(client, battle["id"], "a" if left == wins else "b")
    ratings = client.get("/api/ratings").json()
    assert [(row["model"], row["votes"]) for row in ratings["rows"]] == [("first-model", 4), ("second-model", 4)]
    assert ratings["rows"][0]["rating"] > 1000 > ratings["rows"][1]["rating"] and ratings["votes"] == 4
    assert ratings["notes"][0].startswith("4 votes, 0% of them ties") and not ratings["one_sided"]
    assert ratings["plot"] == "" or ratings["plot"].startswith("data:image/png;base64,iVBOR")
    assert client.get("/api/ratings").json() == ratings


def test_ratings_where_no_vote_links_all_models(path):
    votes = [{"id": str(n), "time": 0.0, "prompt": "p", "model_a": a, "model_b": b, "reply_a": "", "reply_b": "",
              "winner": "tie", "judge": ""} for n, (a, b) in enumerate((("a", "b"), ("c", "d")))]
    assert "no vote compares" in arena_server.rated(votes, np.random.default_rng(0))["why"]


def test_the_download_has_lmsys_fields(site):
    client, _ = site
    battle = begin(client)
    vote(client, battle["id"], "bad", judge=" Ann ")
    reply = client.get("/votes.json")
    [row] = reply.json()
    assert 'filename="votes.json"' in reply.headers["content-disposition"]
    assert row["winner"] == "tie (bothbad)" and row["judge"] == "Ann" and row["question_id"] == battle["id"]
    assert row["conversation_a"] == [{"role": "user", "content": "Hi?"},
                                     {"role": "assistant", "content": battle["replies"][0]}]


@pytest.mark.parametrize("to, fields, status, said", [
    ("/api/battles", {"prompt": " \n"}, 400, "empty"), ("/api/battles", {"prompt": 3}, 400, "expected a text"),
    ("/api/battles", {"prompt": "\ud800"}, 400, "not UTF-8"), ("/api/battles", {"model": "a"}, 400, "'model'"),
    ("/api/battles", {"prompt": "a" * 200_001}, 413, "200,000 bytes"), ("/api/battles", {}, 409, "no file of prompts"),
    ("/api/battles/none/vote", {"winner": "a"}, 404, "begin another"), ("/api/battles/none/skip", {}, 404, "begin"),
    ("/api/battles/ID/vote", {"winner": "model_a"}, 400, "one of a, b, tie, bad"),
    ("/api/battles/ID/vote", {"winner": ["a"]}, 400, "one of a, b, tie, bad"),
    ("/api/battles/ID/vote", {"winner": "a", "judge": "x" * 101}, 400, "at most 100"),
    ("/api/battles/ID/vote", {"winner": "a", "judge": 3}, 400, "expected a text"),
])
def test_what_is_wrongly_asked(site, to, fields, status, said):
    client, arena = site
    id, kind = begin(client)["id"], {"Content-Type": "application/json"}
    reply = client.post(to.replace("ID", id), content=json.dumps(fields), headers=kind)
    assert reply.status_code == status and said in reply.json()["error"]["message"]
    assert arena.votes == [] and arena.find(id).state == "ready"


def test_other_sites_and_other_names_are_kept_out(site):
    client, arena = site
    id = begin(client)["id"]
    for kind in ("text/plain", "application/x-www-form-urlencoded"):  # which a page of another site may send
        reply = client.post(f"/api/battles/{id}/vote", content=b'{"winner": "a"}', headers={"Content-Type": kind})
        assert reply.status_code == 415
    for path in ("/", "/api/arena", "/votes.json", f"/api/battles/{id}/events"):
        assert client.get(path, headers={"Host": "example.org"}).status_code == 403
    assert client.get(f"/api/battles/{id}/vote").status_code == 405
    assert arena.votes == []


def test_the_page_needs_nothing_from_elsewhere(site):
    reply = site[0].get("/")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "/* look.css */" not in reply.text and "class TextView" in reply.text and "--accent" in reply.text
    assert not any(sign in reply.text for sign in ("http://", "https://", "src=\"", "@import", "url("))


# ---- a process that is killed, and one that is stopped


@contextlib.contextmanager
def process(path: Path):
    """An arena in a process of its own -> (the process, its address)."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "NUMBA_NUM_THREADS": "1", "HOME": str(Path.home())}
    child = subprocess.Popen([sys.executable, str(Path(__file__).with_name("fake_arena.py")), str(path)],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield child, child.stdout.readline().strip()
    finally:
        child.kill()
        child.communicate()


@pytest.mark.heavy
def test_what_was_acknowledged_survives_kill_9(path):
    acknowledged = []

    def vote_on(url):
        with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=url) as client:
            while True:
                battle = begin(client)
                acknowledged.append(vote(client, battle["id"]).json()["id"])

    for round in range(2):
        with process(path) as (child, url), concurrent.futures.ThreadPoolExecutor(3) as pool:
            people = [pool.submit(vote_on, url) for _ in range(3)]
            end, before = time.monotonic() + 30, len(acknowledged)
            while len(acknowledged) < before + 20 and time.monotonic() < end:
                time.sleep(0.01)
            child.kill()
            assert [person.exception() for person in people] == [None] * 3
        with path.open("ab") as file:
            file.write(b'{"id": "torn", "pro' * (round == 0))  # as a machine that stops may leave it
    kept = [vote["id"] for vote in read_votes(path)]
    assert len(acknowledged) >= 40 and set(acknowledged) <= set(kept) and len(kept) == len(set(kept))
    with process(path) as (child, url):
        assert httpx.get(f"{url}/api/arena").json()["votes"] == len(kept)
        child.terminate()
        assert child.wait(30) == 0


def test_it_ends_while_somebody_watches(path):
    slow = Scripted("slow", None)
    with serving(ArenaServer(make_arena(path, slow, Scripted("quick")))) as url:
        id = httpx.post(f"{url}/api/battles", json={"prompt": "Hi?"}).json()["id"]
        stream = httpx.stream("GET", f"{url}/api/battles/{id}/events", timeout=30)
        stream.__enter__()
        began = time.monotonic()
    assert time.monotonic() - began < 5
    stream.__exit__(None, None, None)


# ---- the script


@pytest.mark.heavy
def test_the_script_with_two_models(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "one" / "model")
    save_tiny_model(tmp_path / "two", seed=1)
    (tmp_path / "p.jsonl").write_text('"Say word."\n{"instruction": "Say", "input": "word"}\n')
    (tmp_path / "votes.jsonl").write_text('{"id": "to')
    arguments = ["one/model", "two", "--prompts", "p.jsonl", "--port", "0", "--max-new-tokens", "8"]
    environment = {"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1", "PATH": "", "HOME": str(Path.home())}
    child = subprocess.Popen([sys.executable, str(ROOT / "examples" / "arena.py"), *arguments], cwd=tmp_path,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        lines = [child.stdout.readline() for _ in range(4)]
        assert lines[0].startswith("model     one: one/model, context") and "0 of 2 prompts are done" in lines[2]
        url = lines[3].split()[1]
        with httpx.Client(base_url=url, timeout=60) as client:
            battle = begin(client, None)
            assert battle["prompt"] == "Say word." and battle["state"] == "ready"
            assert sorted(vote(client, battle["id"]).json()["names"]) == ["one", "two"]
            assert client.get("/api/arena").json() == {"models": 2, "votes": 1,
                                                      "queue": {"done": 1, "given_up": 0, "all": 2}}
    finally:
        child.send_signal(2)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and "10 bytes at the end" in errors and "Traceback" not in errors
    result = example("arena.py", "--export", "lmsys.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "1 vote written" in result.stdout and len(json.loads((tmp_path / "lmsys.json").read_text())) == 1


@pytest.mark.parametrize("arguments, said", [
    (["one"], "expected at least 2"), ([], "expected at least 2"), (["a", "b", "--port", "99999"], "at most 65535"),
    (["a", "b", "--prompts", "none.jsonl"], "none.jsonl: cannot read it"),
    (["--export", "out.json"], "votes.jsonl: cannot read it"), (["a", "http://127.0.0.1:1/v1"], "which of its models"),
])
def test_a_start_that_fails_says_why(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    code = in_process("arena.py", arguments + ["--port", "0"] * ("--port" not in arguments), monkeypatch, capsys)
    assert str(code).startswith("error: ") and said in str(code)


@pytest.mark.parametrize("name", ["votes.jsonl", "link"])
def test_an_export_never_replaces_the_votes(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    line = Vote("1", 1.5, "Hi?", "a", "b", "yes", "no", "model_a").record()
    (tmp_path / "votes.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "link").symlink_to("votes.jsonl")
    code = in_process("arena.py", ["--export", name], monkeypatch, capsys)
    assert "would be lost" in str(code) and read_votes(tmp_path / "votes.jsonl") == [line]


@pytest.mark.parametrize("content", ['{"n": 1}', '{"n": 1}\n', '[{"id": "1"}]', "Some text"])
def test_votes_are_checked_before_models_are_loaded(tmp_path, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text(content)
    arguments = ["nowhere/a", "nowhere/b", "--votes", "other.json", "--port", "0"]
    code = in_process("arena.py", arguments, monkeypatch, capsys)
    assert str(code).startswith("error: other.json") and (tmp_path / "other.json").read_text() == content


def test_connections_are_closed_when_the_server_ends(path):
    class Watched(Scripted):
        async def close(self):
            await asyncio.sleep(0.05)
            closed.append((self.name, asyncio.get_running_loop().is_running()))

    closed = []
    with serving(ArenaServer(make_arena(path, Watched("a", None), Watched("b")))) as url:
        httpx.post(f"{url}/api/battles", json={"prompt": "Hi?"})
    assert sorted(closed) == [("a", True), ("b", True)]
    Journal(path).close()  # which is free


def test_a_port_in_use(tmp_path, path):
    with serving(ArenaServer(make_arena(path))) as url:
        result = example("arena.py", "a", "b", "--port", url.rsplit(":", 1)[1], cwd=tmp_path)
    assert "something listens there; stop it or choose another --port" in error_line(result)
