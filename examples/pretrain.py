"""Pretrain a small GPT-2 on a text file, or go on with one on another text: how the model in weights/ was made.

The text is plain UTF-8, its documents separated by blank lines. `make_corpus.py` writes one and
`train_tokenizer.py` makes the tokenizer for it.
"""

from pathlib import Path

import numpy as np

from tinyft import (
    GPT2,
    GPT2Config,
    Settings,
    cli,
    fit,
    load_model_and_tokenizer,
    load_tokenizer,
    reply,
    warm_up,
)
from tinyft.data.text import TextSet, encode_documents
from tinyft.files import read_text
from tinyft.hub import find_model
from tinyft.parallel import connect
from tinyft.run import claim_output
from tinyft.tokenizer import Tokenizer

EXAMPLES = """\
  python examples/make_corpus.py --output corpus.txt --megabytes 60
  python examples/train_tokenizer.py --corpus corpus.txt --output runs/tokenizer
  python examples/pretrain.py --corpus corpus.txt --tokenizer runs/tokenizer --output-dir runs/base
  python examples/pretrain.py --corpus corpus.txt --tokenizer runs/tokenizer --output-dir runs/base --resume
  python examples/pretrain.py --corpus my-text.txt --model runs/base/model --output-dir runs/mine
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("--corpus", type=Path, required=True, metavar="FILE", help="UTF-8 text, documents separated by blank lines")
    add("--tokenizer", type=Path, metavar="FOLDER", help="for a new model: a folder with vocab.json and merges.txt")
    add("--model", metavar="NAME",
        help="go on with this model, a folder or a GPT-2 on the Hugging Face hub, instead of starting a new one")
    add("--output-dir", type=Path, default=Path("runs/base"), metavar="FOLDER", help="where the run goes")
    add("--resume", action="store_true", help="go on with an interrupted run in --output-dir")
    add("--overwrite", action="store_true", help="replace the run in --output-dir")
    add("--n-layer", type=cli.positive_int, metavar="N", help="blocks of a new model (default: 6)")
    add("--n-head", type=cli.positive_int, metavar="N", help="heads of each attention of a new model (default: 7)")
    add("--n-embd", type=cli.positive_int, metavar="N", help="channels of a new model (default: 224)")
    add("--context", type=cli.positive_int, metavar="N",
        help="tokens that the model sees at once (default: 256, or what the model given has)")
    add("--epochs", type=cli.positive_int, default=1, metavar="N", help="passes over the corpus")
    add("--max-steps", type=cli.positive_int, metavar="N", help="stop there, whatever the epochs")
    add("--batch-size", type=cli.positive_int, default=8, metavar="N", help="contexts in a step")
    add("--learning-rate", type=cli.positive_float, metavar="X",
        help="at its highest (default: 2e-3 for a new model, else 2e-4 for GPT-2 124M and more for narrower ones)")
    add("--evaluate-every", type=cli.positive_int, default=250, metavar="N", help="steps between two evaluations")
    add("--seed", type=cli.not_negative_int, default=0, metavar="N", help="seeds weights and order")
    add("--prompt", default="Once upon a time", metavar="TEXT", help="continued at each evaluation")
    parser.add_threads()
    parser.add_dtype()
    return parser.parse_args()


def start(options, rng: np.random.Generator) -> tuple[GPT2, Tokenizer]:
    """A new model with its tokenizer, or the one to go on with."""
    if (options.model is None) == (options.tokenizer is None):
        raise ValueError("give either --tokenizer, for a new model, or --model, to go on with one")
    if options.model is not None:
        if options.n_layer or options.n_head or options.n_embd:
            raise ValueError("--n-layer, --n-head and --n-embd are for a new model; the one in --model has its shape")
        options.model = find_model(options.model)
        model, tokenizer = load_model_and_tokenizer(options.model)
        if (options.context or 0) > model.config.n_positions:
            raise ValueError(f"--context {options.context}: this model sees at most {model.config.n_positions} tokens")
        return model, tokenizer
    tokenizer = load_tokenizer(options.tokenizer)
    config = GPT2Config(vocab_size=tokenizer.n_vocab, n_positions=options.context or 256, n_embd=options.n_embd or 224,
                        n_layer=options.n_layer or 6, n_head=options.n_head or 7)
    return GPT2(config, rng), tokenizer


def main() -> None:
    """Read, encode, train."""
    ranks = connect()
    options = parse_arguments()
    threads = cli.use_threads(options.threads)
    cli.use_dtype(options.dtype)
    if not options.corpus.is_file():
        what = "is a folder, expected a text file" if options.corpus.is_dir() else "is missing"
        raise ValueError(f"--corpus {options.corpus} {what}; examples/make_corpus.py writes one")
    rng = np.random.default_rng(options.seed)
    model, tokenizer = start(options, rng)
    context = options.context or model.config.n_positions
    ids = encode_documents(read_text(options.corpus), tokenizer)
    held_out = max(context + 1, min(len(ids) // 50, 50_000))
    if len(ids) < 4 * held_out:
        raise ValueError(f"{options.corpus} has {len(ids)} tokens, expected at least {4 * held_out} for a context "
                         f"of {context}; use more text or a smaller --context")
    prompt = tokenizer.encode(options.prompt)
    if context < 2:
        raise ValueError("--context 1: a model must see at least 2 tokens")
    if not 0 < len(prompt) < context:
        raise ValueError(f"--prompt has {len(prompt)} tokens, expected 1 to {context - 1}, below --context")
    ranks.first(claim_output, options.output_dir, options.resume, options.overwrite, options.model)
    print(f"{len(ids):,} tokens, {model.n_parameters():,} parameters, {threads} thread{'s' * (threads != 1)}")
    learning_rate = options.learning_rate or (2e-4 * (768 / model.config.n_embd) ** 0.5 if options.model else 2e-3)
    settings = Settings(epochs=options.epochs, batch_size=options.batch_size, learning_rate=learning_rate,
                        max_steps=options.max_steps, evaluate_every=options.evaluate_every, warmup=0.03,
                        beta2=0.95, patience=0)

    def show_sample(report) -> None:
        text = reply(model, tokenizer, options.prompt, max_new_tokens=50, temperature=0.7, top_k=40,
                     rng=np.random.default_rng(0))
        report.say(f"    {options.prompt} {' '.join(text.split())}")

    ranks.in_turn(warm_up)
    training, validation = TextSet(ids[:-held_out], context), TextSet(ids[-held_out:], context)
    identity = {"seed": options.seed, "dtype": options.dtype, "corpus": training.fingerprint()}
    fit(model, tokenizer, training, validation, settings, rng, options.output_dir, resume=options.resume,
        identity=identity, on_evaluation=show_sample, ranks=ranks,
        title=f"pretraining, {model.n_parameters() / 1e6:.1f} M parameters")
    print(f"saved the model to {options.output_dir / 'model'}, the losses to {options.output_dir / 'loss.png'}")


if __name__ == "__main__":
    cli.run(main)
