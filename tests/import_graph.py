"""Draws who imports whom: `python -m tests.import_graph --output=notebooks/images/rooms.png`.

A room stands one floor above the highest one that it imports, so every arrow points down.
The last line counts rooms, floors and arrows.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt

from tests.test_rooms import PACKAGE, imported_rooms

COMMAND = "{}, as a command"
"""A room that can be run: its `__main__.py` is an entry point."""
HOUSE = "entry points"
"""The top floor, drawn as one room."""


def import_graph() -> dict[str, set[str]]:
    """The rooms that each room imports; entry points are rooms of their own."""
    graph: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if path.name == "__main__.py":
            room = COMMAND.format(room)
        if room != "__init__":
            graph.setdefault(room, set()).update(imported_rooms(path) - {room})
    return graph


def floors_of(graph: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room, 0 for those that import nothing.

    Raises:
      ValueError: rooms import each other in a circle.
    """
    floors: dict[str, int] = {}

    def visit(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError("rooms import each other in a circle: " + " -> ".join((*above, room)))
        if room not in floors:
            floors[room] = 1 + max((visit(other, (*above, room)) for other in graph[room]), default=-1)
        return floors[room]

    for room in graph:
        visit(room, ())
    return floors


def draw(graph: dict[str, set[str]], path: str) -> None:
    """Draws the rooms by floor, the entry points as one."""
    commands = {COMMAND.format(path.parent.name) for path in PACKAGE.glob("*/__main__.py")}
    entries = {path.stem for path in PACKAGE.glob("*.py")} | commands
    rooms = {room: others - entries for room, others in graph.items() if room not in entries}
    rooms[HOUSE] = set().union(*(graph[room] for room in graph if room in entries)) - entries
    floors = floors_of(rooms)
    places = {}
    for floor in range(max(floors.values()) + 1):
        row = sorted(room for room in rooms if floors[room] == floor)
        places |= {room: ((i + 0.5) / len(row) + 0.03 * (floor % 2), floor) for i, room in enumerate(row)}
    figure, axes = plt.subplots(figsize=(9, 6))
    for room, others in rooms.items():
        for other in others:
            style = dict(arrowstyle="-|>", color="0.55", alpha=0.6, shrinkA=11, shrinkB=11, lw=0.8)
            axes.annotate("", places[other], places[room], arrowprops=style)
    for room, (x, y) in places.items():
        box = dict(boxstyle="round,pad=0.4", facecolor="#e8f0fa", edgecolor="#35618f")
        axes.text(x, y, room, ha="center", va="center", fontsize=10, bbox=box)
    axes.set(xlim=(-0.02, 1.06), ylim=(-0.4, max(floors.values()) + 0.4))
    axes.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Draws and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", default="notebooks/images/rooms.png", help="Where the picture goes.")
    graph = import_graph()
    draw(graph, parser.parse_args().output)
    floors = floors_of(graph)
    for floor in range(max(floors.values()), -1, -1):
        print(f"{floor}  " + ", ".join(sorted(room for room in floors if floors[room] == floor)))
    arrows = sum(len(others) for others in graph.values())
    print(f"{len(graph)} rooms on {max(floors.values()) + 1} floors, {arrows} arrows")


if __name__ == "__main__":
    main()
