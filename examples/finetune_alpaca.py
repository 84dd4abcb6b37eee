"""Fine-tune GPT-2 on instructions, and see what it learned.

With nothing else, tunes the small model in weights/ on the instructions in examples/data/. Prints replies
before and after side by side, stops when the validation loss turns, keeps the best weights, and leaves in
the output folder: model/ (loads in transformers, or in peft with --lora-rank), replies.json (every test entry
with the model's reply, for you to review), scores.json, metrics.jsonl, loss.png.
"""

import importlib.util
import textwrap
from pathlib import Path

import numpy as np
from finetuning import data, results
from finetuning.options import lora_config, parse_arguments

from tinyft import GPT2, Settings, add_lora, cli, delete_state, fit, load_model_and_tokenizer, save_model, warm_up
from tinyft.adapters import is_adapter
from tinyft.compact import compact
from tinyft.data.instructions import handle_end_markers
from tinyft.data.prompts import encode_prompt, find_style, with_style
from tinyft.data.report import report_lines
from tinyft.files import make_writable_folder
from tinyft.hub import find_model
from tinyft.inference.generate import MANY
from tinyft.inference.replies import reply, reply_to_all
from tinyft.kernels.cached_attention import BLOCK
from tinyft.loggers import find_packages, make_loggers
from tinyft.memory import Estimate, available_bytes, check_fits, estimate, longest_batch
from tinyft.parallel import Ranks, connect, share_replies
from tinyft.run import check_resumable, claim_output
from tinyft.tokenizer import Tokenizer


def choose_output(options, model_folder: Path) -> Path:
    """The run's folder: a new one, unless --resume or --overwrite allow an old one."""
    find_packages(options.loggers)  # before --overwrite deletes anything
    if options.output_dir is None:
        if options.resume:
            raise ValueError("--resume needs --output-dir, the folder of the run to go on with")
        stem = Path(options.data[0].split(":")[0]).name.split(".")[0] if options.data else "tiny-world"
        candidates = (Path("runs") / (stem if i == 1 else f"{stem}-{i}") for i in range(1, 10_000))
        return make_writable_folder(next(path for path in candidates if not path.exists()))
    return claim_output(options.output_dir, options.resume, options.overwrite, model_folder)


def prepare_model(options, model: GPT2, folder: Path) -> None:
    """Freeze, adapt and shrink the model from `folder` as the options say."""
    if options.lora_rank is not None and is_adapter(folder):
        raise ValueError(f"--model {folder} is an adapter, and one can't be put onto another: merge it first (python "
                         f"examples/merge_adapter.py {folder} merged), or tune it without --lora-rank")
    if options.lora_rank is not None and options.lora_rank > model.config.n_embd:
        raise ValueError(f"--lora-rank {options.lora_rank}: expected at most {model.config.n_embd}, the model's width")
    model.set_dropout(options.dropout)
    model.recompute = options.recompute
    if (config := lora_config(options)) is not None:
        add_lora(model, config, np.random.default_rng(options.seed))
    if options.base_weights != "float32":
        compact(model, options.base_weights)


def make_settings(options, model: GPT2) -> Settings:
    """How to train. Wider models want smaller steps, adapters larger ones."""
    # 5e-5 is usual for 124M; the small model forgets facts at higher rates.
    usual = 5e-5 * (768 / model.config.n_embd) ** 0.5 * (1 if options.lora_rank is None else 10)
    return Settings(epochs=options.epochs, batch_size=options.batch_size, max_steps=options.max_steps,
                    batch_tokens=options.batch_tokens, micro_batch_size=options.micro_batch_size,
                    learning_rate=options.learning_rate or usual, weight_decay=options.weight_decay,
                    evaluate_every=options.evaluate_every, patience=options.patience, moments=options.moments)


