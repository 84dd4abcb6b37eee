"""The public measures by the names that people know them by, and the harness' names for them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One measure. tasks: of the harness. sample: those that the samples in examples/evaluation/ have data for."""

    name: str
    asks: str
    tasks: tuple[str, ...]
    sample: tuple[str, ...] = ()


MEASURES = {measure.name: measure for measure in (
    Measure("mmlu", "questions from school and university, with four answers", ("mmlu",),
            ("mmlu_elementary_mathematics", "mmlu_formal_logic", "mmlu_global_facts", "mmlu_high_school_geography")),
    Measure("glue", "eight questions about sentences", ("glue",),
            ("cola", "mnli", "mnli_mismatch", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli")),
    Measure("superglue", "eight harder ones", ("super-glue-lm-eval-v1",),
            ("boolq", "cb", "copa", "multirc", "record", "sglue_rte", "wic", "wsc")),
    Measure("bigbench", "119 and 167 tasks, by choice and by text",
            ("bigbench_multiple_choice_a", "bigbench_multiple_choice_b", "bigbench_generate_until"),
            ("bigbench_odd_one_out_multiple_choice", "bigbench_strategyqa_multiple_choice",
             "bigbench_simple_arithmetic_json_generate_until", "bigbench_linguistic_mappings_generate_until")),
    Measure("bbh", "BIG-Bench Hard, three examples each, without reasoning", ("bbh_fewshot",),
            ("bbh_fewshot_boolean_expressions", "bbh_fewshot_object_counting", "bbh_fewshot_web_of_lies")),
    Measure("squad", "answers from a text, some of which has none", ("squadv2",), ("squadv2", "squad_completion")),
    Measure("triviaqa", "questions of quiz fans", ("triviaqa",), ("triviaqa",)),
    Measure("humaneval", "Python functions from their descriptions", ("humaneval",), ("humaneval",)),
    Measure("hellaswag", "how a story goes on, with four endings", ("hellaswag",), ("hellaswag",)),
    Measure("lambada", "the last word of a passage", ("lambada_openai",), ("lambada_openai",)),
    Measure("wikitext", "perplexity of articles", ("wikitext",), ("wikitext",)),
)}


def tasks_of(name: str) -> tuple[str, ...]:
    """The harness' tasks of a measure; any other name is one of the harness' own."""
    measure = MEASURES.get(name)
    return measure.tasks if measure else (name,)


def sample_tasks() -> tuple[str, ...]:
    """All tasks that there are samples for."""
    return tuple(task for measure in MEASURES.values() for task in measure.sample)
