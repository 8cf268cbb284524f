"""``host="auto"``: the arrays of a call say whose it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradbridge import trees
from gradbridge.errors import HostError
from gradbridge.host import Host, Hosts

#: ``host=`` where nobody says who calls.
AUTO = "auto"

#: The host of NumPy's arrays.
AUTOGRAD = "autograd"


def host_of_arrays(
    hosts: Hosts, usual: Host, params: Any, inputs: Any, label: str, is_fixed: bool = False
) -> Host:
    """Who calls: what is traced, or has a gradient asked for, decides; where nothing has, the params do.

    Args:
        hosts: where they are found.
        usual: who is meant where no array is anybody's.
        params: of the call; without any the first array of the inputs decides. Arrays of NumPy decide where there are
            no others.
        inputs: a tree. Arrays of other hosts that these do not follow are data.
        label: of the model.
        is_fixed: whether the bridge was made for the usual one.

    Raises:
        HostError: two hosts follow arrays of the call, or another one than it was made for.
        BackendUnavailableError: its host half cannot be had.
    """
    leaves = [leaf for tree in (params, inputs) for leaf in trees.flatten(tree)[0]]
    names = [hosts.host_of(type(leaf)) for leaf in leaves]
    if is_fixed:
        for name, leaf in zip(names, leaves):
            if (
                name not in (None, usual.name)
                and type(leaf) is not np.ndarray
                and hosts.host(name).follows(leaf)
            ):
                raise HostError(_other(usual.name, name, leaf, label))
        return usual
    present = list(dict.fromkeys(name for name in names if name is not None))
    if not present:
        return usual
    halves = {name: usual if name == usual.name else hosts.host(name) for name in present}
    if len(present) == 1:
        return halves[present[0]]
    following = {
        name: leaf for name, leaf in zip(names, leaves) if name is not None and halves[name].follows(leaf)
    }
    if len(following) > 1:
        raise HostError(_two(following, label))
    if following:
        return halves[next(iter(following))]
    of_params = [name for name in names[: len(trees.flatten(params)[0])] if name is not None]
    return halves[next((name for name in of_params if name != AUTOGRAD), (of_params or present)[0])]


def _other(host: str, other: str, leaf: Any, label: str) -> str:
    return (
        f"{label} was bridged with host={host!r} and called with an array that {other} is differentiating "
        f"({_kind(leaf)}), whose gradient would be lost; make the bridge without host=, which serves every system, or hand "
        f"the array over as a constant"
    )


def _two(following: dict[str, Any], label: str) -> str:
    (one, first), (other, second), *_ = following.items()
    return (
        f"{label} was called with arrays of two systems that both differentiate, {one} ({_kind(first)}) and {other} "
        f"({_kind(second)}); one call has one of them: hand the other's over as a constant (NumPy's array of it, "
        f"detached, say), or bridge the part of the program that computes it, so that its gradient goes through"
    )


def _kind(value: Any) -> str:
    return f"a {type(value).__module__.partition('.')[0]}.{type(value).__qualname__}"
