"""The block nodes of a disk as lines: the one that its requests follow, and where it forks those that part from it."""

from __future__ import annotations

from autopsy.dataclass import dataclass
from autopsy.facts.model.facts import DiskFact, Node

MOST_BRANCHES = 4
BACKUPS = frozenset({"copy-before-write", "backup-top"})


@dataclass(frozen=True, slots=True)
class Branch:
    """Nodes that hang below the `at`th node of the trunk beside its first child; `words` say what they are to it."""

    at: int
    words: str
    nodes: tuple[Node, ...]
    of_backup: bool = False


@dataclass(frozen=True, slots=True)
class BlockLines:
    """The trunk, from the device down, and what parts from it."""

    trunk: tuple[Node, ...]
    branches: tuple[Branch, ...] = ()

    @property
    def every(self) -> tuple[tuple[Node, ...], ...]:
        """Return the nodes of the trunk and of each branch."""
        return (self.trunk, *(branch.nodes for branch in self.branches))


def block_lines(disk: DiskFact) -> BlockLines:
    """Return a disk's nodes as lines; all are one where their children are not known."""
    known = {node.name: node for node in disk.nodes}
    if not disk.nodes:
        return BlockLines(())
    seen: set[str] = set()
    trunk = _down(disk.nodes[0], known, seen)
    branches = [
        Branch(at, _words(node, number), nodes, node.driver in BACKUPS)
        for at, node in enumerate(trunk)
        for number, child in enumerate(node.children[1:], start=2)
        if child in known and child not in seen and (nodes := _down(known[child], known, seen))
    ]
    if len(seen) < len(known):
        return BlockLines(disk.nodes)  # some hang nobody knows where
    return BlockLines(trunk, tuple(branches[:MOST_BRANCHES]))


def _down(node: Node, known: dict[str, Node], seen: set[str]) -> tuple[Node, ...]:
    """Return a node with its first child, that one's first child, and so on."""
    line: list[Node] = []
    here: Node | None = node
    while here is not None and here.name not in seen:
        seen.add(here.name)
        line.append(here)
        here = known.get(here.children[0]) if here.children else None
    return tuple(line)


def _words(node: Node, number: int) -> str:
    if node.driver in BACKUPS:
        return "target of the backup"
    if node.driver in {"quorum", "replication", "blkverify", "blklogwrites"}:
        return f"child {number} of {node.driver}"
    return "backing image"
