"""The command line of finetune_alpaca.py."""

from pathlib import Path

from tinyft import LoraConfig, cli
from tinyft.data.instructions import END_MARKER_CHOICES
from tinyft.data.prompts import PROMPT_STYLES
from tinyft.gpt2 import SIZES

BASE_MODEL = Path(__file__).resolve().parents[2] / "weights" / "tiny-world"
EXAMPLES = """\
  python examples/finetune_alpaca.py
  python examples/finetune_alpaca.py --data my-instructions.json --output-dir runs/mine
  python examples/finetune_alpaca.py --model gpt2 --data my-instructions.json --epochs 2 --batch-size 8
  python examples/finetune_alpaca.py --model gpt2 --data my-instructions.json --lora-rank 8
  python examples/finetune_alpaca.py --model gpt2-xl --data my-instructions.json --lora-rank 8 --base-weights int8 \\
      --recompute
  mpirun -n 4 python examples/finetune_alpaca.py --model gpt2 --data my-instructions.json --batch-size 32
  python examples/finetune_alpaca.py --data my-instructions.json --show-mask
  python examples/finetune_alpaca.py --data questions.csv --columns instruction=ask,output=reply
  python examples/finetune_alpaca.py --model gpt2 --data databricks/databricks-dolly-15k --prompt-style chatml
"""


def parse_arguments(description: str):
    """The command line; ValueError for options that don't go together."""
    parser = cli.Parser(description, EXAMPLES)
    parser.add_argument("--model", default=str(BASE_MODEL), metavar="NAME",
                        help=f"a model folder, or a GPT-2 on the Hugging Face hub: {', '.join(SIZES)}, or owner/name "
                             "(default: weights/tiny-world)")
    _add_data(parser.add_argument_group("data"))
    _add_training(parser.add_argument_group("training"))
    _add_lora(parser.add_argument_group("adapters instead of all weights (LoRA)"))
    _add_memory(parser.add_argument_group("memory"))
    _add_run(parser.add_argument_group("the run and its files"))
    parser.add_threads()
    parser.add_dtype()
    options = parser.parse_args()
    _check(options)
    return options


def _add_data(group) -> None:
    add = group.add_argument
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


def _add_training(group) -> None:
    add = group.add_argument
    add("--epochs", type=cli.positive_int, default=3, metavar="N", help="passes over the training entries")
    add("--max-steps", type=cli.positive_int, metavar="N", help="stop there, whatever the epochs")
    add("--batch-size", type=cli.positive_int, default=8, metavar="N", help="entries in an optimizer step")
    add("--batch-tokens", type=cli.positive_int, metavar="N",
        help="put entries together up to N tokens a step, instead of --batch-size entries")
    add("--learning-rate", type=cli.positive_float, metavar="X",
        help="at its highest (default: 5e-5 for GPT-2 124M, more for narrower models, less for wider ones; "
             "ten times as much with --lora-rank)")
    add("--weight-decay", type=cli.not_negative_float, default=0.1, metavar="X", help="AdamW's, on matrices")
    add("--dropout", type=cli.not_negative_float, default=0.0, metavar="P",
        help="on embeddings and on what each block adds")
    add("--evaluate-every", type=cli.positive_int, metavar="N", help="steps (default: four times an epoch)")
    add("--patience", type=cli.not_negative_int, default=4, metavar="N",
        help="evaluations without a better validation loss before stopping; 0: never")
    add("--seed", type=cli.not_negative_int, default=123, metavar="N", help="seeds split, order, dropout and adapters")


def _add_lora(group) -> None:
    add, usual = group.add_argument, LoraConfig()
    add("--lora-rank", type=cli.positive_int, metavar="N",
        help="learn a product of two thin matrices of this rank beside each frozen one; model/ is an adapter then, "
             "in peft's layout (8 is usual; default: learn all weights)")
    add("--lora-alpha", type=cli.positive_float, metavar="X",
        help="the product is scaled by alpha / rank (default: twice the rank)")
    add("--lora-dropout", type=cli.not_negative_float, default=usual.dropout, metavar="P",
        help="on what the thin matrices read")
    add("--lora-layers", default=",".join(usual.layers), metavar="NAMES", help="which layers of each block get one")
    add("--lora-rank-stabilised", action="store_true", help="scale by alpha / sqrt(rank), for ranks of 32 and more")
    add("--merge", action="store_true", help="leave merged/ as well: the base with the adapter added to its weights")


def _add_memory(group) -> None:
    add = group.add_argument
    add("--micro-batch-size", type=cli.positive_int, metavar="N",
        help="entries at a time, to save memory; but for dropout's draws the result is the same (default: the batch)")
    add("--recompute", action="store_true",
        help="compute what is inside of a block again in the backward pass, instead of keeping it: the same result in "
             "less memory and about a quarter more time")
    add("--base-weights", choices=("float32", "bfloat16", "int8"), default="float32",
        help="how frozen matrices are kept; with --lora-rank")
    add("--moments", choices=("float32", "bfloat16"), default="float32",
        help="how AdamW keeps its averages; bfloat16 is rounded at random, so that small changes count")


def _add_run(group) -> None:
    add = group.add_argument
    add("--max-new-tokens", type=cli.positive_int, metavar="N",
        help="longest reply (default: that of the test entries and 16 tokens more)")
    add("--output-dir", type=Path, metavar="FOLDER", help="where the run goes (default: a new one in runs/)")
    add("--resume", action="store_true", help="go on with the interrupted run in --output-dir")
    add("--overwrite", action="store_true", help="replace the run in --output-dir")
    add("--checkpoint-minutes", type=cli.positive_float, default=10.0, metavar="X",
        help="keep the state of the run so often")
    add("--checkpoint-steps", type=cli.positive_int, metavar="N", help="and every N steps")
    add("--keep-checkpoints", type=cli.positive_int, default=2, metavar="N", help="how many states are kept")
    for name, what in (("tensorboard", "TensorBoard, in the run's folder"), ("wandb", "Weights & Biases")):
        add(f"--{name}", dest="loggers", action="append_const", const=name, default=[], help=f"log to {what}, as well")


def _check(options) -> None:
    """ValueError for options that don't go together."""
    if options.dropout >= 1 or options.lora_dropout >= 1:
        name = "--dropout" if options.dropout >= 1 else "--lora-dropout"
        raise ValueError(f"{name} {max(options.dropout, options.lora_dropout)}: expected a probability below 1")
    if options.lora_rank is None:
        usual = LoraConfig()
        given = {"--lora-alpha": options.lora_alpha is not None, "--lora-dropout": options.lora_dropout != 0,
                 "--lora-layers": options.lora_layers != ",".join(usual.layers),
                 "--lora-rank-stabilised": options.lora_rank_stabilised, "--merge": options.merge,
                 f"--base-weights {options.base_weights}": options.base_weights != "float32"}
        found = [name for name, is_given in given.items() if is_given]
        if found:
            raise ValueError(f"{found[0]} is for adapters on a frozen model: add --lora-rank 8, or leave it out")
    elif not _layers(options):
        raise ValueError("--lora-layers is empty, expected names such as c_attn,c_fc")


def _layers(options) -> tuple[str, ...]:
    return tuple(name for part in options.lora_layers.split(",") if (name := part.strip()))


def lora_config(options) -> LoraConfig | None:
    """What --lora-rank and its like ask for; None if all weights are learned."""
    if options.lora_rank is None:
        return None
    return LoraConfig(rank=options.lora_rank, alpha=options.lora_alpha or 2 * options.lora_rank,
                      dropout=options.lora_dropout, rank_stabilised=options.lora_rank_stabilised,
                      layers=_layers(options))
