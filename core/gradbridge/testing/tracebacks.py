"""Where a backend raised, for reports: files and lines, without the kit's own."""

from __future__ import annotations

import pathlib
import traceback
from collections.abc import Iterator, Sequence

_KIT = pathlib.Path(__file__).parent

# As many frames of either end are shown of what calls itself too often.
_ENDS = 12


def of_backend(error: BaseException) -> str:
    """The traceback of an error and of what caused it, the cause first; "" where the kit itself raised it.

    An error that a check made of another one (``raise … from error``) has that one's traceback.
    """
    parts = []
    for each in reversed(list(_chain(error))):
        frames = _frames(each)
        while frames and _is_kit(frames[0]):
            del frames[0]
        if frames and not _is_kit(frames[-1]):
            said = traceback.format_exception_only(each)
            parts.append("".join([*_listed(frames), *said]).rstrip())
    return "\nfrom this came:\n".join(parts)


def whole(error: BaseException) -> str:
    """The traceback of an error, with the kit's own frames: for what a check did not foresee."""
    frames = _frames(error)
    return "".join([*_listed(frames), *traceback.format_exception_only(error)]).rstrip()


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Where an error passed, without the import machinery, whose lines cannot be read."""
    return [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith("<frozen importlib")
        and pathlib.PurePath(f.filename).parts[-2:] != ("importlib", "__init__.py")
    ]


def _listed(frames: Sequence[traceback.FrameSummary]) -> list[str]:
    lines = traceback.format_list(frames)
    left_out = len(lines) - 2 * _ENDS
    if left_out <= 0:
        return lines
    return [*lines[:_ENDS], f"  … {left_out} more …\n", *lines[-_ENDS:]]


def is_of_kit(error: BaseException) -> bool:
    """Whether a check raised it, and not what it checks."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _is_kit(frames[-1])


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        yield each
        seen.add(id(each))
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _is_kit(frame: traceback.FrameSummary) -> bool:
    # Its faulty and its right adapters on paper are backends.
    path = pathlib.Path(frame.filename)
    return _KIT in path.parents and path.parent.name not in ("faulty", "paper") and path.name != "paper.py"
