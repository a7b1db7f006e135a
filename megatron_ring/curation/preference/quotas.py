"""Which prompt gives which pair, so that quotas are filled and no prompt is used twice.

Cells are rules and kinds of damage, each with room for so many pairs; a prompt fits some of them.
Giving prompts out one by one can end with an empty cell whose prompts all went elsewhere, so they
are moved: this is bipartite matching by augmenting paths, and fills as much as can be filled.
"""

from collections.abc import Collection, Mapping, Sequence


def divide(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """`total` by weights, without a rest; the largest remainders get what is left."""
    weight = sum(shares.values())
    exact = {name: total * share / weight for name, share in shares.items()}
    whole = {name: int(part) for name, part in exact.items()}
    order = sorted(exact, key=lambda name: whole[name] - exact[name])
    for name in order[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


class Assignment:
    """Prompts in cells; more prompts and more cells may follow, and none that is in leaves."""

    def __init__(self) -> None:
        self.cell_of: dict[int, str] = {}
        self._fits: dict[int, tuple[str, ...]] = {}
        self._room: dict[str, int] = {}  # that is left
        self._size: dict[str, int] = {}
        # cell -> other cell -> prompts in the first that fit the second as well, in order
        self._movable: dict[str, dict[str, dict[int, None]]] = {}
        self._reached: dict[str, str | None] = {}  # by the last search

    def open_cells(self, room: Mapping[str, int]) -> None:
        """New cells, with room for so many."""
        for cell, size in room.items():
            self._room[cell] = self._size[cell] = size
            self._movable[cell] = {}

    def close(self, cell: str) -> int:
        """From now on there is no more room in it; what was left."""
        left, self._room[cell] = self._room[cell], 0
        return left

    def place(self, prompts: Sequence[int], fits: Mapping[int, Collection[str]]) -> None:
        """Puts in as many of the prompts as can be, the first ones first.

        `fits` may name cells that are opened later.
        """
        full: set[str] = set()  # cells that nothing can make room in any more
        for prompt in prompts:
            starts = [cell for cell in fits[prompt] if cell in self._room and cell not in full]
            path = self._path(starts)
            if not path:
                full.update(self._reached)
                continue
            self._fits[prompt] = tuple(fits[prompt])
            # From the end: the last cell has room, so the cell before can give one to it.
            for here, there in reversed(list(zip(path, path[1:], strict=False))):
                moved = next(iter(self._movable[here][there]))
                self._take_out(moved)
                self._put_in(moved, there)
            self._put_in(prompt, path[0])

    def restrict(self, prompt: int, cells: Collection[str]) -> None:
        """From now on a prompt that is in stays in these cells."""
        here = self.cell_of[prompt]
        self._take_out(prompt)
        self._fits[prompt] = tuple(cell for cell in self._fits[prompt] if cell in cells)
        self._put_in(prompt, here)

    def _path(self, starts: Sequence[str]) -> list[str]:
        """The shortest chain of cells from one of `starts` to one with room; [] when there is none.

        The emptiest start goes first, so that what is scarce is spread by quota.
        """
        order = sorted(starts, key=lambda cell: self._room[cell] / max(1, self._size[cell]))
        queue = list(reversed(order))
        before: dict[str, str | None] = dict.fromkeys(queue)
        self._reached = before
        for here in queue:
            if self._room[here] > 0:
                path = [here]
                while (last := before[path[0]]) is not None:
                    path.insert(0, last)
                return path
            for there, prompts in self._movable[here].items():
                if prompts and there in self._room and there not in before:
                    before[there] = here
                    queue.append(there)
        return []

    def _put_in(self, prompt: int, cell: str) -> None:
        self.cell_of[prompt] = cell
        self._room[cell] -= 1
        for other in self._fits[prompt]:
            if other != cell:
                self._movable[cell].setdefault(other, {})[prompt] = None

    def _take_out(self, prompt: int) -> None:
        cell = self.cell_of.pop(prompt)
        self._room[cell] += 1
        for other in self._fits[prompt]:
            if other != cell:
                del self._movable[cell][other][prompt]
