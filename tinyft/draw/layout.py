"""Where the boxes of a graph stand and how its arrows run: by graphviz, or by a layout of our own where it isn't
installed or takes too long.

Ours is the plain form of the usual one (Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical
system structures", 1981): a column for each distance from the leaves, a place in every column that an arrow passes, and
the places of a column in the order of what they hang on.
"""

import shutil
import subprocess
from dataclasses import dataclass

import numpy as np

BOX_WIDTH = 1.5  # in inches, as all lengths here
GAP_ACROSS, GAP_DOWN = 0.9, 0.35  # between columns, and between the boxes of one
PASSING = 0.45  # the height of a place where an arrow only passes
SWEEPS = 8
GRAPHVIZ_SECONDS = 5.0  # a long chain whose nodes all use one leaf would take it minutes


@dataclass
class Arrow:
    """From box to box. number: which of the child's inputs. points: (3 n + 1, 2), of n cubic Bezier curves."""

    child: int
    number: int
    points: np.ndarray
    middle: tuple[float, float]


@dataclass
class Layout:
    """Centres of the boxes, and the arrows."""

    places: list[tuple[float, float]]
    arrows: list[Arrow]


def lay_out(parents: list[list[int]], height: float) -> Layout:
    """Places for boxes of this height. parents: of each box the boxes that it is made of, all of them before it."""
    if shutil.which("dot"):
        try:
            return _by_graphviz(parents, height)
        except (subprocess.SubprocessError, OSError):  # it takes too long, or fails
            pass
    return _by_columns(parents, height)


def _by_graphviz(parents: list[list[int]], height: float) -> Layout:
    lines = [f"digraph {{ rankdir=LR; nodesep={GAP_DOWN}; ranksep={GAP_ACROSS}; "
             f"edge [tailport=e, headport=w]; "
             f"node [shape=box, fixedsize=true, width={BOX_WIDTH}, height={height}]"]
    lines += [f"{i}" for i in range(len(parents))]
    lines += [f"{parent} -> {child} [label={number}]" for child, inputs in enumerate(parents)
              for number, parent in enumerate(inputs)]
    answer = subprocess.run(["dot", "-Tplain"], input="\n".join([*lines, "}"]), capture_output=True, text=True,
                            check=True, timeout=GRAPHVIZ_SECONDS).stdout
    rows = [line.split() for line in answer.splitlines()]
    places = {int(row[1]): (float(row[2]), float(row[3])) for row in rows if row[0] == "node"}
    arrows = []
    for _, _, child, count, *rest in (row for row in rows if row[0] == "edge"):
        points = np.array(rest[: 2 * int(count)], float).reshape(-1, 2)
        # graphviz ends its curve where an arrow's head would begin; ours has the head within.
        points[-1] = places[int(child)][0] - BOX_WIDTH / 2, points[-1][1]
        number, x, y = rest[2 * int(count) :][:3]
        arrows.append(Arrow(int(child), int(number), points, (float(x), float(y))))
    return Layout([places[i] for i in range(len(parents))], arrows)


def _columns(parents: list[list[int]]) -> list[int]:
    """The column of each box: one more than its last parent's; a leaf stands right before what first needs it."""
    column: list[int] = []
    for inputs in parents:
        column.append(1 + max((column[parent] for parent in inputs), default=-1))
    for leaf in (i for i, inputs in enumerate(parents) if not inputs):
        column[leaf] = min((column[child] for child, inputs in enumerate(parents) if leaf in inputs), default=1) - 1
    return column


