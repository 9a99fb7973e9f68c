"""The manual builds without a warning, needs no network, has no dead link, and says what is true.

It is built once. What only a browser can tell is left out where there is none.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from pacesetter.agent import load_policy
from pacesetter.envs.actions import ACTION_NAMES
from pacesetter.envs.features import FEATURES, NUM_FEATURES
from pacesetter.envs.rewards import REWARD_FORMS
from pacesetter.experiments.cli.main import make_parser
from pacesetter.experiments.presets import PRESETS
from pacesetter.experiments.rivals.baselines import arm_names

ROOT = Path(__file__).parent.parent
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PHONE, DESKTOP = {"width": 375, "height": 800}, {"width": 1280, "height": 900}
OTHERS = {"benchmark/report.html"}  # pages that are not made by MkDocs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("site"),
    pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra `docs`"),
]
LOADS = {  # what a browser fetches by itself
    **dict.fromkeys(("img", "script", "iframe", "embed", "source", "video", "audio"), "src"),
    **dict.fromkeys(("image", "use"), "href"),
    "object": "data",
}
FETCHED = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "manifest", "prefetch"}


class Page(HTMLParser):
    """What is linked to, loaded and named on one page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.loads, self.ids, self.text = path, [], [], set(), []
        self._style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in attrs}
        self._style = tag == "style"
        self.ids |= {attrs[name] for name in ("id", "name") if name in attrs}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag in LOADS and LOADS[tag] in attrs:
            self.loads.append(attrs[LOADS[tag]])
        if tag == "link" and set(attrs.get("rel", "").split()) & FETCHED:
            self.loads.append(attrs["href"])
        self.loads += [part.split()[0] for part in attrs.get("srcset", "").split(",") if part]
        self.loads += in_css(attrs.get("style", ""))

    def handle_data(self, data):
        self.text.append(data)
        if self._style:
            self.loads += in_css(data)

    def says(self):
        return " ".join(" ".join(self.text).split())


