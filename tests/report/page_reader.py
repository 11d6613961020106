"""Reads a page strictly, for the tests."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "col", "input"}


class Reader(HTMLParser):
    """A strict reader: every element is closed in order; keeps what the tests ask about."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.text, self.styles, self.scripts = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        kind = self.open[-1] if self.open else ""
        if kind == "script":  # comes in pieces
            self.scripts[-1] += data
        else:
            (self.styles if kind == "style" else self.text).append(data)

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]
