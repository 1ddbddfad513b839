"""Turns the formulas of a page into MathML while the site is built: no script from elsewhere is needed.

pymdownx.arithmatex finds the formulas (`$w_t$`, `$$…$$`, in pages and docstrings); latex2mathml converts
them. One that it does not understand is a warning, which a strict build refuses. It knows no `aligned`: use
`align`.
"""

from __future__ import annotations

import html
import logging
import re

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.hooks.mathml")

FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\s*\\[(\[](?P<tex>.*?)\\[)\]]\s*</(?P=tag)>', re.DOTALL)
# What latex2mathml leaves behind where it did not understand: a command's own text, or a bare alignment mark.
LEFT_OVER = re.compile(r"<m[ion]>(?:\\[A-Za-z]+|&|&amp;)</m[ion]>")


def on_page_content(content: str, page, **_) -> str:
    def mathml(found: re.Match[str]) -> str:
        tex = html.unescape(found["tex"]).strip()
        display = "block" if found["tag"] == "div" else "inline"
        try:
            result = convert(tex, display=display)
        except Exception as error:
            log.warning("%s: cannot read the formula %s (%r)", page.file.src_path, tex, error)
            return found[0]
        if LEFT_OVER.search(result):
            log.warning("%s: the formula %s uses what latex2mathml does not know", page.file.src_path, tex)
        return result

    return FORMULA.sub(mathml, content)
