"""The peers in generating do the same work as tinyft, and what of measuring them can be tested without measuring."""

import io
import json
import sys

import numpy as np
import pytest
from tiny import EXAMPLES, make_model

from tinyft import load_model, no_grad, save_model

sys.path.append(str(EXAMPLES))

from benchmarks import decoding, generators, serving  # noqa: E402
from benchmarks.decoding import Work  # noqa: E402
from benchmarks.generators import Loaded, Peer  # noqa: E402

SHAPE = dict(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2)
# As `examples/serve.py` answers, with as many tokens as are asked for; and with an error where they are 7.
SERVER = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, *lines):
        self.send_response(status)
        self.end_headers()
        self.wfile.write("".join(line + "\\n" for line in lines).encode())

    def do_GET(self):
        self.answer(200)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        count = asked["max_tokens"]
        assert asked["stream"] and len(asked["prompt"]) == 5
        if count == 7:
            return self.answer(429, "come back later")
        events = [{"choices": [{"text": "x"}], "usage": None}] * count
        events.append({"choices": [], "usage": {"completion_tokens": min(count, 9)}})
        self.answer(200, *(f"data: {json.dumps(event)}\\n" for event in events), "data: [DONE]\\n")

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that tells tokens apart: its replies are no repetitions of one token."""
    folder = tmp_path_factory.mktemp("generators") / "model"
    save_model(make_model(**SHAPE), generators.make_tokenizer(SHAPE["vocab_size"]), folder)
    return folder


def likeliest_tokens(folder, prompt, count):
    """By the model itself, which reads everything anew for each token."""
    model, ids = load_model(folder), list(prompt)
    with no_grad():
        for _ in range(count):
            ids.append(int(model(np.array([ids])).data[0, -1].argmax()))
    return ids[len(prompt):]


@pytest.mark.parametrize(("peer", "kind"), [
    pytest.param(peer, kind, marks=pytest.mark.heavy if peer == "tinyft" else pytest.mark.referee)
    for peer, how in generators.PEERS.items() for kind in how.kinds])
def test_peers_write_the_likeliest_tokens(peer, kind, folder, monkeypatch):
    if not generators.PEERS[peer].is_installed():
        pytest.skip(generators.PEERS[peer].install)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    loaded, told = generators.PEERS[peer].load(folder, kind), []
    prompts = generators.make_prompts(1, 2, 9, SHAPE["vocab_size"])
    replies = loaded.write(prompts, 12, lambda: told.append(None))
    if generators.BITS[kind] == 32:
        expected = [likeliest_tokens(folder, prompt, 12) for prompt in prompts]
        assert len(set(expected[0])) > 2, "any model would do"
        assert replies == expected
    assert [len(reply) for reply in replies] == [12, 12]
    assert len(told) == (24 if peer == "llama.cpp" else 12)
    weights = sum(tensor.size for _, tensor in load_model(folder).named_parameters())
    assert loaded.weight_bytes == pytest.approx(weights * generators.BITS[kind] / 8, rel=0.5)


def test_made_folders_never_end_a_reply(tmp_path):
    from tinyft import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(generators.make_folder(tmp_path / "model", SHAPE))
    assert tokenizer.n_vocab == SHAPE["vocab_size"]
    assert tokenizer.decode(tokenizer.encode("Plain, öäü.")) == "Plain, öäü."
    with no_grad():
        logits = model(np.array(generators.make_prompts(2, 3, 20, SHAPE["vocab_size"]))).data
    assert (logits[..., tokenizer.eot_token] == 0).all() and (logits.max(-1) > 0).all()


def test_prompts_share_nothing():
    prompts = generators.make_prompts(1, 64, 64, 50257)
    assert {len(prompt) for prompt in prompts} == {64} and 0 <= min(map(min, prompts)) <= max(map(max, prompts)) < 50256
    assert prompts == generators.make_prompts(1, 64, 64, 50257) != generators.make_prompts(2, 64, 64, 50257)
    assert len({tuple(prompt[:2]) for prompt in prompts}) == 64


def test_names_of_tensors():
    assert generators._gguf_name("h.3.attn.c_attn.weight") == "blk.3.attn_qkv.weight"
    assert generators._gguf_name("h.11.mlp.c_proj.bias") == "blk.11.ffn_down.bias"
    assert generators._gguf_name("wte.weight") == "token_embd.weight"


def test_a_process_loads_once_and_answers_line_by_line(tmp_path, monkeypatch, capsys):
    def write(prompts, count, tell):
        for _ in range(count):
            tell()
        return [prompt[:1] * min(count, 5) for prompt in prompts]

    (tmp_path / "config.json").write_text('{"vocab_size": 300}')
    monkeypatch.setitem(generators.PEERS, "tinyft", Peer(lambda folder, kind: Loaded(write, len(kind)), ("int8",)))
    name = generators.process_name("tinyft", "int8")
    lines = [str(tmp_path), [1, 3, 4, 5, False], [1, 3, 4, 5, True]]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(line) + "\n" for line in lines)))
    generators.serve(name)
    ready, weight_bytes, *answers = capsys.readouterr().out.splitlines()
    assert ready == "ready" and json.loads(weight_bytes) == len("int8")
    for answer in map(json.loads, answers):
        step = answer["step"]
        assert 0 <= step["first"] <= step["whole"] and 0 <= step["rest"] <= step["whole"] and answer["peak"] > 0
    with pytest.raises(RuntimeError, match=r"asked for 6 tokens a prompt, got \[5, 5\]"):
        generators._carry_out(Loaded(write, 0), [[1], [2]], 6, apart=False)


class FakeGenerator:
    """Writes at a speed of its own, and remembers what it was asked for."""

    def __init__(self, title, seconds=1.0):
        self.title, self.taken, self.asked = title, seconds, []

    def seconds(self, work, seed):
        self.asked.append((work.count, seed))
        return {"first": self.taken * seed, "rest": 1.0, "whole": 1.0}


def test_every_turn_has_other_prompts(monkeypatch):
    monkeypatch.setattr(decoding, "REST", 0)
    fast, slow, turns = FakeGenerator("fast"), FakeGenerator("slow", 10), []
    medians = decoding.take_turns({"fast": (fast, Work(1, 64, 128)), "slow": (slow, Work(1, 64, 128))}, 3, {
        "machine": lambda turn: turns.append(turn) or {"bandwidth": turn}})
    assert fast.asked == slow.asked == [(2, 0), (128, 1), (128, 2), (128, 3)] and turns == [1, 2, 3]
    assert medians["fast"]["first"] == 2 and medians["slow"]["first"] == 20 and medians["machine"] == {"bandwidth": 2}


def test_columns_are_beside_the_bound_and_beside_as_many_bits():
    ours = decoding.columns({"first": 0.05, "rest": 127 / 60, "whole": 3}, 500_000_000, 40.0)
    assert ours == pytest.approx({"decoding": 60, "prefill_ms": 50, "weights_MB": 500, "bound": 80, "of_bound": 0.75})
    theirs = decoding.columns({"first": 0.1, "rest": 127 / 30, "whole": 3}, 500_000_000, None)
    rows = decoding.compare({"tinyft float32": ours, "llama.cpp F32": theirs, "llama.cpp Q8_0": theirs})
    assert rows["tinyft float32"]["ratio"] == rows["tinyft float32"]["prefill_ratio"] == 1
    assert rows["llama.cpp F32"]["ratio"] == pytest.approx(2) == rows["llama.cpp F32"]["prefill_ratio"]
    assert rows["llama.cpp Q8_0"]["ratio"] is None and "of_bound" not in rows["llama.cpp Q8_0"]


def test_many_prompts_are_for_those_who_write_together():
    here = [FakeGenerator(f"{peer} {kind}") for peer, how in generators.PEERS.items() for kind in how.kinds]
    jobs = decoding.many_jobs(here)
    assert list(jobs) == ["tinyft float32, one at a time", "tinyft float32", "tinyft bfloat16", "tinyft int8",
                          "transformers.generate float32"]
    assert jobs["tinyft float32"][1].tokens == 64 * 128
    assert len(decoding.many_jobs([each for each in here if each.title.startswith("tinyft")])) == 4


def test_programs_for_the_first_token_are_programs(tmp_path, monkeypatch):
    monkeypatch.setattr(generators, "write_gguf", lambda folder, kind: folder / kind)
    monkeypatch.setattr(Peer, "is_installed", lambda self: True)
    programs = decoding.first_token_programs(tmp_path, False, 2)
    assert len(programs) == 7
    for title, program in programs.items():
        compile(program, title, "exec")
    without_torch = decoding.first_token_programs(tmp_path, True, 2)
    assert set(without_torch) == {title for title in programs if not title.startswith("transformers")}


def test_a_program_that_fails_is_an_error():
    assert decoding.run_program("tinyft float32", "print(7)", 1) == "7"
    with pytest.raises(RuntimeError, match="(?s)first token of llama.cpp F32 failed.*no such word"):
        decoding.run_program("llama.cpp F32", "raise SystemExit('no such word')", 1)


def test_clients_count_what_the_server_says_it_sent():
    port, prompts = serving.free_port(), generators.make_prompts(1, 4, 5, 300)
    assert not serving.is_ready(port)
    with serving.server([sys.executable, "-c", SERVER, str(port)], port):
        taken = serving.seconds(port, prompts, 9)
        assert 0 < taken["first"] <= taken["whole"]
        with pytest.raises(RuntimeError, match=r"asked for 10 tokens, the server says that it sent \[9, 9, 9, 9\]"):
            serving.seconds(port, prompts, 10)
        with pytest.raises(RuntimeError, match="(?s)429.*come back later"):
            serving.seconds(port, prompts, 7)
    assert not serving.is_ready(port)


def test_a_server_that_does_not_start_is_an_error():
    port = serving.free_port()
    with pytest.raises(RuntimeError, match="(?s)does not serve on port.*no such model"), \
            serving.server([sys.executable, "-c", "raise SystemExit('no such model')"], port):
        pass
