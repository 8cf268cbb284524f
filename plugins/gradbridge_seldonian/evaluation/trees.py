"""The nodes of the engine's parse trees, and what they ask of the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gradbridge.wording import suggestion
from gradbridge_seldonian.engine import BaseNode, ParseTree
from gradbridge_seldonian.evaluation.statistics import classes
from gradbridge_seldonian.outputs import SpecError

#: Statistics of the rows of some labels alone.
_OF_SOME_ROWS = ("FPR", "FNR", "TPR", "TNR", "CM")


def check_columns(tree: ParseTree, columns: Sequence[str], of: str, name: str | None = None) -> None:
    """Refuse a tree, or the base node of a name, that conditions on groups that are not columns of the data."""
    for node in base_nodes(tree):
        for column in node.conditional_columns:
            if column not in columns and name in (None, node.name):
                raise SpecError(
                    f"the constraint {tree.constraint_str!r} conditions on {column!r}, which is not among the "
                    f"sensitive columns of {of}: {', '.join(columns) or 'there are none'}; "
                    f"{suggestion(column, columns)}".rstrip("; ")
                )


def check_pieces(size: int, rows: int, trees: Sequence[ParseTree]) -> None:
    """Refuse a safety test of `rows` rows in pieces of `size`, where the engine cannot put them together.

    What it raises then is swallowed. Nodes that `SweptTree` has set right put them together.
    """
    for node in (node for tree in trees for node in base_nodes(tree) if "zhat" not in vars(node)):
        if size < rows and node.measure_function_name in _OF_SOME_ROWS:
            raise SpecError(
                f"batch_size_safety={size} was asked for with {node.name!r}, and the engine does not put the pieces of "
                f"{', '.join(_OF_SOME_ROWS)} together, which have a number for some rows only. Leave it out; "
                f"SeldonianModel(…, rows_per_chunk={size}) bounds the memory, too"
            )


def check_classes(trees: Sequence[ParseTree]) -> None:
    """Refuse trees of the engine's that name a class: its statistics are not told, and bound something else."""
    for tree in trees:
        for node in base_nodes(tree):
            if classes(node) and "zhat" not in vars(node) and type(node).zhat is BaseNode.zhat:
                raise SpecError(
                    f"the constraint {tree.constraint_str!r} names a class in {node.name!r}, which the engine does not "
                    f"tell its statistic, so that something else would be bounded. Make the specification with "
                    f"gradbridge_seldonian.supervised_spec, which takes parse_trees=, too; it tells them"
                )


def base_nodes(tree: ParseTree) -> Iterator[Any]:
    """The leaves that are statistics of the data; several may be of one name."""
    return (node for node in nodes(tree.root) if isinstance(node, BaseNode))


def nodes(node: Any) -> Iterator[Any]:
    """A node and all below it, from the left to the right."""
    if node is not None:
        yield node
        yield from nodes(node.left)
        yield from nodes(node.right)


def written(tree: ParseTree) -> str:
    """The constraint as the user wrote it; of a tree that does not know it, what the engine's form means."""
    return getattr(tree, "written", None) or f"{tree.constraint_str} <= 0"
