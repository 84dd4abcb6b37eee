"""The adapter to the harness: what is scored, what is cut, what is written, and what is remembered."""

import copy
import sqlite3

import numpy as np
import pytest
from small import make_model, write_tokenizer

pytestmark = pytest.mark.harness
pytest.importorskip("lm_eval", reason="needs pip install '.[evaluate]'")

from lm_eval.api.instance import Instance  # noqa: E402 - what stands above may skip all this

from tinyft import Engine, load_tokenizer, no_grad  # noqa: E402
from tinyft.data.prompts import PROMPT_STYLES  # noqa: E402
from tinyft.evaluation.known_answers import KnownAnswers, fingerprint  # noqa: E402
from tinyft.evaluation.lm_eval import LEAST_ROOM, TinyftLM  # noqa: E402
from tinyft.inference.cache import GRAIN  # noqa: E402

CONTEXT = 48


@pytest.fixture(scope="module")
def model():
    return make_model(seed=6, n_positions=CONTEXT)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture
def lm(model, tokenizer):
    return TinyftLM(Engine(model), tokenizer)


def asked(*arguments, kind="loglikelihood", task="task"):
    return [Instance(kind, {}, each, i, (task, i, 1)) for i, each in enumerate(arguments)]


def expected(model, context, continuation):
    """(log-probability, whether it is the likeliest) by a whole pass."""
    ids = [*context, *continuation]
    with no_grad():
        logits = model(np.array(ids[:-1])).data[0, len(context) - 1 :].astype(np.float64)
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    total = sum(row[token] for row, token in zip(logits, continuation, strict=True))
    return total, logits.argmax(axis=1).tolist() == list(continuation)


def assert_scored(lm, model, context, continuation, *, pair):
    (total, greedy), = lm.loglikelihood(asked((context, continuation)))
    wanted, likeliest = expected(model, *pair)
    assert total == pytest.approx(wanted, abs=1e-4)
    assert greedy == likeliest


# ---- how likely
@pytest.mark.parametrize("context, continuation", [("The cat", " sat"), ("The cat ", "sat"), ("The cat \n", " sat"),
                                                   ("The c", "at"), ("The cat", "s do"), ("th", "e")])
def test_both_are_encoded_together_and_spaces_belong_to_the_continuation(lm, model, tokenizer, context, continuation):
    stripped = context.rstrip()
    whole, length = tokenizer.encode(context + continuation), len(tokenizer.encode(stripped))
    assert_scored(lm, model, context, continuation, pair=(whole[:length], whole[length:]))


def test_without_a_context_the_end_of_text_stands_before(lm, model, tokenizer):
    ids = tokenizer.encode("The cat sat")
    assert_scored(lm, model, "", "The cat sat", pair=([tokenizer.eot_token], ids))
    end = tokenizer.decode([tokenizer.eot_token])
    assert_scored(lm, model, "", end + "The cat sat", pair=([tokenizer.eot_token], ids))


def test_a_continuation_that_is_empty_is_certain(lm):
    assert lm.loglikelihood(asked(("The cat", ""))) == [(0.0, True)]


def test_what_is_too_long_loses_its_beginning_and_is_counted(lm, model, tokenizer):
    context, continuation = "the cat sat on the mat, " * 20, "and"
    ids = tokenizer.encode(context.rstrip() + " and")
    length = len(tokenizer.encode(context.rstrip()))
    most = CONTEXT + 1
    assert_scored(lm, model, context, continuation, pair=(ids[-most:length], ids[length:]))
    note = lm.notes["task"]
    assert (note.asked, note.cut, note.lost_tokens, note.unscored) == (1, 1, len(ids) - most, 0)
    (total, _), = lm.loglikelihood(asked(("and", context), task="other"))
    ids = tokenizer.encode("and" + context)[-most:]
    assert total == pytest.approx(expected(model, ids[:1], ids[1:])[0], abs=1e-3)
    assert lm.notes["other"].unscored == 1
    assert lm.notes["task"].cut == 1


def test_a_text_that_just_fits_is_not_cut(lm, model, tokenizer):
    ids = tokenizer.encode("the cat sat on the mat, and the other cat sat on the hat. " * 9)[: CONTEXT + 1]
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text) == ids
    context = tokenizer.decode(ids[:5])
    assert_scored(lm, model, context, text[len(context):], pair=(ids[:5], ids[5:]))
    assert lm.notes["task"].cut == 0


