"""Pictures: the numbers behind them exactly, and that they are drawn at all."""

import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small import make_model

from tinyft import Tensor, draw, losses, ops
from tinyft.draw.layout import BOX_WIDTH, lay_out
from tinyft.recompute import recompute
from tinyft.segments import segments_of

pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install -e '.[examples]'")
layout = sys.modules["tinyft.draw.layout"]


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.fixture(params=["graphviz", "our own"])
def places(request, monkeypatch):
    """With places from graphviz, and with our own."""
    if request.param == "graphviz":
        if not shutil.which("dot"):
            pytest.skip("graphviz is not installed")
    else:
        monkeypatch.setattr(layout.shutil, "which", lambda name: None)


# ---- graphs


def small_graph():
    a, b, c = (Tensor(value, requires_grad=True) for value in (2.0, -3.0, 10.0))
    total = a * b + c
    return total * a, {"a": a, "b": b, "c": c, "total": total}


def test_a_graph_shows_values_and_what_comes_back(places):
    loss, names = small_graph()
    found = texts(draw.graph(loss, names))
    boxes = sorted(text for text in found if "\n" in text)
    assert boxes == ["1. mul\n()\ngradient 1", "2. total = add\nvalue 4\ngradient 2", "3. mul\n()\ngradient 2",
                     "a\nvalue 2\ngradient -2", "b\nvalue -3\ngradient 4", "c\nvalue 10\ngradient 2"]
    assert sorted(text for text in found if "\n" not in text) == ["-6", "2", "2", "2", "4", "4"]


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("dot", 10), subprocess.CalledProcessError(1, "dot"),
                                   PermissionError("dot")])
def test_graphviz_that_fails_or_takes_too_long_is_done_without(monkeypatch, error):
    def fail(*_, **__):
        raise error

    parents = [[], [0], [0, 1]]
    monkeypatch.setattr(layout.shutil, "which", lambda name: None)
    ours = lay_out(parents, 0.5).places
    monkeypatch.setattr(layout.shutil, "which", lambda name: "/usr/bin/dot")
    monkeypatch.setattr(layout.subprocess, "run", fail)
    assert lay_out(parents, 0.5).places == ours


def test_drawing_frees_nothing_and_fills_no_gradient():
    loss, names = small_graph()
    draw.graph(loss, names)
    assert all(tensor.grad is None for tensor in names.values())
    draw.graph(loss, names)
    loss.backward()
    assert [names[name].grad.item() for name in "abc"] == [-2, 4, 2]


def test_gradients_of_a_picture_are_those_of_backward(rng):
    """Ops that return functions, donated arrays and None instead of gradients, one value that is used twice."""
    x = Tensor(rng.standard_normal((4, 6)), requires_grad=True)
    table = Tensor(rng.standard_normal((5, 3)), requires_grad=True)
    weight, bias = (Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((6, 3), (3,)))

    def loss():
        hidden = ops.gelu(ops.linear(x, weight, bias))
        return losses.linear_cross_entropy(hidden + hidden, table, np.array([1, -100, 4, 0])) * 3

    names = {"x": x, "table": table, "weight": weight, "bias": bias}
    last = loss()
    found = texts(draw.graph(last, names))
    for each in range(2):  # the picture must not have changed what the real walk finds, nor a second one
        (last if each == 0 else loss()).backward()
        for name, tensor in names.items():
            (line,) = (text for text in found if text.startswith(f"{name}\n"))
            assert line.endswith(f"gradient norm {np.linalg.norm(tensor.grad):.3g}")
            tensor.grad = None


def test_a_graph_of_arrays_shows_shapes_and_no_gradients(rng):
    x = Tensor(rng.standard_normal((2, 3)), requires_grad=True)
    assert sorted(texts(draw.graph(ops.gelu(x), {"x": x}))) == ["", "gelu\n(2, 3)", "x\n(2, 3)"]


def test_a_part_that_is_computed_again_is_not_asked_for_gradients():
    """Its backward pass would fill the parameters' .grad."""
    weight, x = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
    out = recompute(lambda x: x * weight, x)
    assert sorted(texts(draw.graph(out))) == ["", "leaf\nvalue 3", "recompute\n()"] and weight.grad is None
    with pytest.raises(ValueError, match="pass gradients=False"):
        draw.graph(out, gradients=True)


@pytest.mark.parametrize("make, message", [
    (lambda: Tensor(1.0, requires_grad=True), "no graph behind this tensor"),
    (lambda: Tensor(1.0) * 2, "no graph behind this tensor"),
], ids=["leaf", "nothing wanted"])
def test_a_tensor_without_a_graph(make, message):
    with pytest.raises(RuntimeError, match=message):
        draw.graph(make())


def test_a_graph_that_was_freed():
    loss, _ = small_graph()
    loss.backward()
    with pytest.raises(RuntimeError, match="draw it before backward"):
        draw.graph(loss)


