"""The page. Oracle: an HTML parser (balanced, nothing from outside, all text escaped), and Chromium where it is
installed: at 390 x 844, a phone, the document is no wider than the screen.
"""

import base64
import html
import html.parser
import zlib

import numpy as np
import pytest

from jflat.report import Facts, Measured, Picture, Section, Table, figures, write_page

VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def figure():
    return figures.local_energy(np.arange(5), {"SGD": np.ones((3, 5)), "SAM": np.zeros((3, 5))})


EVIL = '<script>alert("1")</script> & <img src="https://example.org/x.png" onerror=alert(1)>'


def sections():
    rows = [[f"method {i}", *(Measured(0.1 * j, 0.01) for j in range(9))] for i in range(4)]
    return [
        Section(EVIL, [EVIL, "word" * 80, Table([EVIL, *map(str, range(9))], rows, caption=EVIL)]),
        Section("Picture", [Picture(figure(), caption=EVIL, alt=EVIL)]),
        Section("Made by", [Facts({"a name" * 20: "value" * 60, "versions": {"jax": "0.10", EVIL: [1, EVIL]}})]),
    ]


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page") / "sub" / "page.html", "A <title> & more", sections())


def test_the_page_parses_and_needs_nothing_from_outside(page_path):
    text = page_path.read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_page_is_made_for_phones_and_readers(page_path):
    text = page_path.read_text(encoding="utf-8")
    page = Page(text)
    attributes = [a for _, a in page.tags]
    assert {"charset": "utf-8"} in attributes
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in attributes
    assert ("html", {"lang": "en"}) in page.tags
    assert "prefers-color-scheme: dark" in text
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2")] == ["h1", "h2", "h2", "h2"]
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == 1
    assert all(a["alt"] for a in images)
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert links == ["#s0", "#s1", "#s2"]
    assert {a["id"] for tag, a in page.tags if tag == "section"} == {"s0", "s1", "s2"}


def test_text_is_escaped_and_survives(page_path):
    page = Page(page_path.read_text(encoding="utf-8"))
    assert "A <title> & more" in page.text
    assert page.text.count(EVIL) == 8  # link, heading, paragraph, column, caption, picture's caption, two facts
    assert sum(EVIL in (a.get("alt") or a.get("aria-label") or "") for _, a in page.tags) == 2


def test_pictures_are_embedded_bit_by_bit(tmp_path):
    path = figures.save_figure(figure(), tmp_path / "a.png", dpi=50)
    for source in (path, path.read_bytes()):
        written = write_page(tmp_path / "page.html", "t", [Section("s", [Picture(source, "c", "a")])])
        image = next(a for tag, a in Page(written.read_text(encoding="utf-8")).tags if tag == "img")
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert content == path.read_bytes()
        size = [round(inches * 50) for inches in figure().get_size_inches()]
        assert [int(image["width"]), int(image["height"])] == pytest.approx(size, abs=1)


def test_a_short_page_has_no_contents_list(tmp_path):
    text = write_page(tmp_path / "page.html", "t", [Section("one", []), Section("two", [])]).read_text(encoding="utf-8")
    assert "<nav" not in text


def test_refusals_leave_the_old_page(tmp_path):
    path = write_page(tmp_path / "page.html", "old", [])
    before = path.read_bytes()
    refused = [
        (Picture(figure(), "c", " "), "alt must say what the picture shows"),
        (Picture(b"GIF89a" + b"0" * 30, "c", "a"), "must be a PNG picture"),
        (Table(["a"], [["1", "2"]]), "must have 1 cells each"),
        (3, "blocks must be text, Table, Picture or Facts; got int"),
    ]
    for block, message in refused:
        with pytest.raises(ValueError, match=message):
            write_page(path, "new", [Section("s", [block])])
    with pytest.raises(FileNotFoundError, match="nothing"):
        write_page(path, "new", [Section("s", [Picture(tmp_path / "nothing.png", "c", "a")])])
    assert path.read_bytes() == before


def pixels(path):
    """(height, width, channels) of an 8-bit PNG without interlacing."""
    content = path.read_bytes()
    width, height = np.frombuffer(content[16:24], ">u4").astype(int)
    channels = {2: 3, 6: 4}[content[25]]
    data, place = b"", 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] == b"IDAT":
            data += content[place + 8 : place + 8 + length]
        place += 12 + length
    assert len(zlib.decompress(data)) == height * (1 + width * channels)
    return height, width


def test_a_phone_shows_the_page_without_sideways_scrolling(page_path, phone_widths):
    view, document, box, table, image = phone_widths(page_path)
    assert view == 390
    assert document <= view
    assert box < view < table  # the wide table scrolls in its own box
    assert 0.85 * view < image < view


def test_a_phone_screenshot_is_taken(page_path, tmp_path, chromium):
    chromium(f"--screenshot={tmp_path / 'shot.png'}", page_path.as_uri())
    assert pixels(tmp_path / "shot.png") == (844, 390)