def test_is_greedy_is_of_the_whole_continuation(lm, model, tokenizer):
    context = tokenizer.encode("The cat")
    with no_grad():
        best = int(model(np.array(context)).data[0, -1].argmax())
        second = int(model(np.array([*context, best])).data[0, -1].argmax())
    pairs = [(context, [best]), (context, [best, second]), (context, [best, second - 1]), (context, [best - 1, second])]
    assert [greedy for _, greedy in lm._scored(pairs, "")] == [True, True, False, False]


@pytest.mark.parametrize("length", [1, 2, CONTEXT - 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT, 131])
def test_rolling_windows_score_each_token_once(lm, model, tokenizer, length):
    ids = tokenizer.encode("the cat sat on the mat, and the other cat sat on the hat. She'll say so! " * 20)[:length]
    text = tokenizer.decode(ids)
    ids = tokenizer.encode(text)
    (total,) = lm.loglikelihood_rolling(asked((text,), kind="loglikelihood_rolling"))
    wanted = expected(model, [tokenizer.eot_token], ids[:CONTEXT])[0]
    for first in range(CONTEXT, len(ids), CONTEXT):
        end = min(first + CONTEXT, len(ids))
        window = ids[max(0, end - CONTEXT - 1) : end]  # what is new stands at its end
        wanted += expected(model, window[: len(window) - (end - first)], window[len(window) - (end - first) :])[0]
    assert total == pytest.approx(wanted, rel=1e-5)


def test_no_text_at_all(lm):
    assert lm.loglikelihood([]) == lm.loglikelihood_rolling([]) == lm.generate_until([]) == []
    assert lm.loglikelihood_rolling(asked(("",), kind="loglikelihood_rolling")) == [0.0]


def test_choices_cost_one_pass_and_examples_are_read_once(lm):
    examples = "the cat sat on the mat, and the hat sat on the cat, "
    questions = [(examples + text, f" {choice}") for text in ("what", "who", "why") for choice in "ABCD"]
    lm.loglikelihood(asked(*questions))
    counts, lengths = lm.engine.scheduler.counts, [len(lm.tok_encode("".join(each))) for each in questions[::4]]
    assert counts.prompt_tokens == sum(lengths), "four choices are one text"
    assert counts.shared_tokens >= 2 * (len(lm.tok_encode(examples)) - GRAIN)


# ---- what is written
def replies(lm, *prompts, task="task", **options):
    return lm.generate_until(asked(*((prompt, dict(options)) for prompt in prompts), kind="generate_until", task=task))


def test_replies_end_at_stop_strings_in_the_text_and_keep_their_spaces(lm):
    whole, = replies(lm, "The cat", max_gen_toks=20)
    assert len(whole) > 8
    for stop in (whole[3:5], whole[6], whole[2:9]):
        text, = replies(lm, "The cat", max_gen_toks=20, until=[stop, "never seen"])
        assert text == whole[: whole.index(stop)]
    assert replies(lm, "The cat", max_gen_toks=20, until="never seen") == [whole]
    assert replies(lm, "The cat", max_gen_toks=20, until=["", "never seen"]) == [whole]
    assert replies(lm, "The cat", max_gen_toks=20, do_sample=False, temperature=0.0) == [whole]


def test_replies_have_the_room_that_is_left(lm, tokenizer):
    room = CONTEXT // LEAST_ROOM
    ids = tokenizer.encode("the cat sat on the mat. " * 9)
    prompt, longer = (tokenizer.decode(ids[: CONTEXT - room + more]) for more in (0, 2))
    (short,), (long,) = replies(lm, prompt, max_gen_toks=5), replies(lm, prompt, max_gen_toks=1000)
    assert long.startswith(short) and long != short
    note = lm.notes["task"]
    assert (note.asked, note.cut, note.short) == (2, 0, 1)
    replies(lm, longer, max_gen_toks=1000)
    assert (note.asked, note.cut, note.lost_tokens, note.short) == (3, 1, 2, 2), "its beginning, for a quarter of room"
    replies(lm, longer, max_gen_toks=3)
    assert (note.asked, note.cut, note.short) == (4, 1, 2)


def test_an_empty_prompt_is_the_end_of_text(lm, tokenizer):
    assert replies(lm, "", max_gen_toks=5) == replies(lm, tokenizer.decode([tokenizer.eot_token]), max_gen_toks=5)