def test_a_graph_that_nobody_can_read():
    x = total = Tensor(1.0, requires_grad=True)
    for _ in range(400):
        total = total + x
    with pytest.raises(ValueError, match="more than 300 nodes"):
        draw.graph(total)


def test_arrows_lead_from_box_to_box(places):
    parents = [[], [], [0, 1], [2], [3, 0], [4, 4]]
    found = lay_out(parents, 0.7)
    assert sorted((arrow.child, arrow.number) for arrow in found.arrows) == [
        (child, number) for child, inputs in enumerate(parents) for number in range(len(inputs))]
    for arrow in found.arrows:
        parent = found.places[parents[arrow.child][arrow.number]]
        assert len(arrow.points) % 3 == 1
        assert np.allclose(arrow.points[0], (parent[0] + BOX_WIDTH / 2, parent[1]), atol=0.02)
        assert np.isclose(arrow.points[-1][0], found.places[arrow.child][0] - BOX_WIDTH / 2)


def test_boxes_do_not_overlap_and_long_arrows_pass_beside_them(places):
    parents = [[], [], [0], [2, 1], [3, 0], [4, 0, 1]]
    found = lay_out(parents, 0.7)
    for i, (x, y) in enumerate(found.places):
        for other_x, other_y in found.places[:i]:
            assert abs(x - other_x) > BOX_WIDTH or abs(y - other_y) > 0.7
    for arrow in found.arrows:
        along = np.linspace(0, 1, 20)[:, None]
        for i in range(0, len(arrow.points) - 1, 3):
            p = arrow.points[i : i + 4]
            curve = ((1 - along) ** 3 * p[0] + 3 * (1 - along) ** 2 * along * p[1]
                     + 3 * (1 - along) * along**2 * p[2] + along**3 * p[3])
            for box, (x, y) in enumerate(found.places):
                if box not in (arrow.child, parents[arrow.child][arrow.number]):
                    inside = (abs(curve[:, 0] - x) < BOX_WIDTH / 2) & (abs(curve[:, 1] - y) < 0.3)
                    assert not inside.any()


# ---- inside a model


SETTINGS = [{}, {"scale_attn_by_inverse_layer_idx": True}, {"tie_word_embeddings": False}, {"n_head": 1}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_last_layer_says_what_the_model_says(settings):
    model = make_model(dtype=np.float64, **settings)
    ids = [1, 5, 2, 2, 0]
    inside = draw.look(model, ids, most=4)
    logits = model(np.array(ids)).data[0]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1)[:, :4]
    assert np.array_equal(inside.likeliest[-1], order)
    assert np.allclose(inside.probabilities[-1], np.take_along_axis(probabilities, order, 1))
    assert inside.likeliest.shape == (model.config.n_layer + 1, 5, 4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_attention_mixes_values_to_what_the_op_gives(settings):
    model = make_model(dtype=np.float64, **settings)
    config, ids, caught = model.config, np.array([1, 5, 2, 2, 0]), []
    model.run_blocks(ids, np.arange(5), lambda layer, qkv: (
        caught.append(qkv.data), model.attend_within_rows(segments_of([5]), layer, qkv))[1])
    inside = draw.look(model, ids)
    assert inside.attention.shape == (config.n_layer, config.n_head, 5, 5)
    assert np.allclose(inside.attention.sum(axis=-1), 1) and not np.triu(inside.attention, 1).any()
    for layer, qkv in enumerate(caught):
        values = qkv[:, 2 * config.n_embd :].reshape(5, config.n_head, -1).transpose(1, 0, 2)
        mixed = (inside.attention[layer] @ values).transpose(1, 0, 2).reshape(5, -1)
        assert np.allclose(mixed, model.attend_within_rows(segments_of([5]), layer, Tensor(qkv)).data)


def test_one_token_and_more_words_than_there_are():
    model = make_model()
    inside = draw.look(model, [3], most=10**6)
    assert np.array_equal(inside.attention, np.ones((model.config.n_layer, model.config.n_head, 1, 1)))
    assert inside.likeliest.shape[-1] == model.config.vocab_size


@pytest.mark.parametrize("ids", [[], [[1, 2]], [0] * 1000], ids=["none", "two axes", "too many"])
def test_ids_that_are_no_row(ids):
    with pytest.raises(ValueError, match=r"draw.look: ids are .*, expected one row of 1 to"):
        draw.look(make_model(), ids)


def test_maps_and_lens_are_labelled():
    model = make_model()
    inside = draw.look(model, [1, 2, 3])
    figure = draw.attention_maps(inside, lambda token: f" {token}\n$")
    layers, heads = model.config.n_layer, model.config.n_head
    assert len(figure.axes) == layers * heads and figure.axes[0].get_title() == "head 1"
    (axes,) = draw.attention_maps(inside, lambda token: f" {token}\n$", layers=[0], heads=[1]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["·1⏎$", "·2⏎$", "·3⏎$"]
    figure = draw.lens(inside, lambda token: f"<{token}>")
    assert texts(figure) == [f"<{token}>" for token in inside.likeliest[:, :, 0].reshape(-1)]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][0] == "embeddings"
    figure = draw.lens(inside, lambda token: f"<{token}>", last=2)
    assert texts(figure) == [f"<{token}>" for token in inside.likeliest[:, 1:, 0].reshape(-1)]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["<2>", "<3>"]


# ---- the page


def data_of(path) -> dict:
    text = path.read_text("utf-8")
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])


