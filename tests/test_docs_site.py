"""The manual builds without warnings or dead links, needs no network, and matches the code.

It is built once. What only a browser can tell is left out where there is none.
"""

import argparse
import json
import os
import re
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
    """What is loaded and named on one page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.loads, self.ids, self.text = path, [], set(), []
        self._style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in attrs}
        self._style = tag == "style"
        self.ids |= {attrs[name] for name in ("id", "name") if name in attrs}
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
            parts = urlsplit(address)
            assert not parts.netloc + parts.scheme, f"{name} loads {address}"
            assert (page.path.parent / unquote(urlsplit(address).path)).is_file(), (name, address)
    for sheet in site.rglob("*.css"):
        for address in in_css(sheet.read_text(encoding="utf-8")):
            assert "//" not in address, f"{sheet.name} loads {address}"
            assert (sheet.parent / unquote(urlsplit(address).path)).is_file(), (sheet.name, address)
    # The theme's own program would fetch this one from the network, for diagrams that ask for it.
    assert not [name for name, page in pages.items() if 'class="mermaid' in page.path.read_text()]


def test_every_feature_action_and_bound_and_the_policy_are_told(pages):
    text = pages["reference/decision-process.html"].says()
    for feature in FEATURES:
        meaning = " ".join(feature.meaning.split())
        assert f"{feature.name} {meaning} {feature.centre:g} {feature.scale:g}" in text
    for name in (*ACTION_NAMES, *REWARD_FORMS, "improvement"):
        assert name in text
    text = pages["how-it-works.html"].says()  # its drawings
    sizes = [len(bias) for _, bias in load_policy("default").layers]
    assert f"{NUM_FEATURES} statistics" in text
    assert sizes == [64, 64, len(ACTION_NAMES)]
    assert "two layers of 64; three answers" in text


def test_every_arm_preset_command_and_option_is_told(pages):
    for page, names in (("rivals", arm_names()), ("settings", PRESETS)):
        text = pages[f"reference/{page}.html"].says()
        assert not [name for name in names if name not in text]
    page = pages["reference/command-line.html"]
    (commands,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        assert parser.prog.replace(" ", "-") in page.ids, name
        for action in parser._actions:
            assert all(option in page.says() for option in action.option_strings)


@pytest.mark.parametrize("package", ["agent", "envs", "inner_models", "experiments"])
def test_every_public_name_is_in_the_reference(pages, package):
    places = pages[f"api/{package.replace('_', '-')}.html"].ids
    module = import_module(f"pacesetter.{package}")
    for name in filter(lambda name: callable(getattr(module, name)), module.__all__):
        pattern = re.compile(rf"pacesetter\.{package}\.[a-z_.]+\.{name}")
        assert any(pattern.fullmatch(place) for place in places), name


def test_search_index_has_every_page(site, pages):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    words = defaultdict(str)
    for entry in index["docs"]:
        words[entry["location"].partition("#")[0] or "index.html"] += entry["text"]
    assert set(words) == set(pages) - OTHERS
    assert "hypergradient" in words["reference/decision-process.html"]
    assert (site / "search" / "search_index.js").is_file()  # what is read from the disk


def test_in_a_browser_pages_work_from_the_disk_on_a_phone(browser, site, pages):
    """Nothing is fetched, nothing fails, no page is wider than the screen, search finds."""
    wrong = []
    page = browser.new_context(viewport={"width": 375, "height": 800}).new_page()
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    local = (site.as_uri(), "data:", "about:")
    page.on("request", lambda r: r.url.startswith(local) or wrong.append(r.url))
    for name in sorted(set(pages) - OTHERS):
        page.goto(f"{site.as_uri()}/{name}")
        if page.evaluate("document.documentElement.scrollWidth") > 375:
            wrong.append(f"{name} is too wide")
    page.goto(f"{site.as_uri()}/how-it-works.html")
    texts = "[...document.querySelectorAll('.drawing text')]"
    heights = page.evaluate(f"{texts}.map(t => t.getBoundingClientRect().height)")
    assert min(heights) > 9  # pixels
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{site.as_uri()}/glossary.html")
    page.locator("input.md-search__input").click()
    page.locator("input.md-search__input").press_sequentially("hypergradient")
    page.locator("a.md-search-result__link").first.wait_for(state="visible")
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_drawings_follow_the_colours(browser, site, scheme):
    page = browser.new_context(color_scheme=scheme).new_page()
    page.goto(f"{site.as_uri()}/how-it-works.html")
    ink, ground = page.evaluate(
        "[getComputedStyle(document.querySelector('.drawing text')).fill,"
        "getComputedStyle(document.body).backgroundColor]"
    )

    def light(colour):
        return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) > 3 * 127

    assert light(ground) == (scheme == "light")
    assert light(ink) != light(ground)
