"""Prompts, masks and saved tokenizers against transformers and TRL.

Needs both: pip install '.[referees]'.
"""

import json
import logging

import numpy as np
import pytest
from small import make_model
from test_prompts import CHAT_TOKENS, make_tokenizer
from test_referee_tokenizer import Folder, random_text

from tinyft import generate, load_model_and_tokenizer, load_tokenizer, save_model, save_tokenizer
from tinyft.data.entries import Entry, Turn
from tinyft.data.instructions import InstructionSet
from tinyft.data.prompts import PROMPT_STYLES, encode_conversation, encode_prompt, end_of_reply, find_style, with_style
from tinyft.losses import IGNORE

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install '.[referees]')")
pytestmark = pytest.mark.referee

CONVERSATIONS = [
    (Turn("user", "What is the capital of France?"), Turn("assistant", "Paris.")),
    (Turn("system", "Be brief."), Turn("user", "One?"), Turn("assistant", "1"), Turn("user", "Größe?", "東京 🙂"),
     Turn("assistant", "The cat sat, and\n\n sat."), Turn("user", "   "), Turn("assistant", "x")),
    (Turn("user", "a"), Turn("assistant", "\n\n\n x \n\n"), Turn("user", "\n\nb"), Turn("assistant", "  "),
     Turn("user", ""), Turn("assistant", "y  ")),
    (Turn("assistant", "Hello."), Turn("user", "Say <|endoftext|> or [PAD]"), Turn("assistant", "a<|im_end|>b\n")),
]


def messages(turns) -> list[dict]:
    return [{"role": turn.role, "content": turn.content} | ({"input": turn.input} if turn.input else {})
            for turn in turns]


def chat_ids(tokenizer, turns, **options) -> list[int]:
    return tokenizer.apply_chat_template(messages(turns), tokenize=True, return_dict=True, **options)["input_ids"]


