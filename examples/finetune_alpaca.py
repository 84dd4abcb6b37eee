"""Fine-tune GPT-2 on instructions, and see what it learned.

With nothing else, tunes the small model in weights/ on the instructions in examples/data/. Prints replies
before and after side by side, stops when the validation loss turns, keeps the best weights, and leaves in
the output folder: model/ (loads in transformers), replies.json (every test entry with the model's reply, for
you to review), scores.json, metrics.jsonl, loss.png.
"""

import textwrap
from collections import Counter
from pathlib import Path

import numpy as np

from tinyft import (
    InstructionSet,
    Settings,
    cli,
    delete_state,
    fit,
    load_model_and_tokenizer,
    parse_columns,
    read_entries,
    read_with_account,
    split,
    warm_up,
)
from tinyft.checkpoint import model_fingerprint
from tinyft.data.instructions import END_MARKER_CHOICES, handle_end_markers, show_mask
from tinyft.data.prompts import PROMPT_STYLES, encode_prompt, find_style, with_style
from tinyft.data.report import describe, report_lines
from tinyft.files import make_writable_folder, write_json
from tinyft.gpt2 import SIZES
from tinyft.hub import find_model
from tinyft.inference.replies import reply, reply_to_all
from tinyft.memory import peak_megabytes
from tinyft.run import check_resumable, claim_output
from tinyft.scoring import compare_by_family, score_table, side_by_side

