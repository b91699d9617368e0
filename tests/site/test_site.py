"""The built documentation in a browser, with no host but its own: `scripts/test_site` runs these tests."""

import functools
import http.server
import re
import shutil
import threading
import zlib
from pathlib import Path

import pytest

import lora_np

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.site

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "_build" / "html"
PAGES = sorted(str(file.relative_to(SITE)) for file in SITE.rglob("*.html") if "_static" not in file.parts)
GALLERY = [page for page in PAGES if page.startswith("gallery/")]
DERIVATIONS = [page for page in PAGES if page.startswith("derivations/") and page != "derivations/index.html"]


class Server(http.server.SimpleHTTPRequestHandler):
    """Says nothing about its requests."""

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    """Where the site is served."""
    handler = functools.partial(Server, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", alone])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser):
    with browser.new_context() as context:
        context.set_default_timeout(10_000)
        yield context


@pytest.fixture
def page(context, address):
    """A page; the test fails if it asked another host for anything, or if anything went wrong in it."""
    page, problems = context.new_page(), []
    watch(page, address, problems)
    yield page
    page.close()
    assert problems == []


def watch(page, address, problems):
    own = (f"{address}/", "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(own) or problems.append(f"asked {request.url}"))
    page.on("response", lambda answer: answer.status in (200, 304) or problems.append(f"{answer.status} {answer.url}"))
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))


def opened(page, address, name):
    """The page, once everything on it has been loaded, formulas included."""
    page.goto(f"{address}/{name}", wait_until="networkidle")
    if page.locator(".math").count():
        page.wait_for_function("window.MathJax?.startup?.promise !== undefined")
        page.evaluate("MathJax.startup.promise.then(() => null)")
    return page


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_without_the_network(page, address, name):
    opened(page, address, name)
    assert page.locator("main, [role=main]").count() == 1
    formulas = page.locator("span.math, div.math").count()
    assert page.locator("mjx-container").count() >= formulas
    assert page.locator("mjx-merror, .MathJax_Error").count() == 0
    broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
    assert broken == []


def test_pages_are_there():
    sources = {file.relative_to(ROOT / "docs").with_suffix(".html") for file in (ROOT / "docs").rglob("*.md")}
    written = {str(page) for page in sources if "_build" not in page.parts}
    assert written
    assert written <= set(PAGES)


@pytest.mark.parametrize("name", DERIVATIONS)
def test_derivation_has_formulas_code_and_a_check(page, address, name):
    opened(page, address, name)
    assert page.locator("mjx-container[display=true]").count() >= 2
    code = " ".join(page.locator("div.highlight").all_inner_texts())
    assert "def " in code
    assert ">>>" in code


def test_notebooks_have_their_pictures(page, address):
    opened(page, address, "tutorials/digits.html")
    assert page.locator("div.cell_output img").count() >= 2


def test_a_button_copies_what_was_typed(page, context, address):
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    opened(page, address, "quickstart.html")
    session = page.locator("div.highlight", has_text=">>> layer, loss = DenseLayer(6, 3").first
    session.locator(".copybtn").click(force=True)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("import numpy as np\nfrom lora_np import")
    assert copied.endswith("< before")
    assert session.locator(".copybtn").inner_text() == "Copied"


def test_output_of_notebooks_has_no_button(page, address):
    opened(page, address, "tutorials/digits.html")
    assert page.locator(".cell_input .copybtn").count() >= 5
    assert page.locator(".cell_output div.highlight").count() >= 3
    assert page.locator(".cell_output .copybtn").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_dark_on_dark_pages_only(page, address, scheme):
    page.emulate_media(color_scheme=scheme)
    opened(page, address, "index.html")
    image = page.locator("article img").first
    assert ("invert" in image.evaluate("image => getComputedStyle(image).filter")) == (scheme == "dark")


def test_the_reference_links_to_sources_and_to_other_sites(page, address):
    opened(page, address, "api/adapters.html")
    assert page.locator('a[href^="https://docs.python.org/3/"]').count() > 10
    page.goto(page.locator('a[href$="#AdditiveAdapter.apply"]').evaluate("link => link.href"))
    assert "def apply(" in page.locator("pre").inner_text()


def test_every_page_of_the_gallery_has_a_thumbnail(page, address):
    opened(page, address, "gallery/index.html")
    cards = page.locator("ul.cards > li")
    assert cards.count() >= 6
    assert cards.locator("a > img").count() == cards.count()
    names = [link.get_attribute("href") for link in cards.locator("a:has(img)").all()]
    assert sorted(f"gallery/{name}" for name in names) == [name for name in GALLERY if "index" not in name]


def test_search_finds_a_page(page, address):
    opened(page, address, "search.html?q=DyLoRAAdapter")
    page.wait_for_selector("#search-results li a")
    links = page.locator("#search-results li a").evaluate_all("links => links.map(link => link.href)")
    assert any("/api/adapters.html" in link for link in links)


def test_what_goes_wrong_is_noticed(context, address):
    """The watch that all other tests rely on."""
    page, problems = context.new_page(), []
    watch(page, address, problems)
    page.goto(f"{address}/index.html")
    page.set_content("<img src='https://example.org/a.png'><img src='/nothing.png'><script>nothing()</script>")
    page.wait_for_load_state("networkidle")
    page.close()
    assert sorted(problem.split()[0] for problem in problems) == ["404", "asked", "script:"]


def test_reference_holds_every_public_name():
    inventory = (SITE / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert lora_np.__all__
    assert [name for name in lora_np.__all__ if f"lora_np.{name}" not in documented] == []


def test_the_cheat_sheet_is_one_page_of_print(page, address):
    opened(page, address, "cheat-sheet.html")
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(prefer_css_page_size=True))) == 1
    page.emulate_media(media="print")
    sheet = page.locator("#cheat-sheet")
    assert sheet.is_visible()
    assert sheet.evaluate("sheet => sheet.scrollWidth <= sheet.clientWidth")
    cut = "blocks => blocks.filter(block => block.scrollWidth > block.clientWidth).length"
    assert sheet.locator("pre, .table-wrapper").evaluate_all(cut) == 0
    assert not page.locator(".sidebar-drawer").is_visible()
