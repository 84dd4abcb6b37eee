"""tinyft in the harness beside the harness' own model on PyTorch: the same answers, item by item."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
from small import GPT2_TOKENIZER, WHY_NO_GPT2_TOKENIZER, make_model
from test_referee import MISSING

pytestmark = [pytest.mark.referee, pytest.mark.harness, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
pytest.importorskip("lm_eval", reason="needs pip install '.[evaluate]'")
pytest.importorskip("torch", reason="no referee: pip install '.[referees]'")

import eval_samples  # noqa: E402 - what stands above may skip all this
from lm_eval.models.huggingface import HFLM  # noqa: E402

from tinyft import load_engine, load_tokenizer, save_model  # noqa: E402
from tinyft.evaluation import harness  # noqa: E402
from tinyft.evaluation.lm_eval import TinyftLM  # noqa: E402
from tinyft.evaluation.measures import sample_tasks  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
OURS = ROOT / "examples" / "evaluation" / "samples"
TASKS = ["mmlu_abstract_algebra", "mmlu_global_facts", "sst2", "rte", "mrpc", "boolq", "copa", "hellaswag",
         "bbh_fewshot_boolean_expressions", "bbh_fewshot_object_counting", "bbh_fewshot_web_of_lies",
         "bigbench_crass_ai_multiple_choice", "bigbench_novel_concepts_multiple_choice", "squadv2", "triviaqa",
         "lambada_openai"]
NATS = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random GPT-2 with the real one's tokens and context; sharper than at the start of a training, so that choices
    are no matter of rounding."""
    if not GPT2_TOKENIZER.is_dir():
        pytest.skip(WHY_NO_GPT2_TOKENIZER)
    model = make_model(seed=3, vocab_size=50257, n_positions=1024, n_embd=48, n_layer=2, n_head=4, scale=0.3)
    folder = tmp_path_factory.mktemp("gpt2")
    save_model(model, load_tokenizer(GPT2_TOKENIZER), folder)
    return folder


@pytest.fixture(scope="module")
def both(folder):
    return TinyftLM(*load_engine(folder)), HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)


def answers(model, tasks, options):
    manager, names = harness.find_tasks(tasks)
    return harness.run_tasks(model, names, manager, options)


def assert_same(ours, theirs, tasks):
    for task in tasks:
        assert len(ours["samples"][task]) == len(theirs["samples"][task]) > 0
        for one, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert one["arguments"] == other["arguments"], task
            for mine, yours in zip(one["resps"], other["resps"], strict=True):
                assert_same_answer(mine[0], yours[0], f"{task}, item {one['doc_id']}")
        for name, value in theirs["results"][task].items():
            if isinstance(value, float):
                assert ours["results"][task][name] == pytest.approx(value, rel=1e-3, nan_ok=True), (task, name)


def assert_same_answer(mine, yours, where):
    if isinstance(yours, str):
        assert mine == yours, where
    elif isinstance(yours, float):
        assert mine == pytest.approx(yours, abs=NATS), where
    else:
        assert mine[0] == pytest.approx(yours[0], abs=NATS), where
        assert mine[1] == yours[1], where


@pytest.mark.skipif(not eval_samples.SAMPLES.is_dir(), reason=f"{eval_samples.SAMPLES} is not there")
@pytest.mark.parametrize("num_fewshot", [None, 5], ids=["no examples", "five examples"])
def test_public_samples(both, tmp_path, num_fewshot):
    tasks = TASKS if num_fewshot is None else ["mmlu_abstract_algebra", "mmlu_global_facts"]
    options = harness.Options(data_dir=eval_samples.lay_out(tmp_path), num_fewshot=num_fewshot, limit=20)
    assert_same(*(answers(model, tasks, options) for model in both), tasks)


def test_our_samples(both):
    tasks = [task for task in sample_tasks() if task != "humaneval"]
    options = harness.Options(data_dir=OURS, limit=6)
    assert_same(*(answers(model, tasks, options) for model in both), tasks)
