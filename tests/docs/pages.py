"""The pages, read as Markdown: their code blocks and their tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]

_MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """
    A code block.

    Attributes:
        before: The block before it on the page, if any.
    """

    page: str
    line: int
    language: str
    text: str
    before: "Block | None"

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    """Every code block of every page, fenced or indented."""
    found: list[Block] = []
    for page in PAGES:
        before = None
        for token in _parse(page):
            if token.type in {"fence", "code_block"} and token.map is not None:
                name = page.relative_to(REPOSITORY).as_posix()
                before = Block(name, token.map[0] + 1, token.info.strip(), token.content, before)
                found.append(before)
    return found


def tables(page: str, heading: str | None = None) -> list[list[list[str]]]:
    """The rows of the tables of a page, headers left out; with `heading`, of those right below that heading."""
    current, found = "", []
    for node in SyntaxTreeNode(_parse(DOCS / page)).children:
        if node.type == "heading":
            current = node.children[0].content
        elif node.type == "table" and heading in {None, current}:
            body = next(part for part in node.children if part.type == "tbody")
            found.append([[cell.children[0].content for cell in row.children] for row in body.children])
    return found


def rows(page: str, heading: str | None = None) -> Iterator[list[str]]:
    """The rows of all of them."""
    for table in tables(page, heading):
        yield from table


def names(cell: str) -> list[str]:
    """What stands in a cell as code."""
    return [token.content for token in _MARKDOWN.parseInline(cell)[0].children or () if token.type == "code_inline"]


def _parse(page: Path) -> list[Token]:
    return _MARKDOWN.parse(page.read_text(encoding="utf-8"))
