"""What weights of fewer bits cost: perplexity, and how often the likeliest token stays the same."""

from pathlib import Path

import numpy as np

from tinyft import Engine, load_model_and_tokenizer, read_entries
from tinyft.inference.scores import score_text

from .timing import Table

ROOT = Path(__file__).resolve().parents[2]


def measure(table: Table) -> None:
    """The small model that ships, on the questions and replies of its test entries, as one text."""
    model, tokenizer = load_model_and_tokenizer(ROOT / "weights" / "tiny-world")
    entries = read_entries(ROOT / "examples" / "data" / "test_items.json", {}, None)
    text = "\n".join(f"{entry.instruction} {entry.input} {entry.output}".replace("  ", " ") for entry in entries)
    tokens = tokenizer.encode(text)
    table.title("quality", f"weights of fewer bits: the small model on {len(tokens)} tokens of its test entries",
                "same: places where the likeliest token is the same as in float32")
    exact = None
    for kept_as in ("float32", "bfloat16", "int8"):
        engine = Engine(model, weights=kept_as)
        score = score_text(engine, tokens, what=f"perplexity in {kept_as}")
        exact = exact or score
        table.add(kept_as, "", perplexity=score.perplexity, of_float32=score.perplexity / exact.perplexity,
                  same=float(np.mean(score.likeliest == exact.likeliest)), weights_MB=engine.weight_bytes / 1e6)
