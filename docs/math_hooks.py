"""Turns equations into MathML while the site is built, so that pages need neither scripts nor fonts from elsewhere."""

import html
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex leaves of $x$ and of $$x$$.
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S)
# What the converter leaves of a command or an environment that it does not know.
UNKNOWN = re.compile(r"\\\w+|(?<=>)&(?=<)")


def mathml(latex: str, display: str) -> str:
    """An equation in MathML.

    Raises:
      ValueError: if a part of it is unknown to the converter, which would show it as it stands.
    """
    converted = convert(html.unescape(latex), display=display)
    if unknown := UNKNOWN.search(converted):
        raise ValueError(f"The equation {latex.strip()!r} cannot be shown: {html.unescape(unknown[0])!r} is unknown.")
    return converted


def on_page_content(content: str, **_) -> str:
    """Replaces the equations of a page."""
    content = INLINE.sub(lambda match: mathml(match[1], "inline"), content)
    return BLOCK.sub(lambda match: mathml(match[1], "block"), content)
