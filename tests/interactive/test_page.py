"""The interactive page in a browser: what it shows is what lora_np computes on the same weights.

Run ``python -m pytest -m site tests/interactive``. Needs Playwright, and Chromium: apt-get install chromium.
"""

import re
import shutil

import pytest

from tests.interactive import exported
from tests.interactive.exported import DATA, FOLDER, IMAGES, LABELS, MAX_RANK, TASKS, VIEWS

pytestmark = pytest.mark.site

URL = (FOLDER / "index.html").as_uri()
SEEN = VIEWS[DATA["dylora"]["view"]]
SIZES = {"desktop": (1280, 900), "phone": (360, 740)}


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=SIZES, ids=str)
def page(browser, request):
    """The page from its file, without a network; whatever goes wrong in it fails the test."""
    width, height = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else faults.append(sent.url))
    page.goto(URL)
    yield page
    assert faults == []
    context.close()


def percent(value, digits=1):
    return f"{100 * value:.{digits}f} %"


def pick(page, digit=0, pages=0):
    """Click a held-out digit; returns its index among all."""
    for _ in range(pages):
        page.click("#more")
    button = page.locator("#picker button").nth(digit)
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    return int(button.get_attribute("data-digit"))


def bars(page, name):
    return page.locator(f"#{name}-bars .bar span").all_inner_texts()


def slide(page, rank):
    page.locator("#rank").evaluate(
        "(slider, rank) => { slider.value = rank; slider.dispatchEvent(new Event('input')); }", rank
    )


def test_the_slider_shows_the_accuracy_at_every_rank(page):
    for rank in range(MAX_RANK + 1):
        slide(page, rank)
        assert page.inner_text("#dylora-accuracy") == percent(exported.accuracy(exported.at_rank(SEEN, rank)))
        assert page.locator(".component.on").count() == rank


def test_the_keyboard_moves_the_slider(page):
    page.focus("#rank")
    page.keyboard.press("Home")
    assert page.inner_text("#rank-value").startswith("0, the base alone")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#rank-value").startswith("2 of 8")
    assert page.inner_text("#dylora-accuracy") == percent(exported.accuracy(exported.at_rank(SEEN, 2)))


def test_a_bar_of_the_curve_sets_the_rank(page):
    page.locator("#curve button").nth(6).click()
    assert page.input_value("#rank") == "6"


def test_probabilities_of_a_digit_at_every_rank(page):
    index = pick(page, 3, pages=1)
    for rank in range(MAX_RANK + 1):
        slide(page, rank)
        expected = exported.probabilities(exported.at_rank(SEEN[[index]], rank))[0]
        assert bars(page, "dylora") == [percent(p) for p in expected]
        assert page.inner_text("#dylora-verdict b") == str(expected.argmax())
        right = expected.argmax() == LABELS[index]
        assert page.inner_text("#dylora-verdict span") == ("✓ right" if right else f"✗ wrong: it is a {LABELS[index]}")


def test_the_picker_offers_each_digit(page):
    assert [LABELS[pick(page, digit)] for digit in range(10)] == list(range(10))


def test_every_task_on_every_view(page):
    index = pick(page, 5)
    for view in ["upright", *TASKS]:
        page.check(f"input[name=view][value='{view}']", force=True)
        for task in ["upright", *TASKS]:
            page.check(f"input[name=task][value='{task}']", force=True)
            values = exported.of_task(VIEWS[view], task)
            assert page.inner_text("#multilora-accuracy") == percent(exported.accuracy(values))
            assert page.inner_text("#matrix td.now") == percent(exported.accuracy(values), 0)
            assert bars(page, "multilora") == [percent(p) for p in exported.probabilities(values[[index]])[0]]


def test_the_keyboard_switches_the_task(page):
    page.focus("input[name=task][value=rotated]")
    page.keyboard.press("ArrowRight")
    assert page.is_checked("input[name=task][value=mirrored]")
    expected = exported.accuracy(exported.of_task(VIEWS["rotated"], "mirrored"))
    assert page.inner_text("#multilora-accuracy") == percent(expected)


def drawn(page):
    return page.evaluate("state.pixels")


