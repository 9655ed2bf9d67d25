"""A parser of the package's HTML pages, and a text that needs escaping."""

from __future__ import annotations

from html.parser import HTMLParser

EVIL = """<script>alert("x")</script><img src=x onerror='y'>&amp;"""
_VOID = {"meta"}


class Page(HTMLParser):
    """Checks that every element is closed, and collects elements and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def classes(self, name):
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())