def memory_needed(options, model: GPT2, settings: Settings, training_set, tests, ranks: Ranks) -> Estimate:
    """What the run will take, each rank of it."""
    rows = settings.batch_size
    if settings.batch_tokens is not None:
        rows = max(1, settings.batch_tokens // int(training_set.lengths().max()))
    rows = -(-rows // ranks.size)
    rows = min(rows, settings.micro_batch_size or rows)
    shares = not model.draws_dropout(np.random.default_rng())
    tokens, targets = longest_batch(training_set, rows, batch_tokens=settings.batch_tokens, share=shares)
    # What is finished stays in the cache, in case another prompt begins alike, until its room is used up.
    of_each = -(-tokens // (rows * BLOCK)) * BLOCK
    reply_tokens = min(of_each * (1 + sum(map(len, tests.values()))), (MANY + 1) * model.config.n_positions)
    return estimate(model, tokens, targets, rows=rows, several=settings.micro_batch_size is not None,
                    moments=settings.moments, replies=options.base_weights,
                    reply_tokens=reply_tokens, merges=options.merge,
                    plots=importlib.util.find_spec("matplotlib") is not None)


class Asker:
    """Asks the model in training the test entries, and one entry in between to show how it comes on."""

    def __init__(self, options, model: GPT2, tokenizer: Tokenizer, style, ranks: Ranks, tests):
        self.model, self.tokenizer, self.style, self.ranks = model, tokenizer, style, ranks
        self.entries = [entry for entries in tests.values() for entry in entries]
        self.longest = options.max_new_tokens or 16 + max(map(self._expected_tokens, self.entries), default=0)
        self.few = range(0, len(self.entries), max(1, len(self.entries) // 5))[:5]

    def _expected_tokens(self, entry) -> int:
        return len(self.tokenizer.encode(entry.output))

    def before(self) -> dict[int, str]:
        """Replies of the untuned model by the number of their entry: all of them only where they are counted."""
        asked = range(len(self.entries)) if any(entry.family for entry in self.entries) else self.few
        # It does not stop by itself: what is much longer than the expected reply is wrong anyway.
        replies = self._ask([self.entries[i] for i in asked], "replies before",
                            lambda entry: min(self.longest, 16 + self._expected_tokens(entry)))
        return dict(zip(asked, replies, strict=True))

    def after(self) -> list[str]:
        """Replies to all entries."""
        return self._ask(self.entries, "replies after", lambda entry: self.longest)

    def _ask(self, entries, title: str, most) -> list[str]:
        return share_replies(self.ranks, lambda mine: reply_to_all(self.model, self.tokenizer, mine, self.style, title,
                                                                   most), entries)

    def sample(self, candidates):
        """A function for `fit` that shows a reply to the first of the candidates that leaves room for one."""
        context = self.model.config.n_positions
        prompts = ((entry, encode_prompt(entry.asked, self.style, self.tokenizer)) for entry in candidates)
        entry, prompt = next(((entry, prompt) for entry, prompt in prompts if len(prompt) < context), (None, None))

        def show(report) -> None:
            if entry is not None:
                answer = reply(self.model, self.tokenizer, prompt, max_new_tokens=40)
                question = " ".join(f"{entry.instruction} {entry.input}".split())
                report.say(f"    {textwrap.shorten(question, 70)} -> {textwrap.shorten(answer, 70) or '(nothing)'}")

        return show


def main() -> None:
    """Read, show, tune, answer."""
    ranks = connect()
    options = parse_arguments(__doc__.splitlines()[0])
    threads = cli.use_threads(options.threads)
    cli.use_dtype(options.dtype)
    rng = np.random.default_rng(options.seed)
    entries, account, training, validation, tests = data.read_all(options, rng)
    folder = find_model(options.model)
    model, tokenizer = load_model_and_tokenizer(folder)
    context = model.config.n_positions
    if options.max_length and options.max_length > context:
        raise ValueError(f"--max-length {options.max_length}: this model sees at most {context} tokens")
    prepare_model(options, model, folder)

    style = find_style(tokenizer, options.prompt_style)
    tokenizer = with_style(style, tokenizer)
    training_set, validation_set = sets = data.make_sets(options, style, tokenizer, context, training, validation)
    data_lines = report_lines(data.facts_of(entries, account, sets))
    if options.show_mask:
        return results.show_masks(data_lines, training_set, tokenizer)
    settings = make_settings(options, model)
    needed = memory_needed(options, model, settings, training_set, tests, ranks)
    check_fits(needed, available_bytes(), ranks.on_host)
    output = ranks.first(choose_output, options, folder)
    identity = {"seed": options.seed, "dropout": options.dropout, "dtype": options.dtype,
                "base weights": options.base_weights,
                "validation set (data, prompt style, mask, lengths)": validation_set.fingerprint()}
    if options.resume:  # refused before any work is done
        ranks.first(check_resumable, output, model, training_set, settings, identity)
    if options.end_marker == "strip":
        tests = {title: [handle_end_markers(entry, style, tokenizer) for entry in entries]
                 for title, entries in tests.items()}
    tests = {title: entries for title, entries in tests.items() if entries}
    results.show_plan(options, model, folder, data_lines, sets, tests, settings, threads, output, needed)
    loggers = make_loggers(options.loggers, output, {name: str(value) for name, value in vars(options).items()})
    ranks.in_turn(lambda: warm_up(options.base_weights, options.moments))

    asker = Asker(options, model, tokenizer, style, ranks, tests)
    before = asker.before()
    fit(model, tokenizer, training_set, validation_set if len(validation_set) else None, settings, rng, output,
        resume=options.resume, on_evaluation=asker.sample([*validation, *training]), identity=identity,
        title="fine-tuning on instructions", ranks=ranks, base=options.model, loggers=loggers,
        state_minutes=options.checkpoint_minutes, state_steps=options.checkpoint_steps,
        keep_states=options.keep_checkpoints)
    after = asker.after()
    if ranks.is_first:
        delete_state(output)
        results.show_results(output, tests, asker.few, before, after)
        if options.merge:  # at the end, since it takes memory, and nothing else is to be lost with it
            save_merged(output, folder)
        results.show_files(output, tests, merged=options.merge)


def save_merged(output: Path, base: Path) -> None:
    """The base model with the adapter in output/model added to its weights, into output/merged."""
    merged, tokenizer = load_model_and_tokenizer(output / "model", base_model=base)
    save_model(merged, tokenizer, output / "merged")


if __name__ == "__main__":
    cli.run(main)
