"""The page in a real browser: it marks what was recorded, loads nothing, and can be used by keyboard."""

import numpy as np
import pytest

from keyhole.view import page
from keyhole.view.file import to_json
from tests.view.conftest import Opened
from tests.view.made import made, text_of

EVIL = "<script>window.harmed = 1</script>"
EVIL_WORDS = [EVIL, "</script>", "<img src=x onerror='window.harmed=2'>", "<!--", "&amp;", "]]>", "\u2028"]


def choose(shown, label, value):
    shown.page.get_by_label(label, exact=True).first.select_option(value)
    shown.settle()


def click(shown, step, run=0):
    shown.page.locator(".tokens").nth(run).locator(f'[data-step="{step}"]').click()
    shown.settle()


@pytest.mark.parametrize("block", [1, 8])
def test_a_click_marks_exactly_what_was_read(opened, block):
    record = made(tokens=500, steps=3, layers=3, heads=2, share=0.04, block=block)
    shown = opened(record)
    for step in (2, 0, 1):
        click(shown, step)
        assert sorted(shown.marked()) == record.union(step).tolist()
    choose(shown, "Layer", "2")
    both = np.union1d(record.positions(1, 2, 0), record.positions(1, 2, 1))
    assert sorted(shown.marked()) == both.tolist()
    choose(shown, "KV head", "1")
    assert sorted(shown.marked()) == record.positions(1, 2, 1).tolist()
    choose(shown, "Layer", "")
    every = [record.positions(1, layer, 1) for layer in range(3)]
    assert sorted(shown.marked()) == np.unique(np.concatenate(every)).tolist()
    shown.page.get_by_role("button", name="All", exact=True).click()
    assert sorted(shown.marked()) == record.union(1).tolist()


def test_marks_are_around_the_very_tokens(opened):
    words = ["\U0001f511 ", "caf\u00e9 ", "\u4e2d", "\u6587\n\n"] * 40
    record = made(words=words, share=0.2)
    shown = opened(record)
    text = "".join(shown.page.locator(".pane p").all_text_contents())
    assert text == record.text
    single = {at for at in record.union(0).tolist() if not {at - 1, at + 1} & set(record.union(0).tolist())}
    marked = shown.marked()
    assert single
    assert {at: marked[at] for at in single} == {at: record.token_text(at) for at in single}


def test_numbers_are_those_of_the_record(opened):
    record = made(tokens=400, layers=2, heads=2)
    shown = opened(record)
    click(shown, 1)
    step = record.steps[1]
    said = shown.page.locator(".measures").inner_text()
    assert f"{round(step.counts.mean())} of {step.length} tokens" in said
    assert f"{len(record.union(1))} tokens" in said
    assert f"{100 * (1 - step.missed.mean()):.1f}%, estimated" in said
    assert f"{100 * (1 - step.exact.mean()):.1f}%, exact" in said
    assert "from device" in said


def test_a_span_that_is_sought(opened):
    words = text_of(300)
    words[150:153] = ["purple ", "walrus ", "banjo "]
    record = made(words=words, steps=4, share=0.03)
    shown = opened(record)
    shown.page.get_by_label("Find a span of the text").fill("PURPLE  walrus\nbanjo")
    span = set(range(150, 153))
    steps = [step for step in range(4) if span & set(record.union(step).tolist())]
    said = shown.page.locator(".needle-said").inner_text()
    assert "tokens 150\u2013152" in said
    assert (f"read at {len(steps)} of 4 steps" if steps else "never read") in said
    assert shown.page.locator(".pane .needle").all_inner_texts()
    shown.page.get_by_label("Find a span of the text").fill("no such words")
    assert "does not have it" in shown.page.locator(".needle-said").inner_text()


def test_a_selection_in_the_text_is_sought(opened):
    record = made(tokens=300)
    shown = opened(record)
    shown.page.evaluate(
        """() => {
            const paragraph = document.querySelector(".pane p");
            const node = document.createTreeWalker(paragraph, NodeFilter.SHOW_TEXT).nextNode();
            getSelection().setBaseAndExtent(node, 0, node, 3);
            document.querySelector(".pane").dispatchEvent(new MouseEvent("mouseup", {bubbles: true}));
        }"""
    )
    assert "tokens 0\u20130" in shown.page.locator(".needle-said").inner_text()


