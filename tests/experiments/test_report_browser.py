"""The report in a real browser: what is clicked and typed works, on a phone too, off line."""

import pytest
import report_sample as sample

from pacesetter.experiments.report.html import render

pytestmark = pytest.mark.slow
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(sample.report()), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(browser, address):
    """Opens the report; at the end nothing may have gone wrong or left the page."""
    wrong, contexts = [], []

    def go(*, viewport=DESKTOP, scheme="light", fragment="", scripts=True):
        options = {"color_scheme": scheme, "java_script_enabled": scripts}
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: r.url.startswith(address) or wrong.append(r.url))
        page.goto(address + fragment)
        return page

    yield go
    for context in contexts:
        context.close()
    assert [text for text in wrong if text != "data:,"] == []


def column(page, table, number):
    """Values of a column, from top to bottom, of the rows that can be seen."""
    rows = page.locator(f"#{table} tbody tr:visible")
    return [row.locator("td, th").nth(number).get_attribute("data-value") for row in rows.all()]


def test_sorting_by_mouse_and_by_keyboard(visit):
    page = visit()
    head = page.locator("#all-arms thead th").nth(1)
    first = [float(x) for x in column(page, "all-arms", 1)]
    assert head.get_attribute("aria-sort") == "ascending"
    assert first == sorted(first)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(x) for x in column(page, "all-arms", 1)] == sorted(first, reverse=True)
    names = page.locator("#all-arms thead th").nth(0)
    names.locator("button").focus()
    page.keyboard.press("Enter")
    assert names.get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") is None
    by_name = column(page, "all-arms", 0)
    assert by_name == sorted(by_name, key=str.lower)
    page.keyboard.press("Space")
    assert column(page, "all-arms", 0) == by_name[::-1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system_until_it_is_chosen(visit, scheme):
    page = visit(scheme=scheme)

    def ground():
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return "light" if int(colour.split("(")[1].split(",")[0]) > 127 else "dark"

    other = {"light": "dark", "dark": "light"}[scheme]
    assert ground() == scheme
    page.locator("button.theme").click()
    assert ground() == other
    page.reload()
    assert ground() == other
    page.emulate_media(media="print")
    assert ground() == "light"


def test_one_task_at_a_time(visit):
    page = visit()
    assert page.locator("section.task:visible").count() == 0
    page.locator(".bar select").select_option(index=2)
    assert page.locator("section.task:visible").count() == 1
    assert page.locator("section.task:visible h2.title").inner_text() == sample.TASKS[1]
    assert not page.locator("#overview").is_visible()
    assert page.title().startswith(sample.TASKS[1])
    page.go_back()
    assert page.locator("#overview").is_visible()
    page.locator("#overview a", has_text=sample.TASKS[0]).click()
    assert page.locator("section.task:visible h2.title").inner_text() == sample.TASKS[0]


@pytest.mark.parametrize("fragment", ["", "#task=own-a"])
def test_page_never_scrolls_sideways_on_a_phone(visit, fragment):
    page = visit(viewport={"width": 390, "height": 800}, fragment=fragment)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    width = page.locator("figure img").locator("visible=true").first.bounding_box()["width"]
    assert width > 330  # pixels: its text can be read on a phone
    assert page.locator("section.task:visible").count() == bool(fragment)


def test_every_row_and_task_is_a_switch_away_or_there_without_scripts_and_in_print(visit):
    page, plain = visit(), visit(scripts=False)
    summary = sample.report().summary
    assert len(column(page, "all-arms", 0)) == len(summary.field)
    page.locator("label.more:visible input").first.check()
    assert len(column(page, "all-arms", 0)) == len(summary.entries)
    page.emulate_media(media="print")
    for whole, bar in ((plain, ".live"), (page, ".bar")):
        assert whole.locator("section.task:visible").count() == len(sample.TASKS)
        assert whole.locator(f"{bar}:visible").count() == 0
    assert len(column(plain, "all-arms", 0)) == len(summary.entries)
