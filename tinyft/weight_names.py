"""The names of GPT-2's weights in the files that people have, and what a file is that has others.

A file from transformers has `transformer.h.0.attn.c_attn.weight` and its like; OpenAI's own leave `transformer.` out;
training loops and wrappers put something more in front, or in between.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from .gpt2 import GPT2Config

PARTS = ("wte", "wpe", "h", "ln_f", "lm_head")
# What torch.compile, DistributedDataParallel, FSDP and checkpointing of activations put between the parts of a name.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

# Names that tell that a file is more than a GPT-2, or has its weights in another form: what it is, and the remedy.
SIGNS = {
    r"lora_|modules_to_save|original_module|\.base_layer\.|ia3_|prompt_encoder|adapter": (
        "an adapter (LoRA or its like) beside the weights that it changes",
        "merge it with peft's model.merge_and_unload() and save the result with save_pretrained"),
    r"\.(qweight|qzeros|scales|g_idx|SCB|absmax|weight_scale|weight_scale_inv)$|\.(quant_state|quant_map|nested_)": (
        "quantised weights", "save the model from transformers in float32, float16 or bfloat16"),
    r"(^|\.)(v_head|value_head|reward_head)\.": (
        "a value head of reinforcement learning",
        "save the language model alone, with trl's model.pretrained_model.save_pretrained"),
    r"(^|\.)(score|classifier|qa_outputs|multiple_choice_head)\.": (
        "a head for another task than language modelling",
        "load it in transformers with AutoModelForCausalLM and save that, if the language model is what you want"),
    r"(^|\.)(crossattention|ln_cross_attn)\.": (
        "cross-attention to an encoder", "take a GPT-2 that is a language model by itself"),
    r"^optimizer\.|exp_avg": ("the state of an optimizer", "take the model's own weights"),
}

# Names of other models' weights, looked at where GPT-2's are missing.
LAYOUTS = {
    r"self_attention\.query_key_value|language_model\.encoder": "Megatron-LM, Bloom or Falcon",
    r"attention\.query_key_value": "GPT-NeoX or an old Megatron-LM",
    r"attn\.attention\.q_proj": "GPT-Neo",
    r"(^|\.)h\.\d+\.attn\.(q|qkv)_proj": "GPT-J or CodeGen",
    r"self_attn\.(q|k|v|qkv|o|out)_proj|embed_tokens": "Llama, OPT or one of their kin",
    r"tok_emb|trf_blocks|out_head": "the book 'Build a Large Language Model (From Scratch)'",
    r"encoder\.layer\.\d+\.": "BERT or one of its kin",
    r"^model/(h\d+|wte)": "OpenAI's TensorFlow files",
}


def expected_shapes(config: GPT2Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a GPT-2's parameters in the order of `GPT2.named_parameters`, before there is a model.

    What a config.json says may ask for more memory than there is: a file's tensors are compared with this first.
    """
    wide, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    norm = {"weight": (wide,), "bias": (wide,)}
    block = {"ln_1": norm, "attn.c_attn": {"weight": (wide, 3 * wide), "bias": (3 * wide,)},
             "attn.c_proj": {"weight": (wide, wide), "bias": (wide,)}, "ln_2": norm,
             "mlp.c_fc": {"weight": (wide, inner), "bias": (inner,)},
             "mlp.c_proj": {"weight": (inner, wide), "bias": (wide,)}}
    yield "wte.weight", (config.vocab_size, wide)
    yield "wpe.weight", (config.n_positions, wide)
    for layer in range(config.n_layer):
        for part, shapes in block.items():
            yield from ((f"h.{layer}.{part}.{name}", shape) for name, shape in shapes.items())
    yield from ((f"ln_f.{name}", shape) for name, shape in norm.items())
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, wide)


def is_buffer(name: str) -> bool:
    """Whether a tensor is no weight but something that old versions stored beside them: masks and positions."""
    return name.endswith((".attn.bias", ".attn.masked_bias", "position_ids"))


def refuse_signs(where: str | Path, names: Iterable[str]) -> None:
    """ValueError where a name tells that the file holds more than a GPT-2, or has its weights in another form."""
    names = list(names)
    for sign, (what, remedy) in SIGNS.items():
        found = next((name for name in names if re.search(sign, name)), None)
        if found is not None:
            raise ValueError(f"{where}: tensor '{found}' belongs to {what}, expected GPT-2's weights alone; {remedy}")


def plain_names(where: str | Path, names: Iterable[str]) -> dict[str, str]:
    """{name in a file: name in tinyft's GPT2}: wrappers, a prefix that all share, and `transformer.` left out.

    ValueError where two names become one.
    """
    parts = {name: [part for part in name.split(".") if part not in WRAPPERS] for name in names}
    while len({rest[0] for rest in parts.values() if rest}) == 1 and all(
            len(rest) > 1 and rest[0] not in PARTS for rest in parts.values()):
        parts = {name: rest[1:] for name, rest in parts.items()}
    plain = {name: ".".join(rest).removeprefix("transformer.") for name, rest in parts.items()}
    owners: dict[str, str] = {}
    for name, short in plain.items():
        if owners.setdefault(short, name) != name:
            raise ValueError(f"{where}: '{owners[short]}' and '{name}' are both {short}; remove one of them")
    return plain


def full_name(name: str) -> str:
    """The name that transformers has for a weight of tinyft's GPT2."""
    return name if name.startswith("lm_head.") else f"transformer.{name}"


def why_missing(missing: str, there: Collection[str], n_layer: int) -> str:
    """What is known about a file that lacks a tensor, from the names that it has: reason and remedy."""
    for sign, whose in LAYOUTS.items():
        found = next((name for name in there if re.search(sign, name)), None)
        if found is not None:
            return f"'{found}' is a name from {whose}; convert the weights to transformers' GPT-2"
    layer = re.match(r"h\.(\d+)\.", missing)
    if layer and not any(name.startswith(layer[0]) for name in there):
        return f"config.json says n_layer = {n_layer}; they don't belong together"
    if missing.endswith(".bias") and not any(name.endswith(".bias") for name in there):
        return ("the file has no biases at all, like nanoGPT's models with bias=False; GPT-2 has them: add zeros, and "
                "transpose nanoGPT's matrices")
    if missing == "lm_head.weight":
        return ("config.json says tie_word_embeddings = false, and so there must be one; say true if the token table "
                "wte.weight is the output layer, too")
    if missing == "wte.weight" and "lm_head.weight" in there:
        return ("config.json says tie_word_embeddings = false, so that lm_head.weight doesn't stand for it; say true "
                "if the output layer is the token table, too")
    some = ", ".join(f"'{name}'" for name in sorted(there)[:3])
    return f"the file has {len(there)} tensors{f', {some} ...' if some else ''}; is it whole, and a GPT-2?"


def why_misshaped(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What is known about a tensor of another shape: reason and remedy."""
    if len(shape) == 2 and shape == expected[::-1]:
        return ("it is transposed, (out, in), as nn.Linear and nanoGPT store it, and so are all of their matrices; "
                "transpose the weights of c_attn, c_proj and c_fc in every layer")
    if name in ("wte.weight", "lm_head.weight") and shape[1:] == expected[1:]:
        return (f"config.json says vocab_size = {expected[0]}; if rows were added or cut on purpose, say {shape[0]} "
                "there, or else take the table and config.json from the same model")
    if name == "wpe.weight" and shape[1:] == expected[1:]:
        return f"config.json says n_positions = {expected[0]}; the table has {shape[0]}, say that there"
    return "config.json and the weights don't belong together"
