"""For hosts that carry nothing but arrays: calls as nodes, described before they run, closed under differentiation.

A `Node` is a function of arrays: a bridge's call, or the gradient of one. Three operations make a host of any
system that lets one define operations of one's own::

    apply(node, operands)                       -> outputs        the model, or a gradient of it
    pull (node, operands, cotangents, wrt)      -> cᵀJ            linear in the cotangents
    push (node, operands, tangents,   wrt)      -> J t            linear in the tangents

They are closed over each other. By its linear argument the derivative of a pull is a push and that of a push a
pull; by the operands it is that of ``apply(node.derivative(…))``, which is a node again. So every order follows.
What a `Run` recorded at an apply serves the pulls and pushes that belong to it: it travels beside the arrays
where the system lets it, and else by its number in the `Store`.
"""

from gradbridge.lifting.host import LiftingHost
from gradbridge.lifting.node import Node, Run, node_of
from gradbridge.lifting.open_sizes import OpenSpec, open_outputs
from gradbridge.lifting.store import Store

__all__ = ["LiftingHost", "Node", "OpenSpec", "Run", "Store", "node_of", "open_outputs"]