def _by_columns(parents: list[list[int]], height: float) -> Layout:
    column = _columns(parents)
    stops: dict[tuple[int, int], list[int]] = {}  # of each arrow (child, number): the places that it passes
    neighbours: list[list[int]] = [[] for _ in parents]
    for child, inputs in enumerate(parents):
        for number, parent in enumerate(inputs):
            before = parent
            stops[child, number] = []
            for passed in range(column[parent] + 1, column[child]):
                column.append(passed)
                stops[child, number].append(len(column) - 1)
                neighbours.append([])
                _join(neighbours, before, len(column) - 1)
                before = len(column) - 1
            _join(neighbours, before, child)
    heights = [height if i < len(parents) else PASSING for i in range(len(column))]
    down = _order_columns(column, neighbours, heights)
    places = [(column[i] * (BOX_WIDTH + GAP_ACROSS), down[i]) for i in range(len(column))]
    arrows = [_arrow(parents, child, number, [places[i] for i in (parents[child][number], *passed, child)])
              for (child, number), passed in stops.items()]
    return Layout(places[: len(parents)], arrows)


def _join(neighbours: list[list[int]], one: int, other: int) -> None:
    neighbours[one].append(other)
    neighbours[other].append(one)


def _order_columns(column: list[int], neighbours: list[list[int]], heights: list[float]) -> list[float]:
    """How high each place stands: sweeps over the columns, forth and back, order each by the mean of its neighbours.

    The order with the fewest crossings is kept, of the first ones that have so few.
    """
    members = [[i for i, where in enumerate(column) if where == wanted] for wanted in range(max(column) + 1)]
    down, best, fewest = [0.0] * len(column), None, 0
    for sweep in range(SWEEPS):
        forth = sweep % 2 == 1
        for ours in members if forth else members[::-1]:
            near = {i: [down[j] for j in neighbours[i] if (column[j] < column[i]) == forth] for i in ours}
            ours.sort(key=lambda i: -sum(near[i]) / len(near[i]) if near[i] else -down[i])
            top = (sum(heights[i] for i in ours) + GAP_DOWN * (len(ours) - 1)) / 2
            for i in ours:
                down[i] = top - heights[i] / 2
                top -= heights[i] + GAP_DOWN
        crossings = _crossings(column, neighbours, down)
        if best is None or crossings < fewest:
            best, fewest = list(down), crossings
    return best


def _crossings(column: list[int], neighbours: list[list[int]], down: list[float]) -> int:
    """How many pairs of arrows cross, each between two neighbouring columns."""
    between: dict[int, list[tuple[float, float]]] = {}
    for i, near in enumerate(neighbours):
        between.setdefault(column[i], []).extend((down[i], down[j]) for j in near if column[j] > column[i])
    total = 0
    for arrows in between.values():
        begins, ends = np.array(arrows).reshape(-1, 2).T
        total += np.count_nonzero(np.subtract.outer(begins, begins) * np.subtract.outer(ends, ends) < 0) // 2
    return total


def _arrow(parents: list[list[int]], child: int, number: int, stops: list[tuple[float, float]]) -> Arrow:
    """A smooth curve through the stops; where one parent stands for two inputs, its arrows are bent apart."""
    same = [i for i, parent in enumerate(parents[child]) if parent == parents[child][number]]
    bend = 0.3 * (same.index(number) - (len(same) - 1) / 2)
    # Straight through a place that it passes, as wide as a box, so that curves are only in the gaps.
    xs = [stops[0][0] + BOX_WIDTH / 2]
    ys = [stops[0][1]]
    for x, y in stops[1:-1]:
        xs += [x - BOX_WIDTH / 2, x + BOX_WIDTH / 2]
        ys += [y, y]
    xs.append(stops[-1][0] - BOX_WIDTH / 2)
    ys.append(stops[-1][1])
    points = [(xs[0], ys[0])]
    for i in range(1, len(xs)):
        half = (xs[i - 1] + xs[i]) / 2
        points += [(half, ys[i - 1] + bend), (half, ys[i] + bend), (xs[i], ys[i])]
    low, high = points[-4], points[-1]  # of the last curve: there is one for each input of the child
    middle = low[0] + 0.7 * (high[0] - low[0]), low[1] + 0.78 * (high[1] - low[1]) + 0.6 * bend
    return Arrow(child, number, np.array(points), middle)
