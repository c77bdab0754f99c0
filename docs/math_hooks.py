"""Turns equations into MathML while the site is built, so that pages need neither scripts nor fonts from elsewhere."""

import html
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex leaves of $x$ and of $$x$$.
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S)


def on_page_content(content: str, **_) -> str:
    """Replaces the equations of a page; an equation that cannot be read stops the build."""
    content = INLINE.sub(lambda match: convert(html.unescape(match[1])), content)
    return BLOCK.sub(lambda match: convert(html.unescape(match[1]), display="block"), content)
