"""The manual builds without warnings or dead links, needs no network, and matches the code.

It is built once. What only a browser can tell is left out where there is none.
"""

import argparse
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

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
    pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra `docs`"),
]


class Page(HTMLParser):
    """What is named and said on one page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.text = set(), []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.ids |= {value for name, value in attrs if name in ("id", "name")}

    def handle_data(self, data):
        self.text.append(data)

    def says(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(  # --quiet would hide warnings from --strict as well
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    paths = (path for path in site.rglob("*.html") if path.name != "404.html")
    return {path.relative_to(site).as_posix(): Page(path) for path in paths}


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        loaded = re.findall(r'<(?:img|script|iframe)\b[^>]*\bsrc="([^"]*)"', page.source)
        loaded += re.findall(r'<link rel="(?:stylesheet|icon)"[^>]*href="([^"]*)"', page.source)
        assert not [a for a in loaded if "//" in a and not a.startswith("data:")], name
        # The theme's own program would fetch this one, for diagrams that ask for it.
        assert 'class="mermaid' not in page.source, name
    for sheet in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")]+)", sheet.read_text("utf-8"))
        assert not [a for a in found if "//" in a and not a.startswith("data:")], sheet.name


def test_every_feature_action_and_bound_and_the_policy_are_told(pages):
    text = pages["reference/decision-process.html"].says()
    for feature in FEATURES:
        meaning = " ".join(feature.meaning.split())
        assert f"{feature.name} {meaning} {feature.centre:g} {feature.scale:g}" in text
    assert all(name in text for name in (*ACTION_NAMES, *REWARD_FORMS))
    text = pages["how-it-works.html"].says()  # its drawings
    assert f"{NUM_FEATURES} statistics" in text
    assert [len(bias) for _, bias in load_policy("default").layers] == [64, 64, 3]
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
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{site.as_uri()}/glossary.html")
    page.locator("input.md-search__input").click()
    page.locator("input.md-search__input").press_sequentially("hypergradient")
    page.locator("a.md-search-result__link").first.wait_for(state="visible")
    assert wrong == []
