"""The report: whole, safe, complete, and drawn from the numbers that the summary has."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import report_sample as sample
from PIL import Image

from pacesetter.experiments.report import figures
from pacesetter.experiments.report.figures import band_data, looks, shown_entries
from pacesetter.experiments.report.html import render, task_slugs, write_report
from pacesetter.experiments.report.text import headline
from pacesetter.experiments.runs.records import Entry


class Page(HTMLParser):
    """Keeps the tags of a page with their attributes, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._shown = [], [], True
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._shown = tag not in ("script", "style")

    def handle_data(self, data):
        if self._shown:
            self.texts.append(data.strip())

    def all(self, tag, **wanted):
        return [a for name, a in self.elements if name == tag and wanted.items() <= a.items()]


@pytest.fixture(scope="module")
def report():
    return sample.report()


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    write_report(out / "report.html", report)
    return out


@pytest.fixture(scope="module")
def text(written):
    return (written / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_every_id_is_its_own_and_every_link_has_one(page):
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"].removeprefix("#") for attrs in page.all("a")} <= set(ids)


def test_page_says_everything_in_safe_words_and_needs_nothing_else(page, text, report):
    assert not re.search(r"https?:|@import|\bsrc=\"(?!data:)|url\(", text)
    for raw in ("<script>alert", "<lion>", "<i>", "<here>"):
        assert raw not in text
    assert len(page.all("script")) == 1
    said = " ".join(page.texts)
    for expected in (
        *(sample.NASTY, sample.TASKS[1], "no <lion> & no 'package'", "Schedules & <others>"),
        *("Python <3>", "Tuned & <chosen>.", "<b>somewhere</b>"),
        *(headline(report.summary), report.command),
        *("RuntimeError: out of memory", "1/3, 1 crashed"),
        "Failed everywhere and so in no other table: lion.",
    ):
        assert expected in said


def test_every_task_has_its_part_with_curves_and_schedules(page, report, written):
    slugs = task_slugs(report.summary.tasks)
    for task in report.summary.tasks:
        (part,) = page.all("section", id=f"task={slugs[task]}")
        assert part["data-name"] == task
        image = (written / "figures" / f"task-{slugs[task]}.svg").read_text(encoding="utf-8")
        for name in ("training loss", "outer-valid loss", "learning rate", "momentum", "clip"):
            assert len(re.findall(rf">{name}[^<]*</text>", image)) == 1


def test_every_figure_says_what_it_shows(page):
    images = page.all("img")
    assert len(images) == 3 + len(sample.TASKS)  # profile, budgets, starts; one per task
    assert all(len(attrs["alt"]) > 20 for attrs in images)


def test_values_of_the_table_are_those_of_the_summary(report, text):
    body = text[text.index('id="all-arms"') :].partition("<tbody>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr[^>]*>.*?</tr>", body, flags=re.DOTALL)
    values = [float(re.findall(r'data-value="([^"]*)"', row)[1]) for row in rows]
    assert values == sorted(e.scores["test"].estimate for e in report.summary.entries)


def test_figures_are_written_as_svg_and_png(written, report):
    slugs = task_slugs(report.summary.tasks)
    names = {"scores", "profile", "budget", "sensitivity", *(f"task-{s}" for s in slugs.values())}
    files = {path.name for path in (written / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    for name in names:
        with Image.open(written / "figures" / f"{name}.png") as picture:
            assert picture.width > 600
            low, high = picture.convert("L").getextrema()
            assert low < 120 < high
    assert ">policy from 0.001</text>" in (written / "figures" / "profile.svg").read_text("utf-8")


def test_what_a_comparison_lacks_is_not_shown():
    """One seed, losses below zero, no agent and no failure."""
    found = [
        replace(
            r,
            losses={split: loss - 3 for split, loss in r.losses.items()},
            **{name: [x - 3 for x in getattr(r, name)] for name in ("curve", "valid_curve")},
        )
        for r in sample.records()
        if r.task == sample.TASKS[0] and r.seed == 1 and r.arm not in ("policy", "lion", "shaky")
    ]
    text = render(sample.report(found))
    assert 'id="failures"' not in text
    assert not re.search(r"[\[ ]−?(inf|nan)\b", text)
    assert render(sample.report(found)) == text


def test_shown_arms_differ_in_more_than_colour(report):
    summary = report.summary
    shown = shown_entries(summary, ["policy"])
    given = looks(summary, shown)
    assert shown[0] == Entry("policy", 1e-3)
    assert summary.reference in shown
    assert len({(given[e].dash, given[e].marker) for e in shown}) == len(shown)
    assert len({given[e].colour for e in shown}) == len(shown)
    # Another budget of a shown arm looks like it.
    assert given[Entry("adamw-cosine", None, 5)] is given[Entry("adamw-cosine", None, 20)]


def test_data_of_figures(report):
    summary, found = report.summary, report.records
    shown = shown_entries(summary, ["policy"])
    estimates = [interval.estimate for interval in figures.score_data(summary).values()]
    assert estimates == sorted(estimates)
    budgets = figures.budget_data(summary, shown)[Entry("adamw-cosine", None, 20)]
    assert budgets.steps.tolist() == [1, 5, 20]
    assert np.all(np.diff(budgets.median) < 0)
    starts = figures.sensitivity_data(summary, shown)
    assert starts[shown[0]].steps == pytest.approx([0.1, 1.0, 10.0])
    assert np.all(np.diff(starts[shown[0]].median) > 0)
    valid = band_data(found, task=sample.TASKS[0], quantity="valid_curve")
    assert valid[shown[0]].steps.tolist() == [10, 20]


def test_bands_are_medians_and_quartiles_of_the_seeds():
    rows = [
        replace(r, curve=[float(r.seed), math.nan, 1.0, 2.0])
        for r in sample.records()
        if r.entry == Entry("adamw-default") and r.task == sample.TASKS[0]
    ]
    band = band_data(rows, task=sample.TASKS[0], quantity="curve")[Entry("adamw-default")]
    assert band.steps.tolist() == sample.STEPS
    assert (band.low[0], band.median[0], band.high[0]) == (0.5, 1.0, 1.5)
    assert math.isnan(band.median[1])


def test_task_slugs_never_collide():
    tasks = ["a/b", "a b", "a-b", "a-b-2", "ä", "?"]
    slugs = list(task_slugs(tasks).values())
    assert len(set(slugs)) == len(tasks)
