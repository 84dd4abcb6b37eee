"""HELM, OpenAI Evals and AlpacaEval: files and scripts for them, and runs of the real ones where they are installed.

The runs need an environment for each, named by a variable: TINYFT_HELM_ENV, TINYFT_EVALS_ENV, TINYFT_ALPACA_ENV. A
folder that doesn't exist yet is made, which takes a minute and pip's index.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from scripted_endpoint import Answer, scripted
from tiny import CONTEXT, EXAMPLES, ROOT

from tinyft import ask, load_engine
from tinyft.files import read_json, read_json_lines
from tinyft.inference.scores import log_probabilities

EVALUATION = EXAMPLES / "evaluation"
sys.path.insert(0, str(EVALUATION))
import external  # noqa: E402 - found in the folder above
import run_alpaca_eval  # noqa: E402
import run_evals  # noqa: E402
import run_helm  # noqa: E402

sys.path.remove(str(EVALUATION))  # its folders are called as packages are

WORLD = ROOT / "weights" / "tiny-world"
NEEDS_YAML = "needs pip install pyyaml"
NEEDS_SERVER = "needs pip install '.[serve]'"


# ---- files that ship


def read_questions(part: str) -> list[list[str]]:
    path = EVALUATION / "helm" / "data" / part / f"simple_facts_{part}.csv"
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_questions_for_helm_have_one_right_answer_of_four():
    test, dev = read_questions("test"), read_questions("dev")
    for question, *answers, letter in test + dev:
        assert question.endswith("?") and len(set(answers)) == 4 and all(answers) and letter in "ABCD"
    questions = [row[0] for row in test + dev]
    assert len(set(questions)) == len(questions) and len(dev) == 5
    assert {sum(row[-1] == letter for row in test) for letter in "ABCD"} == {4}  # one letter for all is worth a quarter
    assert run_helm.find_subjects(EVALUATION / "helm" / "data", None) == ["simple_facts"]


def test_files_for_helm_belong_together(model_folder, tmp_path, monkeypatch):
    yaml = pytest.importorskip("yaml", reason=NEEDS_YAML)
    monkeypatch.setattr(run_helm, "served_models", lambda url: [{"id": "mine", "max_model_len": CONTEXT}])
    run_helm.configure(tmp_path, model_folder, "mine", "http://127.0.0.1:1/v1")
    names = ("model_deployments", "models", "tokenizer_configs")
    files = ("model_deployments.yaml", "model_metadata.yaml", "tokenizer_configs.yaml")
    [deployment], [model], [tokenizer] = (yaml.safe_load((tmp_path / file).read_text())[name]
                                          for file, name in zip(files, names, strict=True))
    assert deployment["model_name"] == model["name"] == "tinyft/mine"
    assert deployment["tokenizer_name"] == tokenizer["name"]
    assert deployment["max_sequence_length"] == CONTEXT
    assert deployment["client_spec"]["args"] == {"base_url": "http://127.0.0.1:1/v1", "api_key": "none",
                                                 "openai_model_name": "mine"}
    assert tokenizer["tokenizer_spec"]["args"]["pretrained_model_name_or_path"] == str(model_folder)
    assert tokenizer["end_of_text_token"] == "<|endoftext|>"


def test_registry_for_evals_is_whole():
    yaml = pytest.importorskip("yaml", reason=NEEDS_YAML)
    registry = EVALUATION / "evals" / "registry"
    specs = yaml.safe_load((registry / "evals" / "tinyft.yaml").read_text())
    for name in ("tinyft-facts", "tinyft-facts-includes"):
        spec = specs[specs[name]["id"]]
        assert re.fullmatch(name + r"\.\w+\.\w+", specs[name]["id"])
        assert spec["class"].startswith("evals.elsuite.basic.")
        samples = [sample for _, sample in read_json_lines(registry / "data" / spec["args"]["samples_jsonl"])]
        assert len(samples) == len({sample["input"][0]["content"] for sample in samples}) == 16
        assert all(message["role"] == "user" for sample in samples for message in sample["input"])
        assert all(isinstance(text, str) and text for sample in samples for text in sample["ideal"])
    [(name, function)] = yaml.safe_load((registry / "completion_fns" / "tinyft.yaml").read_text()).items()
    module, _, function_class = function["class"].partition(":")
    tree = ast.parse((EVALUATION / "evals" / f"{module}.py").read_text())
    assert function_class in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert name == f"{run_evals.SERVED_AS}-chat" and function["args"]["model"] == run_evals.SERVED_AS


@pytest.mark.parametrize(("said", "verdict"), [
    ("1", 1), ("2", 2), (" 2.\n", 2), ("**1**", 1), ("Answer 2", 2), ("[Answer 1]", 1), ("The better answer is 2.", 2),
    ("My verdict: 1", 1), ("(2)", 2), ("12", None), ("Both are good.", None), ("neither 1 nor 2", None), ("", None),
    ("1 and 2 are equally good", None), ("Answer 1 is worse", None), ("1 is worse than 2", None), ("1, not 2", None),
    ("Answer 2 is better", None), ("1\n\nIt is short.", 1), ("2\nNo, 1", None), ("1 or\n", None), ("1\n2", None)])
def test_verdicts_of_a_judge_are_understood(said, verdict, tmp_path):
    yaml = pytest.importorskip("yaml", reason=NEEDS_YAML)
    run_alpaca_eval.configure(tmp_path, "llama3.1:8b")
    [(name, config)] = yaml.safe_load((tmp_path / "configs.yaml").read_text()).items()
    assert name == config["completions_kwargs"]["model_name"] == "llama3.1:8b"
    patterns = config["completion_parser_kwargs"]["outputs_to_match"]
    found = [place for place, pattern in patterns.items() if re.search(pattern, said)]
    assert found == ([] if verdict is None else [verdict])


ANSWERS = re.compile(r"\[Answer 1\]\n(.*)\n\n\[Answer 2\]\n(.*)\n\n\[End of the answers\]", re.DOTALL)


def longer(body: dict, number: int) -> Answer:
    """A judge's reply: the longer answer is the better one, and of two as long neither."""
    first, second = map(len, ANSWERS.search(body["messages"][-1]["content"]).groups())
    said = "1" if first > second else "2" if first < second else "neither"
    return Answer(json.dumps({
        "id": "judged", "object": "chat.completion", "created": 0, "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}).encode())


def test_a_judge_is_shown_both_answers():
    prompt = (EVALUATION / "alpaca_eval" / "annotator" / "prompt.txt").read_text()
    filled = prompt.format(instruction="Say a.", output_1="aaa", output_2="a\n\na")
    assert filled.startswith("<|im_start|>system\n") and filled.rstrip().endswith("<|im_end|>")
    assert ANSWERS.search(filled).groups() == ("aaa", "a\n\na") and "Say a." in filled


# ---- what the scripts share


@pytest.fixture
def installed(monkeypatch) -> list[list[str]]:
    """The commands that make an environment, noted instead of run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(external, "run_logged", lambda command, log: commands.append([str(part) for part in command]))
    return commands


@pytest.fixture
def some_harness(tmp_path) -> external.Harness:
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "requirements.txt").write_text("numpy\n")
    return external.Harness("some-harness==1.0", folder)


def test_an_environment_is_made_once_and_again_when_its_needs_change(some_harness, installed, tmp_path, capsys):
    folder = tmp_path / "a" / "b"
    commands = external.make_environment(some_harness, folder)
    assert [command[1:3] for command in installed] == [["-m", "venv"], ["-m", "pip"], ["-m", "pip"]]
    assert installed[1][-2:] == ["-r", str(some_harness.requirements)]
    assert installed[2][-2:] == ["--no-deps", "some-harness==1.0"]
    assert commands.parent == folder and str(folder) in capsys.readouterr().out
    assert external.make_environment(some_harness, folder) == commands and len(installed) == 3
    some_harness.requirements.write_text("numpy\nscipy\n")
    external.make_environment(some_harness, folder)
    assert len(installed) == 6


def test_an_environment_that_was_interrupted_is_finished(some_harness, installed, tmp_path, monkeypatch):
    folder = tmp_path / "env"

    def interrupted(command, log):
        log.write_text("half a")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(external, "run_logged", interrupted)
        with pytest.raises(KeyboardInterrupt):
            external.make_environment(some_harness, folder)
    external.make_environment(some_harness, folder)
    assert len(installed) == 3


def test_a_folder_with_something_else_is_left_alone(some_harness, installed, tmp_path):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="no environment with some-harness; name a folder that doesn't exist"):
        external.make_environment(some_harness, tmp_path / "env")
    assert installed == [] and [path.name for path in (tmp_path / "env").iterdir()] == ["thesis.txt"]


def test_a_command_that_fails_says_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    code = "import os, sys; print('first'); print(os.environ.get('PYTHONPATH')); sys.exit('last words')"
    with pytest.raises(ValueError, match="exit status 1; .*words.log ends with: last words$"):
        external.run_logged([sys.executable, "-c", code], tmp_path / "words.log")
    assert (tmp_path / "words.log").read_text().split("\n")[:2] == ["first", "None"]


def test_values_are_filled_in_as_yaml(tmp_path):
    yaml = pytest.importorskip("yaml", reason=NEEDS_YAML)
    (tmp_path / "a.yaml").write_text("folder: $folder\ncontext: $context\n")
    odd = 'a: "b" # $c \\ ü'
    external.fill_in(tmp_path / "a.yaml", tmp_path / "b.yaml", folder=odd, context=7)
    assert yaml.safe_load((tmp_path / "b.yaml").read_text(encoding="utf-8")) == {"folder": odd, "context": 7}
    with pytest.raises(ValueError, match=r"a.yaml: there is no value for \$context; expected folder"):
        external.fill_in(tmp_path / "a.yaml", tmp_path / "b.yaml", folder=odd)


def test_table():
    assert external.table(["name", "n"], [["a", 1], ["longer", 12.5]]) == (
        "name       n\n------------\na          1\nlonger  12.5")


def test_names_are_safe_for_harnesses():
    assert [external.safe_name(name) for name in ("a.b_c-1", "owner/name:8b, x", "///")] == [
        "a.b_c-1", "owner-name-8b-x", "model"]


def is_open(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{url}/models", timeout=5).read())
    except OSError:
        return False


def test_a_model_is_served_until_the_block_ends(model_folder, tmp_path, monkeypatch):
    pytest.importorskip("uvicorn", reason=NEEDS_SERVER)
    pytest.importorskip("starlette", reason=NEEDS_SERVER)
    monkeypatch.setenv("TINYFT_API_KEY", "secret")  # of a server that others reach
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), external.serving(model_folder, "mine", tmp_path / "log", threads=1) as url:
        [model] = external.served_models(url)
        assert (model["id"], model["max_model_len"]) == ("mine", CONTEXT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert not is_open(url) and signal.getsignal(signal.SIGTERM) is handler
    with pytest.raises(ValueError, match="no server in OpenAI's protocol answers there"):
        external.served_models(url)


@pytest.mark.parametrize(("listed", "said"), [
    (b'{"data": []}', "the server lists no model"), (b'{"data": null}', "no server in OpenAI's protocol"),
    (b'{"data": 3}', "no server"), (b'{"data": {"id": "x"}}', "no server"), (b'{"data": ["x"]}', "no server"),
    (b'{"data": [{}]}', "no server"), (b"[]", "no server"), (b'{"data": [{"id": 3}]}', "lists no model"),
    (b"[" * 100_000, "no server"), (b"\xff", "no server")])
def test_servers_that_list_no_models(listed, said, monkeypatch):
    with scripted(lambda body, number: None) as (url, server):
        monkeypatch.setattr(server, "list_of_models", lambda path: Answer(listed))
        with pytest.raises(ValueError, match=said) as caught:
            external.served_models(f"{url}/v1")
    assert "\n" not in str(caught.value)


def test_a_key_that_cannot_be_sent_is_not_shown():
    with pytest.raises(ValueError, match="the API key has signs") as caught:
        external.served_models("http://127.0.0.1:1/v1", "sk-secret\nx")
    assert "secret" not in str(caught.value)


def test_the_key_is_not_sent_where_a_server_redirects_to(monkeypatch):
    with scripted(lambda body, number: None) as (other, thief), scripted(lambda body, number: None) as (url, server):
        for status in (301, 302, 303, 307, 308):
            monkeypatch.setattr(server, "list_of_models",
                                lambda path: Answer(b"", status, {"Location": f"{other}/v1/models"}))  # noqa: B023
            with pytest.raises(ValueError, match=f"no server in OpenAI's protocol answers there .*{status}"):
                external.served_models(f"{url}/v1", "sk-secret")
        assert server.paths == ["/v1/models"] * 5 and thief.paths == []


def test_proxies_are_for_other_machines(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    found = external.client_environment("http://127.0.0.1:8000/v1")
    assert found["NO_PROXY"] == "example.org,127.0.0.1,localhost,::1" and found["no_proxy"] == "127.0.0.1,localhost,::1"
    found = external.client_environment("http://judge.invalid/v1", more="x")
    assert found["NO_PROXY"] == "example.org" and "no_proxy" not in found and found["more"] == "x"
    with scripted(lambda body, number: None) as (proxy, server):
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy)
        with pytest.raises(ValueError, match="judge.invalid"):
            external.served_models("http://judge.invalid/v1")
        assert server.paths == ["http://judge.invalid/v1/models"]
        assert external.served_models(f"{proxy}/v1") == [{"id": "judge"}] and server.paths[1:] == ["/v1/models"]


def test_a_server_that_cannot_start_says_why(tmp_path, monkeypatch):
    pytest.importorskip("uvicorn", reason=NEEDS_SERVER)
    pytest.importorskip("starlette", reason=NEEDS_SERVER)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="did not start: .*config.json") as caught:
        with external.serving(tmp_path / "empty", "mine", tmp_path / "log"):
            pass
    assert "error:" not in str(caught.value)


# ---- what the scripts read and write


def test_subjects_that_are_missing_are_named(tmp_path):
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="there is no test/SUBJECT_test.csv"):
        run_helm.find_subjects(tmp_path, None)
    for name in ("b", "a"):
        (tmp_path / "test" / f"{name}_test.csv").touch()
    assert run_helm.find_subjects(tmp_path, None) == ["a", "b"]
    assert run_helm.find_subjects(tmp_path, ["b"]) == ["b"]
    with pytest.raises(ValueError, match="there is no test/c_test.csv"):
        run_helm.find_subjects(tmp_path, ["a", "c"])


def test_questions_are_linked_to_and_none_is_lost(tmp_path):
    link = tmp_path / "out" / "scenarios" / "mmlu" / "data"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        run_helm.lay_out_data(tmp_path / name, tmp_path / "out")
        assert (link / "file").read_text() == name
    assert (tmp_path / "first" / "file").read_text() == "first"
    link.unlink()
    link.mkdir()
    with pytest.raises(ValueError, match="HELM's own questions are there; choose another --output-dir"):
        run_helm.lay_out_data(tmp_path / "first", tmp_path / "out")


def test_helms_tables_become_one(tmp_path):
    def part(title, *rows):
        header = ["Model", "EM", "seconds", "# eval", "# train", "# prompt tokens"]
        return {"title": title, "header": [{"value": name} for name in header],
                "rows": [[{"value": value} for value in row] for row in rows]}

    for method, exact in (("letters", 0.25), ("answers", 0.75)):
        folder = tmp_path / "runs" / method / "groups"
        folder.mkdir(parents=True)
        (folder / "mmlu.json").write_text(json.dumps([
            part("Massive Multitask Language Understanding (MMLU) All Subjects", ["tinyft/old", exact, 1, None, 5, 9]),
            part("subject: facts", ["mine", exact, 1, 16, 5, 240.375])]))
    lines = run_helm.results(tmp_path, ["letters", "answers"]).splitlines()
    assert [" ".join(line.split()) for line in lines[2:]] == [
        "old mean of all letters 0.25 5 9", "mine facts letters 0.25 16 5 240.4",
        "old mean of all answers 0.75 5 9", "mine facts answers 0.75 16 5 240.4"]


def test_earlier_runs_of_the_same_model_are_forgotten(tmp_path):
    suite = tmp_path / "runs" / "letters"
    run_helm.forget_runs(suite, "mine")
    kept = ["mmlu:subject=a,method=x,model=tinyft_mine-2", "mmlu:subject=a,method=x,model=other_mine", "groups",
            "other:subject=a,model=tinyft_mine"]
    for name in [*kept, "mmlu:subject=a,method=x,model=tinyft_mine", "mmlu:model=tinyft_mine,subject=b"]:
        (suite / name).mkdir(parents=True)
        (suite / name / "stats.json").write_text("[]")
    run_helm.forget_runs(suite, "mine")
    assert sorted(path.name for path in suite.iterdir()) == sorted(kept)
    assert all((suite / name / "stats.json").exists() for name in kept)


def test_two_files_of_samples_need_two_names(tmp_path):
    for name in ("a.jsonl", "b/a.jsonl", "tinyft-facts.jsonl", "tinyft-facts.test.v1.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"input": "a", "ideal": "b"}\n')
    with pytest.raises(ValueError, match="b/a.jsonl: the name of its eval, a, is another file's; rename the file"):
        run_evals.register([tmp_path / "a.jsonl", tmp_path / "b" / "a.jsonl"], tmp_path / "registry")
    for name in ("tinyft-facts", "tinyft-facts.test.v1"):
        with pytest.raises(ValueError, match=f"{name}, is also that of an eval in evals/registry"):
            run_evals.register([tmp_path / f"{name}.jsonl"], tmp_path / "registry")
    assert not (tmp_path / "registry").exists()


def test_samples_of_ones_own_are_registered(tmp_path):
    yaml = pytest.importorskip("yaml", reason=NEEDS_YAML)
    path = tmp_path / "my samples.jsonl"
    path.write_text('{"input": "a", "ideal": "b"}\n')
    assert run_evals.register([path], tmp_path / "registry") == ["my-samples"]
    specs = yaml.safe_load((tmp_path / "registry" / "evals" / "own.yaml").read_text())
    assert specs[specs["my-samples"]["id"]]["args"]["samples_jsonl"] == str(path)
    assert run_evals.register([], tmp_path / "registry") == []
    path.write_text('{"input": "a", "ideal": "b"}\n{"input": "a"}\n')
    with pytest.raises(ValueError, match="line 2: expected an object with input and ideal"):
        run_evals.register([path], tmp_path / "registry")


def test_a_final_report_is_read(tmp_path):
    record = tmp_path / "record.jsonl"
    events = [{"sample_id": f"a.b.{i}", "type": kind} for i in range(3) for kind in ("sampling", "match")]
    events.append({"sample_id": "a.b.3", "type": "sampling"})  # never judged
    final = {"final_report": {"accuracy": 1 / 3, "boostrap_std": 0.25, "usage_completion_tokens": 1234}}
    record.write_text("\n".join(map(json.dumps, [{"spec": {}}, final, *events])))
    assert run_evals.report(record) == ["3", "33.3%", "25.0%", "1,234"]
    record.write_text("\n".join(map(json.dumps, [{"final_report": {"accuracy": 0.5}}, *events])))
    assert run_evals.report(record) == ["3", "50.0%", "", ""]
    record.write_text(json.dumps({"final_report": {"score": 1}}))
    with pytest.raises(ValueError, match="no final report with an accuracy"):
        run_evals.report(record)


def write_outputs(path: Path, replies: dict[str, str], generator: str) -> Path:
    path.write_text(json.dumps([{"instruction": name, "output": reply, "generator": generator}
                                for name, reply in replies.items()]))
    return path


def test_outputs_must_answer_the_same(tmp_path):
    mine = write_outputs(tmp_path / "mine.json", {"a": "1", "b": "2"}, "mine")
    assert run_alpaca_eval.count_shared(mine, write_outputs(tmp_path / "x.json", {"b": "1", "c": "2"}, "x")) == 1
    with pytest.raises(ValueError, match="no instruction in common"):
        run_alpaca_eval.count_shared(mine, write_outputs(tmp_path / "x.json", {"c": "2"}, "x"))
    (tmp_path / "x.json").write_text('[{"instruction": "a", "output": "b"}, {"instruction": "a"}]')
    with pytest.raises(ValueError, match="x.json, entry 2: output is missing or no text"):
        run_alpaca_eval.count_shared(mine, tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"instruction": "a"}')
    with pytest.raises(ValueError, match="x.json: expected a list of objects"):
        run_alpaca_eval.count_shared(mine, tmp_path / "x.json")


def test_verdicts_of_different_judges_are_kept_apart(tmp_path):
    run_alpaca_eval.configure(tmp_path, "llama3.1:8b")
    name = run_alpaca_eval.verdicts_name("llama3.1:8b", "http://127.0.0.1:11434/v1", tmp_path)
    assert re.fullmatch(r"verdicts-llama3\.1-8b-[0-9a-f]{8}\.json", name)
    assert run_alpaca_eval.verdicts_name("llama3.1:8b", "http://127.0.0.1:11434/v1/", tmp_path) == name
    names = {name, run_alpaca_eval.verdicts_name("llama3.1-8b", "http://127.0.0.1:11434/v1", tmp_path),
             run_alpaca_eval.verdicts_name("llama3.1:8b", "http://127.0.0.1:8000/v1", tmp_path)}
    for file in ("prompt.txt", "configs.yaml"):
        with open(tmp_path / file, "a", encoding="utf-8") as text:
            text.write("# more\n")
        names.add(run_alpaca_eval.verdicts_name("llama3.1:8b", "http://127.0.0.1:11434/v1", tmp_path))
    assert len(names) == 5


@pytest.mark.parametrize(("judge", "options", "key"), [
    ("http://127.0.0.1:1/v1/", [], "sk-mine"), ("http://judge.invalid/v1", [], "none"),
    ("https://judge.invalid/v1", [], "sk-mine"), ("http://judge.invalid/v1", ["--api-key", "sk-given"], "sk-given")])
def test_the_key_of_the_environment_stays_on_this_machine(judge, options, key, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.setattr(sys, "argv", ["x", "out.json", "--reference", "other.json", "--judge", judge, *options])
    with run_alpaca_eval.judge_at(run_alpaca_eval.parse_arguments(), tmp_path) as found:
        assert found == (judge.rstrip("/"), key)
    assert ("OPENAI_API_KEY isn't sent" in capsys.readouterr().out) == (key == "none")


@pytest.mark.parametrize(("options", "pairs"), [([], 3), (["--max-instructions", "2"], 2),
                                                (["--max-instructions", "9"], 3)])
def test_no_more_pairs_are_said_than_are_judged(options, pairs, tmp_path, monkeypatch, capsys):
    files = [write_outputs(tmp_path / f"{name}.json", dict.fromkeys("abc", name), name) for name in ("mine", "other")]
    monkeypatch.setattr(run_alpaca_eval, "make_environment", lambda *arguments: tmp_path)
    monkeypatch.setattr(run_alpaca_eval, "run_logged", lambda *arguments: None)
    monkeypatch.setattr(run_alpaca_eval, "results", lambda output: "")
    monkeypatch.setattr(sys, "argv", ["x", str(files[0]), "--reference", str(files[1]), "--judge", "http://127.0.0.1:1/v1",
                                      "--judge-model", "m", "--output-dir", str(tmp_path / "out"), *options])
    run_alpaca_eval.main()
    assert f"judging   {pairs} pairs by m;" in capsys.readouterr().out


def test_a_leaderboard_is_read(tmp_path):
    (tmp_path / "leaderboard.csv").write_text(
        ",win_rate,standard_error,mode,avg_length,n_wins,n_wins_base,n_draws,n_total\nmine,62.5,11.4,community,39,2,1,1,4\n")
    (tmp_path / "annotations.json").write_text(json.dumps([{"preference": p} for p in (2, 2, 1, 1.5, None)]))
    assert run_alpaca_eval.results(tmp_path).splitlines()[2].split() == [
        "mine", "62.5%", "11.4%", "2", "1", "1", "1", "39"]


@pytest.mark.parametrize(("preferences", "fails"), [([-1, -1], True), ([None], True), ([-1, 2], False), ([], False)])
def test_a_judge_that_never_decides_is_named(preferences, fails, tmp_path):
    (tmp_path / "verdicts.json").write_text(json.dumps([{"preference": value} for value in preferences]))
    if fails:
        with pytest.raises(ValueError, match="poet decided no pair"):
            run_alpaca_eval.check_verdicts(tmp_path / "verdicts.json", "poet")
    else:
        run_alpaca_eval.check_verdicts(tmp_path / "verdicts.json", "poet")
    run_alpaca_eval.check_verdicts(tmp_path / "none.json", "poet")


# ---- the real ones


def environment(variable: str) -> str:
    """The environment that a variable names; skips where there is none."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"needs {variable}, the folder of an environment, which is made if it doesn't exist")
    return folder


def run_script(script: str, *arguments: object) -> list[list[str]]:
    """Run one of the scripts; the rows of the table that it prints last."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    done = subprocess.run([sys.executable, str(EVALUATION / script), *map(str, arguments)], capture_output=True,
                          text=True, timeout=900, env=kept | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    for url in re.findall(r"http://127\.0\.0\.1:\d+", done.stdout):
        assert not is_open(f"{url}/v1")
    return [re.split(r" {2,}", line.strip()) for line in done.stdout.partition("\n\n")[2].splitlines()[2:]]


@pytest.mark.harness
def test_helm_sees_the_models_own_log_probabilities(tmp_path):
    rows = run_script("run_helm.py", WORLD, "--environment", environment("TINYFT_HELM_ENV"), "--output-dir", tmp_path)
    assert [row[:3] for row in rows] == [["tiny-world", "simple_facts", method] for method in ("letters", "answers")]
    assert [row[4] for row in rows] == ["16", "16"] and [row[5] for row in rows] == ["5", "0"]
    engine, tokenizer = load_engine(WORLD)

    def mean_log_probability(question: str, answer: str) -> float:
        scored = log_probabilities(engine, tokenizer.encode(question), tokenizer.encode(f" {answer}"))
        return float(np.mean([token.logprob for token in scored]))

    right = sum(int(np.argmax([mean_log_probability(question, answer) for answer in answers])) == "ABCD".index(letter)
                for question, *answers, letter in read_questions("test"))
    assert float(rows[1][3]) == right / 16
    [state] = tmp_path.glob("runs/answers/mmlu*/scenario_state.json")
    for request in read_json(state)["request_states"][:8]:
        ids = tokenizer.encode(request["request"]["prompt"])
        expected = sum(token.logprob for token in log_probabilities(engine, ids[:1], ids[1:]))
        assert request["result"]["completions"][0]["logprob"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.harness
def test_evals_sees_the_models_own_replies(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"input": "What is the capital of France?", "ideal": "Rome"}\n')
    rows = run_script("run_evals.py", WORLD, "--environment", environment("TINYFT_EVALS_ENV"), "--output-dir", tmp_path,
                      "--samples", tmp_path / "own.jsonl")
    assert [row[:2] for row in rows] == [["tinyft-facts", "16"], ["tinyft-facts-includes", "16"], ["own", "1"]]
    engine, tokenizer = load_engine(WORLD)
    path = EVALUATION / "evals" / "registry" / "data" / "tinyft" / "facts.jsonl"
    ideal = {sample["input"][0]["content"]: sample["ideal"] for _, sample in read_json_lines(path)}
    events = [event for _, event in read_json_lines(tmp_path / "records" / "tinyft-facts.jsonl")]
    replies = {event["data"]["prompt"][0]["content"]: event["data"]["sampled"][0]
               for event in events if event.get("type") == "sampling"}
    assert replies.keys() == ideal.keys()
    for question in list(ideal)[:3]:
        assert replies[question].startswith(ask(engine, tokenizer, question, max_new_tokens=40))
    begins = sum(reply.startswith(tuple(ideal[question])) for question, reply in replies.items())
    contains = sum(any(text.lower() in reply.lower() for text in ideal[question])
                   for question, reply in replies.items())
    assert [row[2] for row in rows] == [f"{begins / 16:.1%}", f"{contains / 16:.1%}", "0.0%"]


@pytest.mark.harness
def test_alpaca_eval_ranks_as_the_judge_says(tmp_path):
    where = "--environment", environment("TINYFT_ALPACA_ENV"), "--output-dir", tmp_path / "out"
    mine = {f"Say {x}.": x * n for x, n in zip("abcdefgh", (5, 5, 5, 5, 5, 1, 3, 4), strict=True)}
    other = {f"Say {x}.": x * n for x, n in zip("abcdefgh", (3, 3, 3, 3, 3, 3, 3, 3), strict=True)} | {"Say h.": "HHHH"}
    files = (write_outputs(tmp_path / "mine.json", mine, "mine"), "--reference",
             write_outputs(tmp_path / "other.json", other, "other"), *where)
    with scripted(longer, models=("length-judge",)) as (url, judge):
        [row] = run_script("run_alpaca_eval.py", *files, "--judge", f"{url}/v1")
        assert len(judge.bodies) == 7
        assert run_script("run_alpaca_eval.py", *files, "--judge", f"{url}/v1") == [row]  # verdicts are kept
    # Five longer, one shorter, one the same, and one as long, on which the judge doesn't decide.
    assert row[:2] == ["mine", f"{100 * 5.5 / 7:.1f}%"] and row[3:7] == ["5", "1", "1", "1"]
    assert len(judge.bodies) == 7 and all(body["temperature"] == 0 for body in judge.bodies)
    places = {ANSWERS.search(body["messages"][-1]["content"])[1] in mine.values() for body in judge.bodies}
    assert places == {True, False}  # each model stands first now and then
    for pair in read_json(tmp_path / "out" / "annotations.json"):
        difference = len(pair["output_2"]) - len(pair["output_1"])
        same = 1.5 if pair["output_1"] == pair["output_2"] else None
        assert pair["preference"] == (same if difference == 0 else 2 if difference > 0 else 1)
    with scripted(longer, models=("length-judge",)) as (url, judge):  # but not for a judge somewhere else
        assert run_script("run_alpaca_eval.py", *files, "--judge", f"{url}/v1") == [row] and len(judge.bodies) == 7
