"""Files as text."""

import os
import sys
from io import BytesIO, TextIOWrapper
from threading import Thread

import pytest

from keyhole.documents.text import check_files, html_text, read_texts

PAGE = """<!doctype html><html><head><title>T</title><style>p {}</style></head><body>
<h1>Tides &amp; moons</h1><p>The tide<br>is <b>full</b>,
  tonight.</p><script>if (1 < 2) {}</script><ul><li>one</li><li>two</li></ul></body></html>"""


@pytest.fixture
def file(tmp_path):
    def make(name, data):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path)

    return make


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "naïve café"),
        ("utf-8-sig", "naïve café"),
        ("utf-16", "naïve café"),
        ("utf-32", "naïve café"),
        ("cp1252", "naïve café, “quoted”"),
    ],
)
def test_encodings(file, encoding, text):
    assert read_texts([file("a.txt", text.encode(encoding))]) == text


def test_several_files_are_headed_by_their_names(file):
    both = read_texts([file("a.md", "One.\n"), file("b.txt", "Two.")])
    assert both == "# a.md\n\nOne.\n\n# b.txt\n\nTwo."


def test_pages_lose_what_is_not_shown():
    assert [line for line in html_text(PAGE).split("\n") if line] == [
        "Tides & moons",
        "The tide",
        "is full, tonight.",
        "one",
        "two",
    ]


def test_pages_without_optional_ends_and_with_lines_that_stay():
    page = "<html><head><title>T</title><meta charset=utf-8><body>Seen.<pre>one\n  two</pre></html>"
    assert html_text(page).split() == ["Seen.", "one", "two"]
    assert "one\ntwo" in html_text(page)


def test_pages_are_read_in_the_encoding_they_name(file):
    page = '<html><head><meta http-equiv="x" content="text/html; charset=koi8-r"></head><p>привет</p></html>'
    assert read_texts([file("a.html", page.encode("koi8-r"))]) == "привет"
    assert read_texts([file("b.html", page.encode())]) == "привет"


def test_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=lambda: (tmp_path / "pipe").write_text("from a pipe"))
    writer.start()
    assert read_texts([str(tmp_path / "pipe")]) == "from a pipe"
    writer.join()


def test_pages_are_known_by_name_or_content(file):
    assert read_texts([file("a.htm", "<p>x</p>")]) == "x"
    assert read_texts([file("a", PAGE)]).startswith("Tides & moons")
    assert read_texts([file("a.txt", "a < b <p>")]) == "a < b <p>"


def test_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"from a pipe")))
    assert read_texts(["-"]) == "from a pipe"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.bin", b"\0\1\2\3" * 30, "is binary"),
        ("a.bin", bytes(range(1, 256)) * 9, "binary or of an unknown encoding"),
        ("a.txt", b" \n ", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "begins as utf-16 text and is none"),
    ],
)
def test_what_is_no_text_is_refused_by_name(file, name, data, said):
    with pytest.raises(ValueError, match=said) as refused:
        read_texts([file(name, data)])
    assert name in str(refused.value)


def test_missing_files_and_directories(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        check_files([str(tmp_path / "nope")])
    with pytest.raises(ValueError, match="is a directory"):
        check_files([str(tmp_path)])


def test_pdf(file):
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    writer, data = pypdf.PdfWriter(), BytesIO()
    writer.add_blank_page(100, 100)
    writer.write(data)
    with pytest.raises(ValueError, match="PDF without text"):
        read_texts([file("a.pdf", data.getvalue())])
    assert read_texts([file("b.pdf", one_page("Tide is full"))]).strip() == "Tide is full"
    with pytest.raises(ValueError, match="as PDF"):
        read_texts([file("c.pdf", b"%PDF-1.4 broken")])


def test_pdf_without_a_reader(file, monkeypatch):
    monkeypatch.setattr("keyhole.documents.text.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"keyhole\[pdf\]"):
        check_files([file("a.pdf", b"%PDF-1.4")])


def one_page(text):
    """A PDF of one page that shows a text."""
    stream = f"BT /F1 12 Tf 10 50 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return data + (
        b"xref\n0 6\n0000000000 65535 f \n%strailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF"
        % (table, len(data))
    )