def test_a_page_holds_everything_and_nothing_breaks_out_of_it(tmp_path):
    inside = draw.look(make_model(), [1, 2, 3], most=2)
    evil = "</script><img src=x onerror=alert(1)>"
    draw.page(tmp_path / "page.html", {evil: inside, "other": inside}, lambda token: f"{evil}{token}", title=evil)
    assert "<img" not in (tmp_path / "page.html").read_text("utf-8")
    data = data_of(tmp_path / "page.html")
    assert data["title"] == evil and data["tokens"] == [f"{evil}{token}" for token in (1, 2, 3)]
    assert [model["name"] for model in data["models"]] == [evil, "other"]
    for level, row in enumerate(data["models"][0]["likeliest"]):
        for position, best in enumerate(row):
            assert best == [[f"{evil}{token}", pytest.approx(share, abs=6e-4)] for token, share in zip(
                inside.likeliest[level, position], inside.probabilities[level, position], strict=True)]


def test_a_page_needs_no_network(tmp_path):
    draw.page(tmp_path / "page.html", {"one": draw.look(make_model(), [1])}, str)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "default-src 'none'" in text and not re.search(r"https?://|src=|href=|@import|url\(", text)


def test_views_of_different_texts_or_too_large(tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="different token ids"):
        draw.page(tmp_path / "page.html", {"a": draw.look(model, [1]), "b": draw.look(model, [2])}, str)
    huge = draw.Inside(np.zeros(600), np.broadcast_to(np.float32(0), (10, 10, 600, 600)), *[np.zeros((11, 600, 1))] * 2)
    with pytest.raises(ValueError, match="the maps of 600 tokens take 36 MB, expected at most 24"):
        draw.page(tmp_path / "page.html", {"a": huge}, str)
    assert not list(tmp_path.iterdir())


SMALL = draw.look(make_model(), [1, 2], most=1)


@pytest.mark.parametrize("wrong, error, message", [
    (lambda: draw.graph(np.ones(3)), TypeError, "draw.graph: got a ndarray, expected the Tensor"),
    (lambda: draw.graph(*small_graph()[:1], {Tensor(1.0): "a"}), TypeError, "names are Tensors by their names"),
    (lambda: draw.look(make_model(), [1.7]), TypeError, "draw.look: ids are float64, expected token ids"),
    (lambda: draw.look(make_model(), [1], most=0), ValueError, "most is 0, expected at least 1"),
    (lambda: draw.attention_maps(SMALL, str, layers=[-1]), ValueError, r"layers are \[-1\], expected some of 0 to"),
    (lambda: draw.attention_maps(SMALL, str, heads=[99]), ValueError, r"heads are \[99\], expected some of 0 to"),
    (lambda: draw.lens(SMALL, str, last=0), ValueError, "last is 0, expected at least 1"),
    (lambda: draw.page("page.html", {}, str), ValueError, "no views, expected at least one model's"),
])
def test_what_cannot_be_drawn_is_said(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_names_are_taken_as_they_are_and_cut_where_they_do_not_fit(places):
    loss, names = small_graph()
    figure = draw.graph(loss, {"$x_{$": names["a"], "a name that no box has room for": names["b"]})
    figure.savefig(io.BytesIO())
    titles = {text.split("\n")[0] for text in texts(figure)}
    assert "$x_{$" in titles and "a name that n\u2026" in titles


def test_the_text_of_a_box_fits_it():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    h, table = (Tensor(np.ones((2, 3)), requires_grad=True) for _ in range(2))
    loss = losses.linear_cross_entropy(h, table, np.array([0, 1]))
    figure = draw.graph(loss, {"the mean of all losses": loss, "hidden": h})
    renderer = FigureCanvasAgg(figure).get_renderer()
    wide = [text.get_window_extent(renderer).width for axes in figure.axes for text in axes.texts]
    assert max(wide) <= BOX_WIDTH * figure.dpi


def test_a_long_token_is_cut_in_a_lens():
    shown = texts(draw.lens(SMALL, lambda token: "abcdefghijklmnop"))
    assert set(shown) == {"abcdefghij\u2026"}