def in_css(text):
    """Addresses that a style sheet loads; pictures within it are none."""
    found = re.findall(r"url\(\s*['\"]?([^'\")]+)", text) + re.findall(
        r"@import\s+['\"]([^'\"]+)", text
    )
    return [address for address in found if not address.startswith(("data:", "#"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    shutil.rmtree(ROOT / ".typecheck" / "pacesetter", ignore_errors=True)  # as in a fresh clone
    done = subprocess.run(  # --quiet would hide warnings from --strict as well
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    assert "Documentation built" in done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    paths = (path for path in site.rglob("*.html") if path.name != "404.html")
    return {path.relative_to(site).as_posix(): Page(path) for path in paths}


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        for address in page.loads:
            if address.startswith(("data:", "#")):
                continue
            assert not urlsplit(address).netloc, f"{name} loads {address}"
            assert not urlsplit(address).scheme, f"{name} loads {address}"
            assert (page.path.parent / unquote(urlsplit(address).path)).is_file(), (name, address)
    for sheet in site.rglob("*.css"):
        for address in in_css(sheet.read_text(encoding="utf-8")):
            assert "//" not in address, f"{sheet.name} loads {address}"
            assert (sheet.parent / unquote(urlsplit(address).path)).is_file(), (sheet.name, address)
    # The theme's own program would fetch this one from the network, for diagrams that ask for it.
    assert not [name for name, page in pages.items() if 'class="mermaid' in page.path.read_text()]


def test_no_link_is_dead(site, pages):
    known = {page.path.resolve(): page.ids for page in pages.values()}
    dead, count = [], 0
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in {"http", "https", "mailto", "data", "javascript"} or name in OTHERS:
                continue
            count += 1
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else None
            target = target or page.path.resolve()
            if parts.scheme or parts.netloc or not target.is_file():
                dead.append(f"{name}: {link}")
            elif parts.fragment and target in known:
                anchor = unquote(parts.fragment)
                if anchor not in known[target] and not anchor.startswith("__"):
                    dead.append(f"{name}: {link} (no such place)")
    assert dead == []
    assert count > 500


def test_every_feature_action_and_bound_is_told(pages):
    text = pages["reference/decision-process.html"].says()
    for feature in FEATURES:
        meaning = " ".join(feature.meaning.split())
        assert f"{feature.name} {meaning} {feature.centre:g} {feature.scale:g}" in text
    for name in (*ACTION_NAMES, *REWARD_FORMS, "improvement"):
        assert name in text


def test_drawings_tell_the_sizes_of_the_shipped_policy(pages):
    text = pages["how-it-works.html"].says()
    sizes = [len(bias) for _, bias in load_policy("default").layers]
    assert f"{NUM_FEATURES} statistics" in text
    assert sizes == [64, 64, len(ACTION_NAMES)]
    assert "two layers of 64; three answers" in text


def commands(parser, name):
    """All parsers below one, itself included, by the name of the command."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from commands(sub, f"{name} {word}")


def test_every_command_and_option_is_told(pages):
    page = pages["reference/command-line.html"]
    for name, parser in commands(make_parser(), "pacesetter"):
        assert name.replace(" ", "-") in page.ids or name == "pacesetter"
        for action in parser._actions:
            for option in action.option_strings:
                assert option in page.says() or option in {"-h", "--help"}


def test_every_arm_and_preset_is_told(pages):
    assert not [name for name in arm_names() if name not in pages["reference/rivals.html"].says()]
    assert not [name for name in PRESETS if name not in pages["reference/settings.html"].says()]


@pytest.mark.parametrize("package", ["agent", "envs", "inner_models"])
def test_every_public_name_is_in_the_reference(pages, package):
    module = import_module(f"pacesetter.{package}")
    page = pages[f"api/{package.replace('_', '-')}.html"]
    for name in module.__all__:
        where = getattr(module, name)
        home = getattr(where, "__module__", module.__name__)
        where = f"{home}.{getattr(where, '__qualname__', name)}"
        assert where in page.ids or f"pacesetter.{package}.task.{name}" in page.ids, where


def test_search_index_has_every_page(site, pages):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    words = defaultdict(str)
    for entry in index["docs"]:
        words[entry["location"].partition("#")[0] or "index.html"] += entry["text"]
    assert set(words) == set(pages) - OTHERS
    assert "hypergradient" in words["reference/decision-process.html"]
    assert (site / "search" / "search_index.js").is_file()  # what is read from the disk


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs the package playwright, of the extra `browser`"
    )
    if CHROMIUM is None:
        pytest.skip("needs Chromium; none is on the PATH")
    with playwright.sync_playwright() as found:
        chromium = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, site):
    """Opens a page from the disk; at the end nothing may have gone wrong or been fetched."""
    wrong, contexts = [], []
    home = site.as_uri()

    def go(name, *, viewport=DESKTOP, scheme="light", page=None):
        if page is None:
            context = browser.new_context(viewport=viewport, color_scheme=scheme)
            context.set_default_timeout(120_000)
            contexts.append(context)
            page = context.new_page()
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on(
                "request",
                lambda request: (
                    None
                    if request.url.startswith((home, "data:", "about:"))
                    else wrong.append(request.url)
                ),
            )
        page.goto(f"{home}/{name}")
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []


def test_search_finds_from_the_disk(visit):
    page = visit("glossary.html")
    field = page.locator("input.md-search__input")
    field.click()
    field.press_sequentially("hypergradient")
    hit = page.locator("a.md-search-result__link").first
    hit.wait_for(state="visible")
    with page.expect_navigation():
        hit.click()
    assert "hypergradient" in page.locator("main").inner_text().lower()


@pytest.mark.parametrize("folder", ["", "tutorials", "reference", "api", "benchmark"])
def test_no_page_is_wider_than_a_phone(visit, pages, folder):
    page, wide = None, []
    for name in sorted(set(pages) - OTHERS):
        if Path(name).parent.name == folder:
            page = visit(name, viewport=PHONE, page=page)
            if page.evaluate("document.documentElement.scrollWidth") > PHONE["width"]:
                wide.append(name)
    assert wide == []
    assert page is not None


def test_drawings_can_be_read_on_a_phone(visit):
    page = visit("how-it-works.html", viewport=PHONE)
    heights = page.evaluate(
        "[...document.querySelectorAll('.drawing text')].map(t => t.getBoundingClientRect().height)"
    )
    assert heights
    assert min(heights) > 9  # pixels


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_drawings_follow_the_colours(visit, scheme):
    page = visit("how-it-works.html", scheme=scheme)
    ink, ground = page.evaluate(
        "[getComputedStyle(document.querySelector('.drawing text')).fill,"
        "getComputedStyle(document.body).backgroundColor]"
    )

    def light(colour):
        return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) > 3 * 127

    assert light(ground) == (scheme == "light")
    assert light(ink) != light(ground)