def test_drawing_with_the_pointer(page):
    pad = page.locator("#pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle[0], middle[1] - box["height"] / 4)
    page.mouse.down()
    page.mouse.move(*middle, steps=5)
    page.mouse.up()
    assert page.inner_text("#input-name") == "Your drawing"
    assert 2 < sum(drawn(page)) < 20
    assert page.inner_text("#dylora-verdict span") == "of your drawing"
    assert page.locator("#picker [aria-pressed=true]").count() == 0
    slide(page, MAX_RANK)
    image = exported.np.array(drawn(page)).reshape(1, 8, 8)
    turned = 1 - exported.np.rot90(image, axes=(1, 2))
    assert bars(page, "dylora") == [percent(p) for p in exported.probabilities(exported.at_rank(turned, MAX_RANK))[0]]


def test_drawing_with_the_keyboard(page):
    page.click("#clear")
    assert sum(drawn(page)) == 0
    page.focus("#pad")
    for key in ("ArrowUp", "Space", "ArrowLeft", "Space", "Delete", "ArrowDown", "Space"):
        page.keyboard.press(key)
    assert [i for i, value in enumerate(drawn(page)) if value] == [19, 26]


def test_a_picked_digit_comes_back_after_a_drawing(page):
    page.click("#clear")
    index = pick(page, 2)
    assert drawn(page) == IMAGES[index].ravel().tolist()


def test_the_numbers_of_the_chosen_component(page):
    index = pick(page, 4)
    slide(page, 5)
    page.locator(".component").nth(2).click()
    layer, x = exported.adapter(DATA["dylora"]), SEEN[index].ravel()
    A, B = layer.lora_layer.matrix_a, layer.lora_layer.matrix_b
    h = x @ A[:, 2]
    unit = abs(h * B[2]).argmax()
    z = layer.base_layer.predict(x)[unit] + (x @ A[:, :5]) @ B[:5, unit]
    shown = [text.replace("−", "-") for text in page.locator("#formula dd").all_inner_texts()]
    assert shown[0].endswith(f"= {h:.2f}")
    assert shown[1].startswith(f"most for unit {unit + 1}: ")
    assert shown[1].endswith(f"= {h * B[2, unit]:.2f}")
    assert shown[2].endswith(f"= {z:.2f}")
    assert shown[3].startswith(f"{max(z, 0):.2f}")


def test_merging_keeps_the_outputs(page):
    index = pick(page, 6)
    slide(page, 4)
    before, after = (page.locator("#merged tbody tr").nth(i).locator("td").all_inner_texts() for i in range(2))
    expected = exported.at_rank(SEEN[[index]], 4)[0]
    assert max(abs(float(text.replace("−", "-")) - value) for text, value in zip(before, expected, strict=True)) < 0.00501
    assert after == before
    assert "2048 + 384 multiplications" in page.inner_text("#merged-words")


def test_training_in_the_browser(page):
    """The bars follow, pausing keeps the state, and the exported adapters come back."""
    exported_accuracy = page.inner_text("#dylora-accuracy")
    page.click("#train")
    page.wait_for_function("training.losses.lora.length >= 2")
    page.click("#train")
    assert page.inner_text("#train") == "Go on"
    done = page.evaluate("training.run.done")
    page.wait_for_timeout(100)
    assert page.evaluate("training.run.done") == done
    page.click("#train")
    page.wait_for_function("document.getElementById('train').textContent === 'Train again'", timeout=120_000)
    losses, accuracies = page.evaluate("training.losses"), page.evaluate("compared.accuracies")
    assert len(losses["lora"]) == len(losses["dylora"]) == 60
    assert losses["lora"][-1] < losses["lora"][0] / 10
    assert accuracies["dylora"][4] > accuracies["svd"][4] > accuracies["slice"][4]
    assert accuracies["dylora"][MAX_RANK] > 0.85
    slide(page, MAX_RANK)
    assert page.inner_text("#dylora-accuracy") == percent(accuracies["dylora"][MAX_RANK])
    assert "Done: 1920 steps, seed 1." in page.inner_text("#training-status")
    page.click("#exported")
    slide(page, 3)
    assert page.inner_text("#dylora-accuracy") == exported_accuracy


def test_sources_are_there_and_links_lead_into_the_site(page):
    links = page.locator("footer a").evaluate_all("links => links.map((link) => link.getAttribute('href'))")
    scripts = page.locator("script").evaluate_all("scripts => scripts.map((script) => script.getAttribute('src'))")
    assert {*scripts} - {"data.js"} <= {*links}
    for link in links:
        if link.endswith(".js"):
            assert (FOLDER / link).is_file()
        elif not link.startswith("https:"):
            assert (FOLDER / link).with_suffix(".md").resolve().is_file()


def test_every_control_has_a_name_and_can_be_reached(page):
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input, canvas[tabindex]")].filter((node) =>
        !(node.ariaLabel || node.innerText || (node.labels && node.labels.length))).length"""
    )
    assert unnamed == 0
    reached = set()
    for _ in range(50):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.parentElement.id"))
    assert {"pad", "clear", "picker", "more", "rank", "curve", "components", "train", "new-seed"} <= reached
    assert any(name.startswith("task-") for name in reached)


def test_nothing_is_wider_than_the_window(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser, scheme):
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(URL)

    def colour(selector, name):
        text = page.evaluate("([s, n]) => getComputedStyle(document.querySelector(s))[n]", [selector, name])
        return [int(part) / 255 for part in re.findall(r"\d+", text)[:3]]

    def luminance(rgb):
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    back = luminance(colour(".card", "backgroundColor"))
    assert (back > 0.5) == (scheme == "light")
    for selector in ("h2", ".help", "#rank-value", ".good, .bad", "#dylora-bars .bar span", "#curve button"):
        front = luminance(colour(selector, "color"))
        contrast = (max(front, back) + 0.05) / (min(front, back) + 0.05)
        assert contrast >= 4.5, (selector, contrast)  # WCAG 2.1, success criterion 1.4.3
    context.close()