HERE = Path(__file__).resolve().parent
BASE_MODEL = HERE.parent / "weights" / "tiny-world"
DATA = HERE / "data"
EXAMPLES = """\
  python examples/finetune_alpaca.py
  python examples/finetune_alpaca.py --data my-instructions.json --output-dir runs/mine
  python examples/finetune_alpaca.py --model gpt2 --data my-instructions.json --epochs 2 --batch-size 8
  python examples/finetune_alpaca.py --data my-instructions.json --show-mask
  python examples/finetune_alpaca.py --data questions.csv --columns instruction=ask,output=reply
  python examples/finetune_alpaca.py --model gpt2 --data databricks/databricks-dolly-15k --prompt-style chatml
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("--model", default=str(BASE_MODEL), metavar="NAME",
        help=f"a model folder, or a GPT-2 on the Hugging Face hub: {', '.join(SIZES)}, or owner/name "
             "(default: weights/tiny-world)")
    add("--data", metavar="FILE", action="append",
        help="JSON, JSON lines, CSV or Parquet, or the name of a data set on the Hugging Face hub; may be given more "
             "than once (default: examples/data/train.json)")
    add("--test-data", metavar="FILE", action="append",
        help="test on these entries, instead of a part of --data; may be given more than once")
    add("--columns", metavar="NAME=KEY,...",
        help="which keys of the data stand for instruction, input, output, system, family or messages, where the usual "
             "ones don't: instruction=ask,output=reply")
    add("--prompt-style", metavar="STYLE",
        help=f"the text around an instruction: {', '.join(PROMPT_STYLES)}, or a file with a chat template "
             "(default: what the model's folder says, or else alpaca)")
    add("--end-marker", choices=END_MARKER_CHOICES, default="strip",
        help="what to do with <|endoftext|> written out at the end of a reply (default: strip it)")
    add("--mask-prompt", dest="mask_prompt", action="store_true", default=True,
        help="learn only the replies (default)")
    add("--no-mask-prompt", dest="mask_prompt", action="store_false", help="learn the prompts as well")
    add("--max-length", type=cli.positive_int, metavar="N", help="cut longer entries (default: the model's context)")
    add("--show-mask", action="store_true", help="print three entries with the learned tokens green, and end")
    add("--train-share", type=float, default=0.85, metavar="X", help="part of --data to train on")
    add("--test-share", type=float, default=0.10, metavar="X", help="part of --data to test on; validation: the rest")
    add("--in-file-order", action="store_true", help="split --data in its order: training, test, validation")
    add("--max-entries", type=cli.positive_int, metavar="N", help="use only the first N entries of each file")
    add("--epochs", type=cli.positive_int, default=3, metavar="N", help="passes over the training entries")
    add("--max-steps", type=cli.positive_int, metavar="N", help="stop there, whatever the epochs")
    add("--batch-size", type=cli.positive_int, default=8, metavar="N", help="entries in an optimizer step")
    add("--micro-batch-size", type=cli.positive_int, metavar="N",
        help="entries at a time, to save memory; but for dropout's draws the result is the same (default: the batch)")
    add("--learning-rate", type=cli.positive_float, metavar="X",
        help="at its highest (default: 5e-5 for GPT-2 124M, more for narrower models, less for wider ones)")
    add("--weight-decay", type=cli.not_negative_float, default=0.1, metavar="X", help="AdamW's, on matrices")
    add("--dropout", type=cli.not_negative_float, default=0.0, metavar="P",
        help="on embeddings and on what each block adds")
    add("--evaluate-every", type=cli.positive_int, metavar="N", help="steps (default: four times an epoch)")
    add("--patience", type=cli.not_negative_int, default=4, metavar="N",
        help="evaluations without a better validation loss before stopping; 0: never")
    add("--max-new-tokens", type=cli.positive_int, metavar="N",
        help="longest reply (default: that of the test entries and 16 tokens more)")
    add("--output-dir", type=Path, metavar="FOLDER", help="where the run goes (default: a new one in runs/)")
    add("--resume", action="store_true", help="go on with the interrupted run in --output-dir")
    add("--overwrite", action="store_true", help="replace the run in --output-dir")
    add("--seed", type=cli.not_negative_int, default=123, metavar="N", help="seeds split, order and dropout")
    parser.add_threads()
    parser.add_dtype()
    return parser.parse_args()


def choose_output(options, model_folder: Path) -> Path:
    """The run's folder: a new one, unless --resume or --overwrite allow an old one."""
    if options.output_dir is None:
        if options.resume:
            raise ValueError("--resume needs --output-dir, the folder of the run to go on with")
        stem = Path(options.data[0].split(":")[0]).name.split(".")[0] if options.data else "tiny-world"
        candidates = (Path("runs") / (stem if i == 1 else f"{stem}-{i}") for i in range(1, 10_000))
        return make_writable_folder(next(path for path in candidates if not path.exists()))
    return claim_output(options.output_dir, options.resume, options.overwrite, model_folder)


def read_all(options, rng):
    """Entries of --data with an account of them; of these training, validation and test, as {title: entries}."""
    columns = parse_columns(options.columns) if options.columns else {}
    test_paths = options.test_data
    if options.data is None and not test_paths:
        test_paths = [DATA / "test_items.json", DATA / "test_phrasings.json"]
    entries, account = read_with_account(options.data or DATA / "train.json", columns, options.max_entries)
    test_share = 0.0 if test_paths else options.test_share
    training, validation, test = split(entries, train=options.train_share, test=test_share,
                                       rng=None if options.in_file_order else rng)
    if not test_paths:
        return entries, account, training, validation, {"test entries": test}
    tests = {}
    for path in test_paths:
        name = Path(path).stem.replace("_", " ")
        tests[name if name not in tests else str(path)] = read_entries(path, columns, options.max_entries)
    return entries, account, training, validation, tests


def facts_of(entries, account, sets) -> dict:
    """What is reported of the data: how it was read, and what became of it as tokens."""
    examples = [example for data in sets for example in data.examples]
    targets = [int(example.learned[1:].sum()) if sets[0].mask_prompt else len(example.ids) - 1 for example in examples]
    return describe(account, entries, [len(example.ids) - 1 for example in examples], targets,
                    max_length=sets[0].max_length, cut=sum(data.cut for data in sets),
                    end_markers=sum(data.end_markers for data in sets),
                    dropped=sum((data.reasons for data in sets), Counter()))


