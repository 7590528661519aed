"""What the site needs beyond MkDocs: links into the repository, and formulas without JavaScript.

The Markdown is written to be read in the repository too, where `../jdss/gradients.py` is a link to
a file. On the site such a link goes to the repository's host, and an image is copied. Formulas
become MathML while the site is built (latex2mathml), which browsers draw by themselves: no page
loads a script or a font from anywhere.
"""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = get_plugin_logger("jdss")
ROOT = Path(__file__).resolve().parents[2]
# A Markdown link or image whose target is relative.
_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Expands pages that show a file of the root, and links that leave the documentation."""
    markdown = _with_included(markdown, page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        mark, text, target, anchor = match.groups()
        place = posixpath.normpath(posixpath.join("docs", page.file.src_uri, "..", target))
        if place.startswith("docs/"):
            return match[0]
        if not (ROOT / place).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, place)
            return match[0]
        if mark:
            uri = f"from_repository/{place}"
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / place)))
            here = posixpath.dirname(page.file.src_uri) or "."
            return f"!{text}({posixpath.relpath(uri, here)})"
        kind = "tree" if (ROOT / place).is_dir() else "blob"
        return f"{text}({config.repo_url}/{kind}/main/{place}{anchor or ''})"

    return _LINK.sub(rewrite, markdown)


def _with_included(markdown: str, src_uri: str) -> str:
    """Puts a file of the root, or a section of it, where `<!-- include FILE HEADING -->` stands.

    The section ends before the next heading of its level or above. Links are made relative to the
    page.
    """

    def include(match: re.Match[str]) -> str:
        name, heading = match.groups()
        text = (ROOT / name).read_text(encoding="utf-8")
        if heading:
            level = heading.partition(" ")[0]
            found = re.search(
                rf"^{re.escape(heading)}\n.*?(?=^#{{1,{len(level)}}} |\Z)",
                text,
                re.DOTALL | re.MULTILINE,
            )
            if found is None:
                log.warning("%s includes %s of %s, which is not there", src_uri, heading, name)
                return ""
            text = found[0]

        def relative(link: re.Match[str]) -> str:
            mark, label, target, anchor = link.groups()
            place = posixpath.join(posixpath.dirname(name), target)
            here = posixpath.join("docs", posixpath.dirname(src_uri))
            return f"{mark}{label}({posixpath.relpath(place, here)}{anchor or ''})"

        return _LINK.sub(relative, text)

    return re.sub(r"<!-- include (\S+)(?: ([^>]+?))? -->", include, markdown)


def on_page_content(content: str, page: Page, **_: Any) -> str:
    """Formulas to MathML; a command that the converter does not know is a warning."""

    def to_mathml(match: re.Match[str]) -> str:
        display = "block" if match["tag"] == "div" else "inline"
        latex = html.unescape(match["latex"])
        formula: str = convert(latex, display=display)
        if re.search(r">\\[A-Za-z]+<", formula):
            log.warning("%s has a formula that cannot be shown: %s", page.file.src_uri, latex)
        return f'<{match["tag"]} class="formula">{formula}</{match["tag"]}>'

    return _FORMULA.sub(to_mathml, content)
