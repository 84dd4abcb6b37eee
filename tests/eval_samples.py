"""The small real samples of ../shared/eval-samples as a folder for --data-dir. Tests only; nothing of it is kept."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from tinyft.files import read_json_lines

SAMPLES = Path(__file__).resolve().parent.parent.parent / "shared" / "eval-samples"


def rows(name: str) -> list[dict]:
    """The rows of one file."""
    return [row for _, row in read_json_lines(SAMPLES / f"{name}.jsonl")]


def _mmlu(subject: str) -> Callable[[str], list[dict]]:
    return lambda name: [row for row in rows(name) if row.get("subject") == subject]


# (folder, part): file, and what is taken of it
LAYOUT: dict[tuple[str, str], tuple[str, Callable[[str], list[dict]]]] = {
    **{(f"cais/mmlu/{subject}", part): (name, _mmlu(subject))
       for subject in ("abstract_algebra", "global_facts") for part, name in (("test", "mmlu"), ("dev", "mmlu_dev"))},
    ("nyu-mll/glue/sst2", "validation"): ("glue_sst2", rows),
    ("nyu-mll/glue/rte", "validation"): ("glue_rte", rows),
    ("nyu-mll/glue/mrpc", "validation"): ("glue_mrpc", rows),
    ("aps/super_glue/boolq", "validation"): ("superglue_boolq_more", rows),
    ("aps/super_glue/copa", "validation"): ("superglue_copa", rows),
    ("SaylorTwift/bbh/boolean_expressions", "test"): ("bbh_boolean_expressions", rows),
    ("SaylorTwift/bbh/object_counting", "test"): ("bbh_object_counting", rows),
    ("SaylorTwift/bbh/web_of_lies", "test"): ("bbh_web_of_lies", rows),
    ("hails/bigbench/crass_ai_zero_shot", "default"): ("bigbench_crass_ai", rows),
    ("hails/bigbench/novel_concepts_zero_shot", "default"): ("bigbench_novel_concepts", rows),
    ("lighteval/squad_v2", "validation"): ("squad_v2", rows),
    ("mandarjoshi/trivia_qa/rc.nocontext", "validation"): ("triviaqa", rows),
    ("EleutherAI/lambada_openai/default", "test"): ("lambada_openai", rows),
    ("Rowan/hellaswag", "validation"): ("hellaswag", rows),
}


def lay_out(folder: Path) -> Path:
    """Write the samples below a folder as their data sets are called."""
    for (place, part), (name, take) in LAYOUT.items():
        target = folder / place / f"{part}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(json.dumps(row) + os.linesep for row in take(name)), encoding="utf-8")
    return folder