def test_drawn_replies_depend_on_the_seed_and_the_question_alone(model, tokenizer, tmp_path):
    options = dict(do_sample=True, temperature=1.5, top_k=30.0, max_gen_toks=12)
    path = tmp_path / "answers.sqlite"

    def draw(seed, *questions, known=None):
        lm = TinyftLM(Engine(model), tokenizer, seed=seed, known=known)
        return lm.generate_until([question for each in questions for question in each]), lm

    first = asked(("The cat", options), ("The cat", options), ("The hat", options), kind="generate_until")
    other = asked(("The cat", options), kind="generate_until", task="other")
    (one, two, three), _ = draw(0, first)
    assert len({one, two, three}) == 3
    assert draw(0, other, first[2:], first[:2])[0][1:] == [three, one, two], "whatever is asked beside it"
    assert draw(1, first)[0] != [one, two, three]
    again = [first[0]] * 3  # as a task has it that wants several replies
    (a, b, c), _ = draw(0, again)
    assert a == one and len({a, b, c}) == 3
    assert draw(0, again, known=KnownAnswers(path))[0] == [a, b, c]
    found, lm = draw(0, again, known=KnownAnswers(path))
    assert found == [a, b, c] and lm.known.n_found == 3
    assert draw(1, again, known=KnownAnswers(path))[0] != [a, b, c]


def test_the_same_greedy_question_is_asked_once(lm):
    same = replies(lm, "The cat", "The cat", "The hat", max_gen_toks=9)
    assert same[0] == same[1] and lm.engine.scheduler.counts.new_tokens == 18


def test_replies_have_256_tokens_at_most_by_default(tokenizer):
    lm = TinyftLM(Engine(make_model(seed=6, n_positions=400)), tokenizer)
    replies(lm, "The cat")
    assert lm.engine.scheduler.counts.new_tokens <= 256 < lm.max_length
    assert lm.notes["task"].short == 0


@pytest.mark.parametrize("options, words", [
    ({"do_sample": True, "top_p": 3.0}, "task: its generation_kwargs can't be followed: Sampling: top_p is 3.0"),
])
def test_settings_that_make_no_sense(lm, options, words):
    with pytest.raises(ValueError, match=words):
        replies(lm, "The cat", **options)


def test_settings_without_effect(lm):
    plain = replies(lm, "The cat", max_gen_toks=9)
    assert replies(lm, "The cat", max_gen_toks=9, use_cache=False, num_beams=1) == plain
    assert replies(lm, "The cat", max_gen_toks=9, do_sample=True, top_k=1, temperature=3.0) == plain
    assert len(replies(lm, "The cat", max_gen_toks=9, do_sample=True, top_k=0)[0]) > 0


def test_known_replies_are_short_where_more_was_wanted(model, tokenizer, tmp_path):
    known, room = KnownAnswers(tmp_path / "answers.sqlite"), CONTEXT // LEAST_ROOM
    prompt = tokenizer.decode(tokenizer.encode("the cat sat on the mat. " * 9)[: CONTEXT - room])
    for wanted, short in ((room, 0), (1000, 1)):
        lm = TinyftLM(Engine(model), tokenizer, known=known)
        replies(lm, prompt, max_gen_toks=wanted)
        assert lm.notes["task"].short == short


def test_penalties_and_ends_are_part_of_what_was_asked(model, tokenizer):
    known = KnownAnswers()
    lm = TinyftLM(Engine(model), tokenizer, known=known)
    whole, = replies(lm, "The cat", max_gen_toks=20)
    assert replies(lm, "The cat", max_gen_toks=20, repetition_penalty=9.0) != [whole]
    other = copy.copy(tokenizer)
    other.stop_tokens = (*tokenizer.stop_tokens, tokenizer.encode(whole)[3])
    assert replies(TinyftLM(Engine(model), other, known=known), "The cat", max_gen_toks=20) != [whole]


def test_ids_in_front_come_once(model, tokenizer):
    with_front = copy.copy(tokenizer)
    with_front.bos_tokens = (tokenizer.eot_token,)
    lm = TinyftLM(Engine(model), with_front)
    end, ids = tokenizer.decode([tokenizer.eot_token]), tokenizer.encode("The cat")
    assert lm.prefix_token_id == tokenizer.eot_token
    assert lm.tok_encode("The cat") == lm.tok_encode(end + "The cat") == [tokenizer.eot_token, *ids]
    assert lm.tok_encode("The cat", add_special_tokens=False) == ids


