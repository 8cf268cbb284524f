"""Look at the built site: every link within it leads to a file and to an anchor in it, and it can be searched."""

from __future__ import annotations

import pathlib
import re
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value)
            elif name in ("href", "src"):
                self.links.add(value)


def faults(site: pathlib.Path) -> list[str]:
    """What is wrong with a built site, a sentence each; empty where nothing is."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"there are no pages in {site}"]
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            name = path.relative_to(site)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{name} links to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name} links to {link}, which has no such anchor")
    return found + _search_faults(site)


def _search_faults(site: pathlib.Path) -> list[str]:
    """The index is there, knows every page that was written by hand, and has a word that is on many."""
    index, sources = site / "searchindex.js", site / "_sources"
    if not (site / "search.html").exists() or not index.exists():
        return ["there is no search page, or no index for it"]
    text = index.read_text(encoding="utf-8")
    docnames = re.search(r'"?docnames"?:\s*\[(.*?)\]', text)
    known = set(re.findall(r'"([^"]+)"', docnames.group(1))) if docnames else set()
    pages = {path.relative_to(sources).as_posix().split(".")[0] for path in sources.rglob("*.*")}
    found = [f"the search index does not know the page {name}" for name in sorted(pages - known)]
    return found if "cotang" in text else [*found, "the search index has not the word 'cotangent'"]


def main() -> int:
    """Print what is wrong; the exit code says whether anything is."""
    site = pathlib.Path(sys.argv[1]).resolve()
    found = faults(site)
    print("\n".join(found) or f"all links and anchors of {site.name} hold, and it can be searched")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
