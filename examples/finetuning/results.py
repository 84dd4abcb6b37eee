"""What a person sees of a run: the plan before it, the replies and scores after it."""

from pathlib import Path

from tinyft.adapters import is_adapter
from tinyft.data.instructions import show_mask
from tinyft.files import write_json
from tinyft.memory import peak_megabytes
from tinyft.scoring import compare_by_family, score_table, side_by_side

from .data import record


def show_masks(data_lines, training_set, tokenizer) -> None:
    """The report on the data, and three entries with what is learned of them."""
    print(*data_lines, sep="\n", end="\n\n")
    for i in range(min(3, len(training_set))):
        inputs, targets = training_set.collate([i])
        print(show_mask(inputs[0], targets[0], tokenizer), end="\n\n")


def show_plan(options, model, folder, data_lines, sets, tests, settings, threads: int, output: Path, needed) -> None:
    """Say what is about to be done."""
    print(f"model     {folder}: {model.n_parameters() / 1e6:.1f} M parameters, context {model.config.n_positions}")
    print(f"data      {len(sets[0])} entries to train on, {len(sets[1])} to validate"
          + "".join(f", {len(entries)} {title}" for title, entries in tests.items()))
    for line in data_lines:
        print(f"          {line}")
    length = f"{options.epochs} epoch{'s' * (options.epochs != 1)}"
    if options.max_steps:
        length = f"{options.max_steps} step{'s' * (options.max_steps != 1)} at most"
    if options.lora_rank is not None:
        learned = model.n_parameters(trainable=True)
        print(f"adapters  rank {options.lora_rank} on {options.lora_layers}: {learned / 1e6:.2f} M parameters to "
              f"learn, {learned / (model.n_parameters() - learned):.1%} of the model's")
    batches = f"batches of {options.batch_size}"
    if options.batch_tokens:
        batches = f"batches of {options.batch_tokens:,} tokens"
    print(f"training  {length}, {batches}, learning rate {settings.learning_rate:.2g}, "
          f"{threads} thread{'s' * (threads != 1)}")
    for title, line in zip(["memory", *[""] * 9], needed.lines(), strict=False):
        print(f"{title:9} {line}")
    print(f"output    {output}", flush=True)
    if not tests:
        print("no entries to test on: give more data, or --test-data")


def show_results(output: Path, tests, few, before, after) -> None:
    """Replies before and after side by side, and scores; all of both as files."""
    shown = [entry for entries in tests.values() for entry in entries]
    write_json(output / "replies.json", [
        {**record(entry), **({"model_response_before": before[i]} if i in before else {}), "model_response": answer}
        for i, (entry, answer) in enumerate(zip(shown, after, strict=True))])
    if shown:
        print("\n" + side_by_side([shown[i] for i in few], [before[i] for i in few], [after[i] for i in few]))
    if any(entry.family for entry in shown):
        scores = compare_by_family(tests, list(before.values()), after)
        write_json(output / "scores.json", scores)
        print("\nreplies that match exactly\n\n" + score_table(scores))


def show_files(output: Path, tests, *, merged: bool) -> None:
    """Where everything is."""
    entries = [entry for part in tests.values() for entry in part]
    scored = any(entry.family for entry in entries)
    plot = "loss.png" if (output / "loss.png").exists() else "no loss.png (pip install matplotlib)"
    model = "model/ (an adapter: loads in peft)" if is_adapter(output / "model") else \
        "model/ (loads in transformers)"
    model += ", merged/ (base and adapter in one: loads in transformers)" * merged
    print(f"\nsaved to {output}: {model}, replies.json ({len(entries)} replies to review), "
          f"{'scores.json, ' * scored}metrics.jsonl, {plot}\n"
          f"ask it: python examples/generate.py --model {output / 'model'} \"...\"\n"
          f"peak memory {peak_megabytes():.0f} MB")
