"""Merge an adapter into the model that it belongs to: a folder that needs nothing else.

tinyft reads adapter folders as they are; this is for programs that don't.
"""

from pathlib import Path

from tinyft import cli, save_model
from tinyft.adapters import find_base, is_adapter, load_model_and_tokenizer
from tinyft.hub import find_model

EXAMPLES = """\
  python examples/merge_adapter.py runs/lora/model merged
  python examples/merge_adapter.py someone/gpt2-lora merged --base-model gpt2 --dtype float16
"""


def parse_arguments():
    """The command line."""
    parser = cli.Parser(__doc__.splitlines()[0], EXAMPLES)
    add = parser.add_argument
    add("adapter", metavar="ADAPTER", help="a folder with adapter_config.json, or one on the Hugging Face hub")
    add("output", type=Path, metavar="FOLDER", help="where the merged model goes")
    add("--base-model", metavar="NAME", help="the model that the adapter belongs to (default: the one that it names)")
    add("--dtype", choices=("float32", "float16"), default="float32", help="of the weights in the file")
    add("--overwrite", action="store_true", help="replace a model that the folder holds")
    return parser.parse_args()


def main() -> None:
    """Load, merge, save."""
    options = parse_arguments()
    adapter = find_model(options.adapter)
    if not is_adapter(adapter):
        raise ValueError(f"{adapter} is no adapter (it has no adapter_config.json), so that there is nothing to merge")
    if is_adapter(options.output):
        raise ValueError(f"{options.output} is an adapter, which would be replaced; choose another folder")
    if (options.output / "config.json").exists() and not options.overwrite:
        raise ValueError(f"{options.output} holds a model; replace it with --overwrite, or choose another folder")
    base = find_base(adapter, options.base_model)
    if options.output.resolve() == base.resolve():
        raise ValueError(f"{options.output} is the adapter's base model, which is still needed; choose another folder")
    model, tokenizer = load_model_and_tokenizer(adapter, base)
    save_model(model, tokenizer, options.output, options.dtype)
    print(f"saved     {options.output}: {model.n_parameters():,} weights in {options.dtype}")


if __name__ == "__main__":
    cli.run(main)
