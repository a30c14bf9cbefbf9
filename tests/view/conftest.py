"""A real browser, where there is one."""

import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


class Opened:
    """A page in the browser; at the end of a test it must have had no errors and asked for nothing else."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1300, "height": 800}} | options)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def show(self, path):
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")
        self.page.wait_for_selector(".pane p")
        self.settle()

    def _hear(self, said):
        if said.type in ("error", "warning", "assert"):
            self.errors.append(said.text)

    def settle(self):
        """Two frames: what is to be painted is."""
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def marked(self, run=0):
        """The positions marked in the whole text, which is scrolled through."""
        found = self.page.evaluate(
            """async run => {
                const pane = document.querySelectorAll(".pane")[run], found = [];
                for (const paragraph of pane.querySelectorAll("p")) {
                    paragraph.scrollIntoView();
                    for (let n = 0; n < 2; n++) await new Promise(requestAnimationFrame);
                    await new Promise(done => setTimeout(done));
                    for (const mark of paragraph.querySelectorAll("mark"))
                        found.push([Number(mark.dataset.from), Number(mark.dataset.to), mark.textContent]);
                }
                return found;
            }""",
            run,
        )
        return {at: text for start, stop, text in found for at in range(start, stop)}

    def close(self):
        self.context.close()
        assert self.errors == []
        assert len(self.requests) <= 1, self.requests


@pytest.fixture
def opened(browser, tmp_path):
    """Opens records as a page; by keyword what the browser is to be like."""
    pages = []

    def show(*records, **options):
        from keyhole.view import page

        path = tmp_path / f"page-{len(pages)}.html"
        path.write_bytes(page(records))
        pages.append(Opened(browser, **options))
        pages[-1].show(path)
        return pages[-1]

    yield show
    for one in pages:
        one.close()