def record(entry) -> dict:
    """An entry as replies.json has it: Alpaca's keys, or messages where there are more turns."""
    if [turn.role for turn in entry.turns] == ["user", "assistant"]:
        fields = {"instruction": entry.instruction, "input": entry.input, "output": entry.output}
    else:
        fields = {"messages": [{"role": turn.role, "content": turn.content}
                               | ({"input": turn.input} if turn.input else {}) for turn in entry.turns]}
    return fields | ({"family": entry.family} if entry.family else {})


def make_sets(options, style, tokenizer, context: int, training, validation) -> tuple[InstructionSet, InstructionSet]:
    """Training and validation entries as token ids; ValueError if there is nothing to train on."""
    how = dict(prompt_style=style, mask_prompt=options.mask_prompt, max_length=options.max_length or context,
               end_marker=options.end_marker)
    sets = tuple(InstructionSet(entries, tokenizer, **how) for entries in (training, validation))
    if not len(sets[0]):
        why = ", ".join(f"{n} {reason}" for reason, n in sets[0].reasons.items())
        raise ValueError(f"{', '.join(options.data or [str(DATA / 'train.json')])}: no entry to train on; of "
                         f"{len(training)} in the training share " + (f"there are {why}" if why else "none is left")
                         + "; give more entries, or a larger --train-share or --max-length")
    return sets


def show_plan(options, model, folder, data_lines, sets, tests, settings, threads: int, output: Path) -> None:
    """Say what is about to be done."""
    print(f"model     {folder}: {model.n_parameters() / 1e6:.1f} M parameters, context {model.config.n_positions}")
    print(f"data      {len(sets[0])} entries to train on, {len(sets[1])} to validate"
          + "".join(f", {len(entries)} {title}" for title, entries in tests.items()))
    for line in data_lines:
        print(f"          {line}")
    length = f"{options.epochs} epoch{'s' * (options.epochs != 1)}"
    if options.max_steps:
        length = f"{options.max_steps} step{'s' * (options.max_steps != 1)} at most"
    print(f"training  {length}, batches of {options.batch_size}, learning rate {settings.learning_rate:.2g}, "
          f"{threads} threads\noutput    {output}", flush=True)
    if not tests:
        print("no entries to test on: give more data, or --test-data")


def show_results(output: Path, tests, few, asked, before, after) -> None:
    """Replies before and after side by side, scores, and where everything is; all replies and scores as files."""
    shown = [entry for entries in tests.values() for entry in entries]
    scored = any(entry.family for entry in shown)
    write_json(output / "replies.json", [
        {**record(entry), **({"model_response_before": before[i]} if i in before else {}), "model_response": answer}
        for i, (entry, answer) in enumerate(zip(shown, after, strict=True))])
    if shown:
        print("\n" + side_by_side([shown[i] for i in few], [before[i] for i in few], [after[i] for i in few]))
    if scored:
        scores = compare_by_family(tests, [before[i] for i in asked], after)
        write_json(output / "scores.json", scores)
        print("\nreplies that match exactly\n\n" + score_table(scores))
    plot = "loss.png" if (output / "loss.png").exists() else "no loss.png (pip install matplotlib)"
    print(f"\nsaved to {output}: model/ (loads in transformers), replies.json ({len(shown)} replies to review), "
          f"{'scores.json, ' * scored}metrics.jsonl, {plot}\n"
          f"ask it: python examples/generate.py --model {output / 'model'} \"...\"\n"
          f"peak memory {peak_megabytes():.0f} MB")


