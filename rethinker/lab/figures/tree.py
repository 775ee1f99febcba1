"""The packed row of a shared-prefix forward pass, drawn: its prefix tree, and which token sees which."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle

from rethinker.lab.figures.output import finish
from rethinker.lab.figures.style import LIGHT, Drawing, Theme, panels, settings
from rethinker.policy.packing import TreeRow

PARTS = ("prompt", "y1", "trigger", "y2")  # of a trajectory; the colours are those of pages.TINTS
PROMPT_WIDTH = 6.0  # of the prompt's box, in tokens: drawn to scale it would leave no room for the tree


def packed_tree(
    row: TreeRow, parts: Sequence[Sequence[str]], decode: Callable[[list[int]], str], theme: Theme = LIGHT
) -> Drawing:
    """The tree of ``row``, which holds one prompt, and its attention mask.

    ``parts``: for each packed response the part ("y1", "trigger", "y2") of each of its tokens; ``decode`` gives the
    text of token ids.
    """
    assert len(set(row.owners)) == 1, "a tree of one prompt"
    size, prompt = len(row.ids_S), row.lasts[0] + 1
    part_S = np.zeros(size, int)
    for path, names in zip(row.paths, parts, strict=True):
        part_S[path] = [PARTS.index(name) for name in names]
    colors = [theme.grey_line, theme.blue, theme.orange, theme.green]
    with matplotlib.rc_context(settings(theme)):
        figure, (left, right) = panels(2, 1.2 + 0.3 * max(len(row.paths), 8))
        _draw_tree(left, row, part_S, colors, decode, theme)
        index_S = np.arange(size)
        sees_SS = (index_S <= index_S[:, None]) & (index_S[:, None] < row.trees.ends_S.numpy())
        right.imshow(np.where(sees_SS, part_S + 1, 0), cmap=ListedColormap([theme.paper, *colors]), vmin=0, vmax=4)
        right.grid(False)
        right.set_title("Which token sees which", pad=8)
        right.set_xlabel("seen token")
        right.set_ylabel("token of the packed row")
        handles = [Patch(color=color, label=name) for name, color in zip(PARTS, colors, strict=True)]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    plain = sum(prompt + len(path) for path in row.paths)
    words = (
        f"One prompt and {len(row.paths)} responses as the trainer packs them: {size} tokens in one row, where a row "
        f"for each response would take {plain}. Left: every common beginning is there once; the last token of a "
        f"response predicts nothing and is left out. Right: the mask; a token sees the prompt and what stands before "
        f"it in its own response, coloured by the part that is seen."
    )
    return finish(Drawing(figure, words), "From the packing itself.")


def _draw_tree(
    axis: Axes,
    row: TreeRow,
    part_S: np.ndarray,
    colors: Sequence[str],
    decode: Callable[[list[int]], str],
    theme: Theme,
) -> None:
    """Runs of tokens of one part that the same responses share, each as a box at the height of these responses."""
    order = sorted(range(len(row.paths)), key=lambda item: tuple(row.paths[item]))
    height = {item: place for place, item in enumerate(order)}
    members: dict[int, list[int]] = {}
    for item, path in enumerate(row.paths):
        for token in path.tolist():
            members.setdefault(token, []).append(item)
    middle = float(np.mean(range(len(order))))
    _box(axis, -PROMPT_WIDTH, PROMPT_WIDTH, middle, colors[0], f"prompt\n{row.lasts[0] + 1} tokens")
    drawn: set[int] = set()  # first tokens of the runs that are drawn
    for path in row.paths:
        at, before = 0, (0.0, middle)
        while at < len(path):
            owners, part = tuple(members[path[at]]), part_S[path[at]]
            stop = at
            while stop < len(path) and tuple(members[path[stop]]) == owners and part_S[path[stop]] == part:
                stop += 1
            y = float(np.mean([height[item] for item in owners]))
            if path[at] not in drawn:
                drawn.add(int(path[at]))
                axis.plot([before[0], at], [before[1], y], color=theme.muted, linewidth=1, zorder=1)
                text = " ".join(decode(row.ids_S[path[at:stop]].tolist()).split())
                room = int(1.6 * (stop - at)) + 1  # letters
                _box(axis, at, stop - at, y, colors[part], text if len(text) <= room else text[: room - 1] + "…")
            at, before = stop, (float(stop), y)
    longest = max(len(path) for path in row.paths)
    axis.set_xlim(-PROMPT_WIDTH - 0.5, longest + 0.5)
    axis.set_ylim(len(order) - 0.4, -0.6)
    axis.set_yticks([])
    axis.grid(False)
    axis.set_title("The tree of the responses", pad=8)
    axis.set_xlabel("tokens after the prompt")


def _box(axis: Axes, x: float, width: float, y: float, color: str, text: str) -> None:
    paper = axis.get_facecolor()
    axis.add_patch(Rectangle((x, y - 0.32), width, 0.64, facecolor=paper, linewidth=0, zorder=2))
    axis.add_patch(Rectangle((x, y - 0.32), width, 0.64, facecolor=color, edgecolor=paper, alpha=0.4, zorder=2))
    axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=7, zorder=3)
