"""Texts that would be more than text in a page, and what a page consists of."""

from __future__ import annotations

from html.parser import HTMLParser

MARKUP = (
    "<script>alert(1)</script>", "</script><script>alert(1)</script><!--", "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>", '" onmouseover="alert(1)', "' onfocus='alert(1)' autofocus='", "javascript:alert(1)",
    "<a href='javascript:alert(1)'>x</a>", "<iframe srcdoc='<script>alert(1)</script>'></iframe>", "]]><b>x</b>",
    "<!--", "-->", "<![CDATA[<script>alert(1)</script>]]>", "&lt;script&gt;alert(1)&lt;/script&gt;", "&#x3c;b&#x3e;",
    "<b", "</div></div></main></body></html><b>", "<base href=//evil.example>", "\u2028</script><b>", "%3Cscript%3E",
    "<link rel=stylesheet href=//evil.example>", "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "${alert(1)}", "{{7*7}}", "$x_1$ \\frac{1}{0}", "<table><tr><td>", "</svg><b>", "a\tb\r\nc", "`onload=alert(1)",
)  # fmt: skip
"""Injections from the usual lists (OWASP's XSS filter evasion), and what upsets templates and TeX."""


class Page(HTMLParser):
    """Which elements with which attributes a page has, and where its links lead."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: set[tuple[str, tuple[str, ...]]] = set()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.elements.add((tag, tuple(sorted(name for name, _ in attrs))))
        self.links += [
            value or "" for name, value in attrs if name in ("href", "src", "action", "srcdoc", "xlink:href")
        ]


def beyond(html: str, plain: Page) -> list[str]:
    """What a page has that the page of the same run with plain words has not: elements, scripts, links elsewhere."""
    page = Page(html)
    found = [f"an element <{tag} {' '.join(names)}>" for tag, names in sorted(page.elements - plain.elements)]
    if page.tags.count("script") != plain.tags.count("script"):
        found.append(f"{page.tags.count('script')} scripts")
    return found + [f"a link to {link[:60]}" for link in page.links if not link.startswith(("#", "data:image/"))]
