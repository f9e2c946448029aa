"""Hook of the site: pages whose text is elsewhere in the repository, so that it is written once.

The home page is the README, `tiny` is its model card, the log is LOG.md, the changelog is CHANGELOG.md, and the command
line reference comes from the code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import reference

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "index.md": "README.md",
    "tiny.md": "customttt/tiny/MODEL_CARD.md",
    "log.md": "LOG.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages of the site and the files that they show."""
PICTURES = {
    "contact-sheet.png": "customttt/tiny/demo/contact-sheet.png",
    "samples.png": "customttt/tiny/samples.png",
}
"""Pictures of the site and where they are."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that are kept elsewhere, and the reference."""
    from mkdocs.structure.files import File

    for name, source in (PAGES | PICTURES).items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "commands.md", content=reference.page()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """A page with its links as they are on the site."""
    name = page.file.src_uri
    return linked(markdown, PAGES.get(name, f"docs/{name}"))


def linked(text: str, source: str) -> str:
    """The text of a file with its links as they are on the site; those to other files become plain text."""
    places = {target: name for name, target in (PAGES | PICTURES).items()}

    def replaced(match: re.Match[str]) -> str:
        mark, label, target, anchor = match.groups(default="")
        if "://" in target:
            return match[0]
        path = (ROOT / source).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
        name = places.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        return f"{mark}[{label}]({name}{anchor})" if name else label

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)", replaced, text)
