"""`gradbridge new-backend NAME`: an installable package for another framework, with what is to be filled in.

Its files are the templates beside this one: ``$name`` and ``$title`` in their text, ``NAME`` in their paths.
"""

from __future__ import annotations

import importlib.util
import keyword
import os
import pathlib
import re
from string import Template

from gradbridge.errors import OptionError
from gradbridge.option_values import check_options
from gradbridge.registry import Registry, default_registry

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_TEMPLATES = pathlib.Path(__file__).parent / "templates"
_SUFFIX = ".tmpl"


def new_backend(
    name: str, folder: str | os.PathLike[str] | None = None, registry: Registry | None = None
) -> list[pathlib.Path]:
    """Write the package ``gradbridge-NAME``.

    Args:
        name: of the backend: what users will write in ``backend=``. It becomes part of the names of a
            distribution and of a package.
        folder: where; by default ``gradbridge-NAME`` in the working directory. Must not hold files.
        registry: whose names are taken.

    Returns:
        The files written.

    Raises:
        OptionError: the name cannot be or is taken, or the folder holds files.
    """
    check_options(name=name)
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise OptionError(
            f"a backend's name is lower-case letters and digits, with single underscores between them, such as "
            f"'mygrad', and no word of Python; got {name!r}"
        )
    known = registry if registry is not None else default_registry()
    if name in known.names() or name in known.problems:
        raise OptionError(
            f"there is a backend {name!r} already, and a name belongs to one package; choose another"
        )
    package = f"gradbridge_{name}"
    if importlib.util.find_spec(package) is not None:
        raise OptionError(
            f"a package {package} is installed already, and yours would hide it; choose another name"
        )
    root = pathlib.Path(folder if folder is not None else f"gradbridge-{name}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise OptionError(f"{root} exists and is not empty; choose another folder")
    words = {"name": name, "title": name.title().replace("_", "")}
    written = []
    for template in sorted(_TEMPLATES.rglob(f"*{_SUFFIX}")):
        path = str(template.relative_to(_TEMPLATES)).removesuffix(_SUFFIX).replace("NAME", name)
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        filled = Template(template.read_text(encoding="utf-8")).substitute(words)
        target.write_text(filled, encoding="utf-8")
        written.append(target)
    return written
