"""examples/generate.py as a user runs it: one prompt, files of prompts, conversations."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny import CONTEXT, error_line, example, in_process, make_entries, write_entries

from tinyft import Engine, Turn, load_model_and_tokenizer, no_grad, reply_all
from tinyft.data.prompts import PROMPT_STYLES, encode_prompt
from tinyft.inference.chat import Chat, ContextFull
from tinyft.inference.generate import generate
from tinyft.inference.prompt_files import read_prompts
from tinyft.inference.text import stream_text

SHORT = ("--max-steps", "3", "--batch-size", "4", "--max-new-tokens", "3")
ALPACA = PROMPT_STYLES["alpaca"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_entries(tmp_path_factory.mktemp("data") / "my.json", make_entries(40))


@pytest.fixture(scope="module")
def loaded(model_folder):
    return load_model_and_tokenizer(model_folder)


def ask(model_folder, folder, *options, **more):
    return example("generate.py", "--model", model_folder, *options, cwd=folder, **more)


# ---- one prompt


@pytest.mark.parametrize("options", [["--input", "now", "--prompt-style", "phi3"],
                                     ["--temperature", "0.9", "--top-k", "5", "--top-p", "0.9", "--seed", "3"]])
def test_generate_streams_the_reply(options, model_folder, tmp_path):
    result = example("generate.py", "--model", model_folder, "Say word.", "--max-new-tokens", "12", *options,
                     cwd=tmp_path)
    said = [line for line in result.stderr.splitlines() if "compiling kernels" not in line]
    assert (result.returncode, said) == (0, [])
    model, tokenizer = load_model_and_tokenizer(model_folder)
    style = "phi3" if "phi3" in options else "alpaca"
    turns = (Turn("user", "Say word.", "now" if "--input" in options else ""),)
    sampling = {}
    if "--temperature" in options:
        sampling = dict(temperature=0.9, top_k=5, top_p=0.9, rng=np.random.default_rng(3))
    prompt = encode_prompt(turns, PROMPT_STYLES[style], tokenizer)
    tokens = generate(model, prompt, max_new_tokens=12, stop=tokenizer.eot_token, **sampling)
    assert result.stdout == "".join(stream_text(tokens, tokenizer)) + "\n"


@pytest.mark.heavy
def test_generate_asks_in_the_style_that_the_folder_says(data, model_folder, tmp_path):
    result = example("finetune_alpaca.py", "--model", model_folder, "--data", data, "--output-dir", "mine",
                     "--prompt-style", "phi3", *SHORT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--prompt-style" not in result.stdout, "nobody has to be told"
    asked = [example("generate.py", "--model", "mine/model", "Say word.", "--max-new-tokens", "8", "--stats", *options,
                     cwd=tmp_path) for options in ([], ["--prompt-style", "phi3"], ["--prompt-style", "alpaca"])]
    assert [result.returncode for result in asked] == [0, 0, 0]
    as_said, phi3, alpaca = (int(re.search(r"(\d+) tokens read", result.stderr)[1]) for result in asked)
    assert as_said == phi3 < alpaca and asked[0].stdout == asked[1].stdout


def test_generate_raw_from_standard_input(model_folder, tmp_path):
    result = example("generate.py", "--model", model_folder, "--raw", "-", "--max-new-tokens", "6", "--stats",
                     cwd=tmp_path, stdin="Say größe")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Say größe")
    last = result.stderr.splitlines()[-1]
    assert re.fullmatch(r"\d+ tokens read and the first written in [\d.]+ s, \d+ tokens/s; then [\d.]+ tokens/s", last)


@pytest.mark.parametrize("options, said", [
    (["--top-k", "5"], "--top-k, --top-p and --min-p limit what is drawn from; give a --temperature above 0"),
    (["--samples", "2"], "--samples: without a --temperature above 0 all are the same"),
    (["--chat"], "give one of these: a prompt, --prompts FILE, or --chat"),
    (["--output", "replies.jsonl"], "--output is for the replies to --prompts"),
    (["--logit-bias", "7"], "--logit-bias 7: expected a token's id and a number, such as 50256=-inf"),
    (["--logit-bias", "100000=1"], "logit_bias has the token 100000, expected ids from 0 to"),
    (["--stop", ""], "expected texts of at least one character"),
    (["--top-p", "2", "--temperature", "1"], "--top-p 2.0: expected a share above 0 and at most 1"),
    (["--raw", "--system", "Be brief."], "--raw continues the prompt itself; leave out --system"),
    (["--prompt-style", "vicuna"], "--prompt-style vicuna: expected one of alpaca"),
])
def test_generate_with_options_that_would_do_nothing(options, said, model_folder, monkeypatch, capsys):
    assert said in in_process("generate.py", ["--model", model_folder, "Hi", *options], monkeypatch, capsys)


def test_generate_with_no_model_as_a_program(tmp_path):
    line = error_line(example("generate.py", "--model", "nowhere", "Hello", cwd=tmp_path))
    assert "nowhere: neither a folder nor a model of the Hugging Face hub" in line


@pytest.mark.parametrize("arguments, said", [
    ([""], "the prompt is empty"),
    ([" \n"], "the prompt is empty"),
    (["x" * CONTEXT], f"expected 1 to {CONTEXT - 1}"),
    (["x" * CONTEXT, "--raw"], f"the prompt has {CONTEXT} tokens, expected 1 to {CONTEXT - 1}"),
    (["Hello", "--threads", "1000"], "--threads 1000: this machine gives"),
])
def test_generate_with_what_cannot_be_answered(arguments, said, model_folder, monkeypatch, capsys):
    code = in_process("generate.py", ["--model", model_folder, *arguments], monkeypatch, capsys)
    assert code.startswith("error: ") and said in code and "\n" not in code
    assert capsys.readouterr().out == ""


def test_generate_without_a_prompt(model_folder, tmp_path):
    assert "give one of these: a prompt, --prompts FILE, or --chat" in error_line(ask(model_folder, tmp_path))


def test_a_prompt_that_leaves_no_room(model_folder, tmp_path):
    line = error_line(ask(model_folder, tmp_path, "--raw", "word " * 300))
    assert re.search(r"the prompt has \d+ tokens, expected 1 to 127 for this model's context of 128; shorten it", line)


def test_a_stop_string_ends_the_reply_and_is_not_printed(model_folder, loaded, tmp_path):
    model, tokenizer = loaded
    whole = "".join(stream_text(generate(model, tokenizer.encode("Say word"), max_new_tokens=12), tokenizer))
    stop = whole[4:6]
    result = ask(model_folder, tmp_path, "--raw", "Say word", "--max-new-tokens", "12", "--stop", stop)
    assert result.stdout == "Say word" + whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize("kept_as", ["bfloat16", "int8"])
def test_weights_of_fewer_bits(kept_as, model_folder, loaded, tmp_path):
    model, tokenizer = loaded
    tokens = generate(Engine(model, weights=kept_as), tokenizer.encode("Say word"), max_new_tokens=9)
    result = ask(model_folder, tmp_path, "--raw", "Say word", "--max-new-tokens", "9", "--weights", kept_as)
    assert result.stdout == "Say word" + "".join(stream_text(tokens, tokenizer)) + "\n"


def test_json_has_tokens_and_log_probabilities(model_folder, loaded, tmp_path):
    model, tokenizer = loaded
    result = ask(model_folder, tmp_path, "--raw", "Say word", "--max-new-tokens", "4", "--json")
    found, prompt = json.loads(result.stdout), tokenizer.encode("Say word")
    tokens = list(generate(model, prompt, max_new_tokens=4))
    assert (found["prompt"], found["finish_reason"], found["prompt_tokens"]) == ("Say word", "length", len(prompt))
    assert [token["id"] for token in found["tokens"]] == tokens
    with no_grad():
        logits = model(np.array([*prompt, *tokens])).data[0, len(prompt) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for token, row in zip(found["tokens"], expected, strict=True):
        assert token["logprob"] == pytest.approx(row[token["id"]], abs=1e-4)
        assert token["top"][0]["id"] == token["id"] and len(token["top"]) == 5
        assert [item["logprob"] for item in token["top"]] == pytest.approx(np.sort(row)[:-6:-1].tolist(), abs=1e-4)


def test_samples_differ_and_come_again_with_the_same_seed(model_folder, tmp_path):
    def samples(seed):
        result = ask(model_folder, tmp_path, "--raw", "Say", "--max-new-tokens", "8", "--samples", "3",
                     "--temperature", "1.5", "--seed", seed, "--json")
        return [tuple(token["id"] for token in json.loads(line)["tokens"]) for line in result.stdout.splitlines()]

    first = samples("1")
    assert len(first) == len(set(first)) == 3
    assert samples("1") == first and set(samples("2")).isdisjoint(first)


# ---- a file of prompts


LINES = ['"Say word."', "", '{"instruction": "Say word.", "input": "now", "id": 7}',
         '{"messages": [{"role": "user", "content": "Say größe"}], "x": null}',
         '{"prompt": "Say word.", "system": "S"}']


def test_replies_to_a_file_of_prompts(model_folder, loaded, tmp_path):
    model, tokenizer = loaded
    (tmp_path / "in.jsonl").write_text("\n".join(LINES), encoding="utf-8")
    result = ask(model_folder, tmp_path, "--prompts", "in.jsonl", "--output", "out.jsonl", "--max-new-tokens", "6",
                 "--stats")
    assert result.returncode == 0 and result.stdout == "", result.stderr
    assert re.search(r"4 replies in [\d.]+ s: \d+ tokens of prompts, \d+ of them shared, \d+ new", result.stderr)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = read_prompts(tmp_path / "in.jsonl")
    expected = reply_all(model, tokenizer, [encode_prompt(line.turns, ALPACA, tokenizer) for line in asked],
                         max_new_tokens=6)
    assert [record["reply"] for record in records] == expected
    assert [record | line.record for record, line in zip(records, asked, strict=True)] == records
    on_stdout = ask(model_folder, tmp_path, "--prompts", "in.jsonl", "--max-new-tokens", "6")
    assert on_stdout.stdout == (tmp_path / "out.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("line, said", [
    ("Say word.", "line 2: no JSON"),
    ("[1]", "line 2: [1], expected a text, or an object"),
    ('{"text": "x"}', "line 2: the keys are 'text', expected a text, or an object"),
    ('{"instruction": ""}', "line 2: 'instruction' is '', expected a text"),
    ('{"messages": []}', "line 2: 'messages' is no list of messages"),
    ('{"messages": [{"content": "x"}]}', "line 2: a message has no role"),
    ('{"messages": [{"role": "assistant", "content": "x"}]}', "line 2: the last message is the assistant's"),
    (r'"a\ud800"', "line 2: 'prompt' is not UTF-8 text (character 2)"),
])
def test_a_line_that_asks_nothing(line, said, model_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "in.jsonl").write_text(f'"Say word."\n{line}\n', encoding="utf-8")
    options = ["--model", model_folder, "--prompts", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"]
    assert said in in_process("generate.py", options, monkeypatch, capsys)
    assert not (tmp_path / "out.jsonl").exists()


def test_one_prompt_of_many_leaves_no_room(model_folder, tmp_path):
    (tmp_path / "in.jsonl").write_text(f'"Say word."\n"{"word " * 300}"\n', encoding="utf-8")
    assert "prompt 2: the prompt has" in error_line(ask(model_folder, tmp_path, "--prompts", "in.jsonl"))


# ---- a conversation


def test_chat_answers_with_all_that_was_said(model_folder, loaded, tmp_path):
    model, tokenizer = loaded
    result = ask(model_folder, tmp_path, "--chat", "--max-new-tokens", "5", "--stats",
                 stdin="Say word.\n\nSay größe\n/history\n/help\n/reset\nSay word.\n/quit\nnever\n")
    assert result.returncode == 0, result.stderr
    turns, said = [], []
    for text in ("Say word.", "Say größe"):
        turns.append(Turn("user", text))
        tokens = generate(model, encode_prompt(turns, ALPACA, tokenizer), max_new_tokens=5, stop=tokenizer.stop_tokens)
        said.append("".join(stream_text(tokens, tokenizer)))
        turns.append(Turn("assistant", said[-1].strip()))
    history = "".join(f"{'>' if turn.role == 'user' else ' '} {turn.content}\n" for turn in turns)
    assert result.stdout == f"{said[0]}\n{said[1]}\n{history}{said[0]}\n"
    assert "/reset begins a new conversation" in result.stderr
    known = [int(n) for n in re.findall(r"\((\d+) known\)", result.stderr)]
    assert len(known) == 3 and known[0] == 0 and known[1] > 0 and known[2] > 0


def chat_of(loaded, **options):
    model, tokenizer = loaded
    return Chat(Engine(model, max_rows=1), tokenizer, ALPACA, **options)


def test_a_conversation_that_no_longer_fits(loaded):
    chat = chat_of(loaded, max_new_tokens=8)
    with pytest.raises(ContextFull, match="the conversation has .* tokens, and this model sees at most 128"):
        for _ in range(20):
            list(chat.say("Say word."))
    before = list(chat.turns)
    assert [turn.role for turn in before[:2]] == ["user", "assistant"] and len(before) < 20
    chat.reset()
    assert list(chat.say("Say word.")) and len(chat.turns) == 2


def test_a_conversation_that_forgets(loaded):
    chat = chat_of(loaded, max_new_tokens=8, on_overflow="slide")
    forgotten = []
    for i in range(12):
        list(chat.say(f"Say word {i}."))
        forgotten.append(chat.forgotten)
        assert len(chat.request.prompt) + 8 <= 128
        assert chat.turns[-2] == Turn("user", f"Say word {i}.")
    assert forgotten[0] == 0 and max(forgotten) >= 2
    with pytest.raises(ContextFull, match="the message has .* shorten it"):
        chat.say("word " * 300)
    assert len(chat.turns) >= 2, "what was said stays"


def test_a_reply_cut_short_is_part_of_the_conversation(loaded):
    chat = chat_of(loaded, max_new_tokens=20)
    pieces = chat.say("Say word.")
    first = next(pieces)
    pieces.close()
    assert chat.turns == [Turn("user", "Say word."), Turn("assistant", first.strip())]
    assert chat.request.finish_reason == "cancelled"


def test_chat_refuses_another_way_of_overflowing(loaded):
    with pytest.raises(ValueError, match="on_overflow is 'forget', expected 'error' or 'slide'"):
        chat_of(loaded, on_overflow="forget")