@pytest.mark.parametrize("options", [{"num_beams": 4}, {"typical_p": 0.5}])
def test_settings_that_would_change_the_text_and_are_not_understood(lm, options):
    with pytest.raises(ValueError, match=f"task: its generation_kwargs have {next(iter(options))}, expected"):
        replies(lm, "The cat", **options)


# ---- conversations
@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_chat_templates(model, tokenizer, style):
    jinja2 = pytest.importorskip("jinja2", reason="needs pip install jinja2")
    lm = TinyftLM(Engine(model), tokenizer, prompt_style=style)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A cat?"},
                {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "A hat?"}]
    template = jinja2.Template(lm.chat_template())
    assert lm.apply_chat_template(messages) == template.render(messages=messages, add_generation_prompt=True)
    open_reply = [*messages, {"role": "assistant", "content": "It is a"}]
    text = lm.apply_chat_template(open_reply, add_generation_prompt=False)
    assert text == template.render(messages=messages, add_generation_prompt=True) + "It is a"
    assert style in lm.tokenizer_name or lm.chat_template() in lm.tokenizer_name


# ---- answers that are known
def test_answers_are_kept_and_found_again(model, tokenizer, tmp_path):
    path = tmp_path / "a" / "answers.sqlite"
    questions, prompts = [("The cat", " sat"), ("The cat", " did"), ("", "x")], ["The cat", "The hat"]

    def run(engine):
        lm = TinyftLM(engine, tokenizer, known=KnownAnswers(path))
        found = lm.loglikelihood(asked(*questions)), replies(lm, *prompts, max_gen_toks=60), \
            lm.loglikelihood_rolling(asked(("the cat sat " * 30,), kind="loglikelihood_rolling"))
        return found, {name: vars(note) for name, note in lm.notes.items()}, lm.known.n_found

    first, notes, n_found = run(Engine(model))
    assert n_found == 0
    engine = Engine(model)
    second, same_notes, n_found = run(engine)
    assert engine.scheduler.counts.steps == 0, "nothing is computed"
    assert (second, same_notes) == (first, notes)
    database = sqlite3.connect(path)
    assert database.execute("select count(*) from answers").fetchone() == (n_found,)
    assert n_found > len(questions) + len(prompts)


def test_an_interrupted_run_goes_on(model, tokenizer, tmp_path, monkeypatch):
    path, questions = tmp_path / "answers.sqlite", [("The cat", f" {word}") for word in "sat is was did ate".split()]
    lm = TinyftLM(Engine(model), tokenizer, known=KnownAnswers(path))
    put = lm.known.put

    def break_off(key, value):
        put(key, value)
        other = sqlite3.connect(path)  # what another process sees, whatever happens to this one
        if other.execute("select count(*) from answers").fetchone() == (2,):
            raise KeyboardInterrupt

    monkeypatch.setattr(lm.known, "put", break_off)
    with pytest.raises(KeyboardInterrupt):
        lm.loglikelihood(asked(*questions))
    again = TinyftLM(Engine(model), tokenizer, known=KnownAnswers(path))
    assert again.loglikelihood(asked(*questions)) == TinyftLM(Engine(model), tokenizer).loglikelihood(asked(*questions))
    assert again.known.n_found == 2


def test_another_model_has_other_answers(model, tokenizer):
    engines = [Engine(model), Engine(model, weights="int8"), Engine(make_model(seed=7, n_positions=CONTEXT)),
               Engine(make_model(seed=6, n_positions=CONTEXT, scale_attn_weights=False))]
    for name in ("scales", "plain"):
        engines.append(Engine(model, weights="int8"))
        getattr(engines[-1].weights, name)[0] += 1
    assert len({fingerprint(engine, tokenizer) for engine in engines}) == len(engines)
    assert fingerprint(Engine(model, max_rows=2), tokenizer) == fingerprint(engines[0], tokenizer)


def test_a_file_that_is_no_store_of_answers(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_text("no database, but long enough to be looked at" * 100)
    with pytest.raises(ValueError, match="answers.sqlite: is no store of answers .*; delete it"):
        KnownAnswers(path)
    assert path.read_text().startswith("no database")