@pytest.mark.parametrize("style", PROMPT_STYLES)
@pytest.mark.parametrize("added", [(), CHAT_TOKENS], ids=["plain", "chat-tokens"])
def test_apply_chat_template_gives_our_ids(style, added, tmp_path):
    ours = make_tokenizer(tmp_path / "source", added)
    ours = with_style(PROMPT_STYLES[style], ours)
    (tmp_path / "saved").mkdir()
    save_tokenizer(ours, tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for turns in CONVERSATIONS:
        assert chat_ids(theirs, turns) == encode_conversation(turns, PROMPT_STYLES[style], ours)[0]
        asked = turns[:-1]
        assert chat_ids(theirs, asked, add_generation_prompt=True) == encode_prompt(asked, PROMPT_STYLES[style], ours)


@pytest.mark.parametrize("seed", range(6))
def test_saved_tokenizers_of_random_settings_are_read_alike(seed, tmp_path):
    """Byte for byte the same files, the same ids from both, and the same prompt."""
    logging.disable(logging.WARNING)
    read = 0
    for case in range(40):
        rng = np.random.default_rng([seed, case, 1])
        source, saved = tmp_path / f"{case}", tmp_path / f"{case}-saved"
        source.mkdir()
        saved.mkdir()
        made = Folder(rng)
        made.write(source)
        try:
            ours = load_tokenizer(source)
        except ValueError:
            continue
        read += 1
        style = PROMPT_STYLES[str(rng.choice(list(PROMPT_STYLES)))]
        ours = with_style(style, ours)
        save_model(make_model(vocab_size=700, n_embd=2, n_head=1, n_layer=1), ours, saved)
        for path in source.iterdir():
            if path.name != "config.json":
                assert (saved / path.name).read_bytes() == path.read_bytes()
        again, theirs = load_tokenizer(saved), transformers.AutoTokenizer.from_pretrained(saved)
        assert find_style(again) == style
        turns = (Turn("user", random_text(rng)),)
        for text in [random_text(rng) for _ in range(6)]:
            try:
                ids = ours.encode(text)
                prompt = encode_prompt(turns, style, ours)
            except ValueError:
                continue
            assert ids == again.encode(text) == theirs(text)["input_ids"]
            assert chat_ids(theirs, turns, add_generation_prompt=True) == prompt == encode_prompt(turns, style, again)
    assert read > 8


@pytest.mark.parametrize("style", PROMPT_STYLES)
@pytest.mark.parametrize("added", [(), CHAT_TOKENS], ids=["plain", "chat-tokens"])
def test_masks_are_those_of_trl(style, added, tmp_path):
    """Every turn of the assistant with its end is learned, and nothing else: TRL's assistant_only_loss."""
    trl = pytest.importorskip("trl", reason="trl is not installed (pip install '.[referees]')")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (pip install '.[referees]')")
    ours = make_tokenizer(tmp_path / "tokenizer", added)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    theirs.pad_token = "<|endoftext|>"
    # TRL learns what stands between two tags in the template: here a reply with its end.
    before, behind = map(json.dumps, PROMPT_STYLES[style].reply)
    end = json.dumps(end_of_reply(PROMPT_STYLES[style], ours)[0])
    template = PROMPT_STYLES[style].template(ours)
    plain = "{{ " + f"{before} + message['content'] + {end[:-1]}{behind[1:]}" + " }}"
    assert template.count(plain) == 1
    tagged = template.replace(plain, "{{ " + before + " }}{% generation %}{{ message['content'] + " + end
                              + " }}{% endgeneration %}{{ " + behind + " }}")
    conversations = [turns for turns in CONVERSATIONS if turns[0].role != "assistant"]
    data = datasets.Dataset.from_list([{"messages": [{"role": t.role, "content": t.content} for t in turns]}
                                       for turns in conversations])
    config = trl.SFTConfig(output_dir=str(tmp_path / "run"), assistant_only_loss=True, max_length=None, report_to=[],
                           use_cpu=True, bf16=False)
    theirs.chat_template = tagged
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=ours.n_vocab, n_embd=8, n_layer=1,
                                                                  n_head=1, n_positions=512))
    trainer = trl.SFTTrainer(model=model, args=config, train_dataset=data, processing_class=theirs)
    entries = [Entry(tuple(Turn(t.role, t.content) for t in turns)) for turns in conversations]
    instructions = InstructionSet(entries, ours, prompt_style=style, max_length=512)
    for row, example in zip(trainer.train_dataset, instructions.examples, strict=True):
        assert list(row["input_ids"]) == example.ids.tolist()
        assert [label != IGNORE for label in row["labels"]] == example.learned.tolist()


def test_generation_stops_where_transformers_stops(tmp_path):
    """At any of several ends, learned or listed in generation_config.json."""
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install '.[referees]')")
    tokenizer = make_tokenizer(tmp_path / "tokenizer", CHAT_TOKENS)
    model = make_model(vocab_size=tokenizer.n_vocab, n_positions=64)
    save_model(model, tokenizer, tmp_path / "model")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    prompt = tokenizer.encode("The cat sat on the")
    freely = other.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=-1,
                            pad_token_id=0)[0, len(prompt):].tolist()
    first_seen = sorted(set(freely), key=freely.index)
    for ends in ([first_seen[-1]], [first_seen[-1], first_seen[2]], [first_seen[1]], [tokenizer.eot_token]):
        settings = {"bos_token_id": 0, "eos_token_id": ends, "pad_token_id": 0}
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
        ours, again = load_model_and_tokenizer(tmp_path / "model")
        assert set(ends) <= set(again.stop_tokens)
        other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        theirs = other.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt):].tolist()
        got = list(generate(ours, prompt, max_new_tokens=20, stop=again.stop_tokens))
        assert got == [token for token in theirs if token not in ends]
        assert len(got) < 20 or not set(ends) & set(freely)
        save_model(ours, again, tmp_path / "saved")
        saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())["eos_token_id"]
        assert set(ends) <= set(saved if isinstance(saved, list) else [saved])
