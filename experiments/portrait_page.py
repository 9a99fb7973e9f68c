"""The page about a policy: generated blocks between marks, and whatever is written around them.

What stands outside of the marks is kept when the page is made again: the interpretation is a
person's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PAGE = "learned-policy.md"
FIGURES = "figures"
"""Folder beside the page."""
BLOCKS = ("facts", "schedules", "probe", "importance", "responses")
"""Names of what is generated, in the order of the page."""
TEMPLATE = """\
# What the policy has learned

How the policy sets learning rate, momentum and clipping, read off its network and its runs. All
tables and figures are made by one command; only the next section is written by hand.

<!-- begin facts -->
<!-- end facts -->

## What it means

Not written yet for this policy.

## Typical schedules

<!-- begin schedules -->
<!-- end schedules -->

## What it makes of a wrong start

<!-- begin probe -->
<!-- end probe -->

## What matters to it

<!-- begin importance -->
<!-- end importance -->

## How it responds

<!-- begin responses -->
<!-- end responses -->
"""
"""A page before it is filled. The marks of a block stand on lines of their own."""


def read_page(path: Path) -> str:
    """The page as it is, or the empty one where there is none.

    Raises:
        ValueError: it lacks the marks of a block.
    """
    page = path.read_text(encoding="utf-8") if path.is_file() else TEMPLATE
    fill_page(page, dict.fromkeys(BLOCKS, ""))
    return page


def fill_page(page: str, blocks: Mapping[str, str]) -> str:
    r"""Puts generated blocks between their marks, and keeps the rest.

    Args:
        page: text with the marks of every block.
        blocks: Markdown by name.

    Raises:
        ValueError: a block's marks are missing, or there more than once.

    >>> fill_page("a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n", {"x": "new"})
    'a\n<!-- begin x -->\n\nnew\n\n<!-- end x -->\nb\n'
    """
    for name, text in blocks.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        if page.count(begin) != 1 or page.count(end) != 1 or end not in rest:
            raise ValueError(
                f"the page needs the lines {begin.strip()!r} and {end!r}, once and in this order, "
                "around what is generated. Put them back, or move the page away to start anew"
            )
        page = f"{before}{begin}\n{text.strip()}\n\n{end}{after}"
    return page
