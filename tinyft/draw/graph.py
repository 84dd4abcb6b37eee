"""The graph behind a Tensor as a picture: a box for each op and each leaf, an arrow for each input.

A node keeps no result, only what its backward pass needs, so that a box has a value where the tensor is named.
Gradients are formed for the picture by the nodes' own backward functions; nothing is freed and no `.grad` changes.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..tensor import Donated, Node, Tensor
from .figures import clipped, new_figure
from .layout import BOX_WIDTH, Layout, lay_out

MOST_NODES = 300
LONGEST_NAME = 14  # letters of a tensor's name
FONT_SIZE, LETTERS = 9, 20  # a line of so many letters fits a box at this size, and a longer one is set smaller
BOX_HEIGHT, LINE_HEIGHT = 0.34, 0.2  # in inches: of a box with one line, and of each line more
LEAF, OP, EDGE, FLOW = "#e8f0fe", "#fff4dc", "#5f6b7a", "#b3261e"


@dataclass
class Box:
    """What is drawn of one node or leaf. gradient: the sum of what its arrows bring, None where none is asked for."""

    lines: list[str]
    is_leaf: bool
    parents: list[int] = field(default_factory=list)  # indices of boxes, in the order of the op's inputs
    flows: list[np.ndarray | None] = field(default_factory=list)  # what goes back to each parent
    gradient: np.ndarray | None = None


def graph(last: Tensor, names: Mapping[str, Tensor] | None = None, *, gradients: bool | None = None):
    """Draw the graph that ends in `last`, from left to right; a matplotlib Figure.

    names: tensors to be called by name; where such a one has a single element, its value is shown. gradients: whether
    to show d last / d box, with what comes back along each arrow, and to number the ops in the order of the backward
    pass; by default where `last` has a single element. graphviz places the boxes if it is installed. RuntimeError for
    a tensor without a graph, or whose graph a backward pass has freed; ValueError for more than MOST_NODES boxes, or
    gradients of a part that is computed again in the backward pass.
    """
    if not isinstance(last, Tensor):
        raise TypeError(f"draw.graph: got a {type(last).__name__}, expected the Tensor that the graph ends in")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in dict(names or {}).items()):
        raise TypeError('draw.graph: names are Tensors by their names, expected {"x": x}')
    if last.node is None or last.node.backward is None:
        raise RuntimeError("draw.graph: there is no graph behind this tensor, expected one that an op made of a tensor "
                           "with requires_grad=True; draw it before backward(), which frees the graph")
    order = _in_order(last.node)
    impure = {node.op for node in order if isinstance(node, Node)} & {"recompute", "when_passed"}
    if gradients and impure:
        raise ValueError(f"draw.graph: the backward pass of {', '.join(impure)} does more than return gradients, so "
                         "that a picture can't call it; pass gradients=False, or switch model.recompute off")
    if gradients is None:
        gradients = last.size == 1 and not impure
    boxes = _boxes(order, {id(t.node or t): (name, t) for name, t in (names or {}).items()})
    if gradients:
        _add_gradients(order, boxes, np.ones(last.shape, last.dtype))
    return _paint(boxes, lay_out([box.parents for box in boxes], max(map(_height, boxes))))


def _in_order(last: Node) -> list[Node | Tensor]:
    """Leaves and nodes, parents before children."""
    found: dict[int, Node | Tensor] = {}
    waiting: list[Node | Tensor] = [last]
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            if isinstance(one, Node):
                waiting.extend(parent for parent in one.parents if parent is not None)
        if len(found) > MOST_NODES:
            raise ValueError(f"draw.graph: more than {MOST_NODES} nodes, which nobody can read; draw a part, such as "
                             "one layer, or a smaller example")
    leaves = [one for one in found.values() if isinstance(one, Tensor)]
    return leaves + sorted((one for one in found.values() if isinstance(one, Node)), key=lambda node: node.order)


def _boxes(order: list[Node | Tensor], named: dict[int, tuple[str, Tensor]]) -> list[Box]:
    """Boxes in the same order, without gradients."""
    index = {id(one): i for i, one in enumerate(order)}
    boxes = []
    for one in order:
        name, tensor = named.get(id(one), ("", one if isinstance(one, Tensor) else None))
        is_leaf = isinstance(one, Tensor)
        name = clipped(name, LONGEST_NAME)
        title = (name or "leaf") if is_leaf else f"{name} = {one.op}" if name else one.op
        known = tensor is not None and tensor.size == 1
        lines = [title, f"value {tensor.item():.4g}" if known else str(one.shape)]
        parents = [] if is_leaf else [index[id(parent)] for parent in one.parents if parent is not None]
        boxes.append(Box(lines, is_leaf, parents))
    return boxes


def _add_gradients(order: list[Node | Tensor], boxes: list[Box], gradient: np.ndarray) -> None:
    """The walk of `Tensor.backward`, without freeing: from the last node made to the first, each once.

    A node's children were all made after it, so that its gradient is complete when its turn comes.
    """
    boxes[-1].gradient = gradient
    for node, box in zip(reversed(order), reversed(boxes), strict=True):
        if isinstance(node, Tensor) or box.gradient is None:
            continue
        found = node.context.run(node.backward, box.gradient)
        found = found if isinstance(found, tuple) else (found,)
        wanted = [(parent, one) for parent, one in zip(node.parents, found, strict=True) if parent is not None]
        box.flows = [_as_array(one, parent) for parent, one in wanted]
        for parent, flow in zip(box.parents, box.flows, strict=True):
            if flow is not None:
                so_far = boxes[parent].gradient
                boxes[parent].gradient = flow if so_far is None else so_far + flow
    visits = itertools.count(1)
    for box in reversed(boxes):
        if box.gradient is not None:
            box.lines.append(f"gradient {_short(box.gradient)}")
            if not box.is_leaf:
                box.lines[0] = f"{next(visits)}. {box.lines[0]}"


def _as_array(gradient, like: Node | Tensor) -> np.ndarray | None:
    """A gradient in any of the forms that a backward function may return, as an array of its own."""
    if gradient is None:
        return None
    if callable(gradient):
        into = np.empty(like.shape, like.dtype)
        gradient(into, False)
        return into
    return np.array(gradient.array if isinstance(gradient, Donated) else gradient)


def _short(array: np.ndarray) -> str:
    """A number, or of several the norm."""
    return f"{array.item():.4g}" if array.size == 1 else f"norm {np.sqrt(np.sum(array * array)):.3g}"


def _height(box: Box) -> float:
    return BOX_HEIGHT + LINE_HEIGHT * (len(box.lines) - 1)


def _flow_text(box: Box, number: int) -> str:
    return "" if not box.flows or box.flows[number] is None else _short(box.flows[number])


def _paint(boxes: list[Box], layout: Layout):
    """Boxes and arrows; the units are inches, so that text fits however large the graph is."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    from matplotlib.path import Path

    across, down = np.concatenate([np.array(layout.places), *(arrow.points for arrow in layout.arrows)]).T
    (left, right), (low, high) = ((axis.min(), axis.max()) for axis in (across, down))
    edge_x, edge_y = BOX_WIDTH / 2 + 0.15, max(map(_height, boxes)) / 2 + 0.15
    figure = new_figure(right - left + 2 * edge_x, high - low + 2 * edge_y)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(left - edge_x, right + edge_x)
    axes.set_ylim(low - edge_y, high + edge_y)
    axes.axis("off")
    for box, (x, y) in zip(boxes, layout.places, strict=True):
        height = _height(box)
        axes.add_patch(FancyBboxPatch((x - BOX_WIDTH / 2, y - height / 2), BOX_WIDTH, height, linewidth=1,
                                      boxstyle="round,pad=0,rounding_size=0.06", edgecolor=EDGE,
                                      facecolor=LEAF if box.is_leaf else OP))
        axes.text(x, y, "\n".join(box.lines), ha="center", va="center", linespacing=1.4, parse_math=False,
                  fontsize=FONT_SIZE * min(1, LETTERS / max(map(len, box.lines))))
    for arrow in layout.arrows:
        path = Path(arrow.points, [Path.MOVETO, *[Path.CURVE4] * (len(arrow.points) - 1)])
        axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=10, color=EDGE, linewidth=1,
                                       fill=False))
        axes.text(*arrow.middle, _flow_text(boxes[arrow.child], arrow.number), ha="center", va="center", fontsize=8,
                  color=FLOW, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    return figure
