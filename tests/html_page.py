"""An HTML page as a browser finds it, for tests."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr", "source", "wbr"}


class Page(HTMLParser):
    """What a browser finds: tags with attributes, table rows, text. Checks the nesting."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.rows, self.text = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append((dict(attrs), []))
        if tag in ("td", "th"):
            self.rows[-1][1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][1][-1] += data
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def row(self, key, value):
        """The cells of the only table row with this attribute, without extra white space."""
        (found,) = [cells for attrs, cells in self.rows if attrs.get(key) == value]
        return [" ".join(cell.split()) for cell in found]