def main() -> None:
    """Read, show, tune, answer."""
    options = parse_arguments()
    threads = cli.use_threads(options.threads)
    cli.use_dtype(options.dtype)
    rng = np.random.default_rng(options.seed)
    entries, account, training, validation, tests = read_all(options, rng)
    folder = find_model(options.model)
    model, tokenizer = load_model_and_tokenizer(folder)
    context = model.config.n_positions
    if options.max_length and options.max_length > context:
        raise ValueError(f"--max-length {options.max_length}: this model sees at most {context} tokens")
    if options.dropout >= 1:
        raise ValueError(f"--dropout {options.dropout}: expected a probability below 1")
    model.set_dropout(options.dropout)

    style = find_style(tokenizer, options.prompt_style)
    tokenizer = with_style(style, tokenizer)
    training_set, validation_set = sets = make_sets(options, style, tokenizer, context, training, validation)
    data_lines = report_lines(facts_of(entries, account, sets))
    if options.show_mask:
        print(*data_lines, sep="\n", end="\n\n")
        for i in range(min(3, len(training_set))):
            inputs, targets = training_set.collate([i])
            print(show_mask(inputs[0], targets[0], tokenizer), end="\n\n")
        return
    output = choose_output(options, folder)
    # Wider models want smaller steps. 5e-5 is usual for 124M; the small model forgets facts at higher rates.
    learning_rate = options.learning_rate or 5e-5 * (768 / model.config.n_embd) ** 0.5
    settings = Settings(epochs=options.epochs, batch_size=options.batch_size, max_steps=options.max_steps,
                        micro_batch_size=options.micro_batch_size, learning_rate=learning_rate,
                        weight_decay=options.weight_decay, evaluate_every=options.evaluate_every,
                        patience=options.patience)
    identity = {"seed": options.seed, "dropout": options.dropout, "dtype": options.dtype,
                "fingerprint of --model": model_fingerprint(model),
                "validation set (data, prompt style, mask, lengths)": validation_set.fingerprint()}
    if options.resume:  # refused before any work is done
        check_resumable(output, model, training_set, settings, identity)
    if options.end_marker == "strip":
        tests = {title: [handle_end_markers(entry, style, tokenizer) for entry in entries]
                 for title, entries in tests.items()}
    tests = {title: entries for title, entries in tests.items() if entries}
    show_plan(options, model, folder, data_lines, sets, tests, settings, threads, output)
    warm_up()

    shown = [entry for entries in tests.values() for entry in entries]
    few = range(0, len(shown), max(1, len(shown) // 5))[:5]
    # All replies of the untuned model only where they are counted.
    asked = range(len(shown)) if any(entry.family for entry in shown) else few

    def expected_tokens(entry) -> int:
        return len(tokenizer.encode(entry.output))

    longest = options.max_new_tokens or 16 + max(map(expected_tokens, shown), default=0)
    # An untuned model does not stop by itself: what is much longer than the expected reply is wrong anyway.
    before = dict(zip(asked, reply_to_all(model, tokenizer, [shown[i] for i in asked], style, "replies before",
                                          lambda entry: min(longest, 16 + expected_tokens(entry))), strict=True))
    sample_entry = next((entry for entry in [*validation, *training]
                         if len(encode_prompt(entry.asked, style, tokenizer)) < context), None)

    def show_sample(report) -> None:
        if sample_entry is None:
            return
        answer = reply(model, tokenizer, encode_prompt(sample_entry.asked, style, tokenizer), max_new_tokens=40)
        question = " ".join(f"{sample_entry.instruction} {sample_entry.input}".split())
        report.say(f"    {textwrap.shorten(question, 70)} -> {textwrap.shorten(answer, 70) or '(nothing)'}")

    fit(model, tokenizer, training_set, validation_set if len(validation_set) else None, settings, rng, output,
        resume=options.resume, on_evaluation=show_sample, title="fine-tuning on instructions", identity=identity)

    after = reply_to_all(model, tokenizer, shown, style, "replies after", lambda entry: longest)
    delete_state(output)
    show_results(output, tests, few, asked, before, after)


if __name__ == "__main__":
    cli.run(main)