def test_text_stays_text(opened):
    words = text_of(60) + [f"{word} " for word in EVIL_WORDS] + text_of(60)
    record = made(words=words, share=0.5, method=EVIL)
    shown = opened(record)
    assert shown.page.evaluate("window.harmed") is None
    assert shown.page.locator("img").count() == 0
    assert shown.page.locator("script:not(.record)").count() == 1
    text = "".join(shown.page.locator(".pane p").all_text_contents())
    assert text == record.text
    assert shown.page.locator(".method").inner_text() == EVIL
    shown.page.get_by_label("Find a span of the text").fill(EVIL)
    assert shown.page.evaluate("window.harmed") is None


def test_two_runs_side_by_side(opened):
    one, other = made(seed=1, share=0.05), made(seed=1, share=0.2, method="snapkv")
    shown = opened(one, other)
    boxes = [box.bounding_box() for box in shown.page.locator(".run").all()]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] + 1
    assert shown.page.locator(".method").all_inner_texts() == ["pqcache", "snapkv"]
    click(shown, 2, run=1)
    for run, record in enumerate((one, other)):
        assert sorted(shown.marked(run)) == record.union(2).tolist()


def test_keyboard(opened):
    record = made(steps=5, layers=3, heads=2)
    shown = opened(record)
    page = shown.page
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(n => n.getAttribute('role') || n.className || n.id || n.type)(document.activeElement)"
            )
        )
    assert "option" in reached
    assert (
        reached.index("theme")
        < reached.index("region")
        < reached.index("option")
        < reached.index("application")
    )
    selected = page.locator('.tokens [aria-selected="true"]')
    selected.focus()
    for key, step in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", 4),
        ("ArrowRight", 4),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        assert selected.get_attribute("data-step") == str(step)
        assert page.evaluate("document.activeElement.dataset.step") == str(step)
    page.get_by_label("Step", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert selected.get_attribute("data-step") == "1"
    page.locator("canvas.grid").first.focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert "layer 1, KV head 1" in page.locator(".said").first.inner_text()
    assert sorted(shown.marked()) == record.positions(1, 1, 1).tolist()


def test_everything_has_a_name(opened):
    shown = opened(made())
    unnamed = shown.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas, [role]")]
            .filter(node => !node.getAttribute("aria-label") && !node.textContent.trim())
            .filter(node => !node.closest("label"))
            .map(node => node.outerHTML)"""
    )
    assert unnamed == []


CONTRAST = """() => {
    const channel = value => {
        const v = value / 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    };
    const light = colour => {
        const [r, g, b] = colour.match(/[0-9.]+/g).map(Number);
        return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    };
    return [1, 2, 3, 4, 5, 6, 7].map(level => {
        const mark = document.createElement("mark");
        mark.dataset.level = level;
        document.querySelector(".pane p").append(mark);
        const { color, backgroundColor } = getComputedStyle(mark);
        mark.remove();
        const [a, b] = [light(color), light(backgroundColor)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(opened, scheme):
    shown = opened(made(), color_scheme=scheme)

    def paper():
        colour = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3

    assert (paper() > 128) == (scheme == "light")
    assert min(shown.page.evaluate(CONTRAST)) >= 4.5
    theme = shown.page.locator("#theme")
    theme.click()
    assert paper() > 128
    theme.click()
    assert paper() < 128
    theme.click()
    assert (paper() > 128) == (scheme == "light")


@pytest.mark.parametrize("runs", [1, 2])
def test_a_narrow_screen(opened, runs):
    record = made(method="snapkv(budget=0.5, window=64) + pqcache(budget=0.1, dense_below=0, kv_dtype=int4)")
    shown = opened(*[record] * runs, viewport={"width": 400, "height": 800})
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 400
    for part in (".tokens", ".pane", ".minimap", ".measures", ".grid", ".passages", ".needle-pane"):
        box = shown.page.locator(part).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400


def test_a_damaged_record_is_said(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes(page([to_json(made()).replace(b'"version":1', b'"version":9')]))
    shown = Opened(browser)
    shown.page.goto(path.as_uri())
    assert "no record of version 1" in shown.page.get_by_role("alert").inner_text()
    shown.close()


def test_a_hundred_thousand_tokens_are_painted_in_two_seconds(browser, tmp_path):
    """Seconds of a processor, of the page's process from its start: other programs do not change them."""
    path = tmp_path / "page.html"
    path.write_bytes(page([made(tokens=100_000, steps=2, layers=8, heads=2, share=0.03)]))
    shown = Opened(browser)
    counters = shown.context.new_cdp_session(shown.page)
    counters.send("Performance.enable", {"timeDomain": "threadTicks"})
    shown.show(path)
    metrics = counters.send("Performance.getMetrics")["metrics"]
    seconds = next(metric["value"] for metric in metrics if metric["name"] == "ProcessTime")
    assert shown.page.locator(".pane mark").count() > 0
    assert 0 < seconds < 2
    shown.close()
