"""In a real browser without script and network the report opens, reads, leads to its evidence and prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from autopsy.report.html import html
from support import browser, reports

WIDE = {"width": 1440, "height": 900}
LAPTOP = {"width": 1280, "height": 900}
NARROW = {"width": 390, "height": 844}
# Each page is looked at in a browser; the other cases' links are followed without one.
KINDS = ("throttle-deadlock", "frozen-threads", "frozen-native", "lsi", "nbd", "healthy")


def cases() -> tuple[Path, ...]:
    """Return one stored case of each kind."""
    found = {kind: path for kind in KINDS for path in reports.STORED if path.name.startswith(kind)}
    return tuple(sorted(set(found.values())))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as running:
        yield running


@pytest.fixture(scope="module", params=[*(path.name for path in cases()), "hostile"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    bundle: Any = reports.hostile().bundle()
    if request.param != "hostile":
        bundle = open_bundle(reports.FIXTURES / request.param / "bundle.tar.zst")
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html(bundle), encoding="utf-8")
    return path, diagnose(gather_facts(bundle))


@pytest.fixture(scope="module")
def page(chromium: Any, report: tuple[Path, Any]) -> Iterator[Any]:
    context = chromium.new_context(viewport=WIDE, java_script_enabled=False, offline=True)
    try:
        opened = context.new_page()
        opened.complaints = []
        opened.on("console", lambda message: opened.complaints.append(message.text))
        opened.on("requestfailed", lambda request: opened.complaints.append(request.url))
        opened.goto(report[0].as_uri())
        yield opened
    finally:
        context.close()


def test_it_opens_without_a_complaint(page: Any) -> None:
    assert page.complaints == []


def test_the_headline_and_the_stuck_hop_are_on_the_first_screen(page: Any, report: tuple[Path, Any]) -> None:
    diagnosis = report[1]
    box = page.locator("h1").bounding_box()
    assert box["y"] + box["height"] < WIDE["height"]
    if any(path.stuck_at is not None for path in diagnosis.paths):
        stuck = page.locator("header .path svg text", has_text="stuck here")
        assert stuck.is_visible()
        assert stuck.bounding_box()["y"] < WIDE["height"]


def test_every_cite_link_lands_on_its_target(page: Any) -> None:
    links = page.locator("main .cites a, header .cites a")
    assert links.count() > 5
    targets = {links.nth(place).get_attribute("href") for place in range(links.count())}
    for target in sorted(targets):
        assert page.locator(f'[id="{target[1:]}"]').is_visible(), target
    first = page.locator(".chain .cites a").first
    target = first.get_attribute("href")
    first.click()
    assert page.url.endswith(target)
    landed = page.locator(f'[id="{target[1:]}"]').bounding_box()
    assert 0 <= landed["y"] < WIDE["height"]


def test_it_prints_on_five_pages_at_most(page: Any) -> None:
    page.emulate_media(media="print")
    try:
        document = page.pdf(format="A4")
    finally:
        page.emulate_media(media="screen")
    assert document.startswith(b"%PDF")
    assert len(document) > 20_000
    assert 0 < len(re.findall(rb"/Type\s*/Page\b", document)) <= 5


def test_headline_three_proofs_and_the_first_command_are_on_the_first_screen(
    page: Any, report: tuple[Path, Any]
) -> None:
    page.set_viewport_size(LAPTOP)
    try:
        found = [page.locator("h1"), page.locator(".command").first]
        found += page.locator(".proofs li").all()
        bottoms = [place["y"] + place["height"] for each in found if (place := each.bounding_box())]
    finally:
        page.set_viewport_size(WIDE)
    assert len(bottoms) == len(found)
    assert max(bottoms) <= LAPTOP["height"]
    assert len(page.locator("h1").inner_text()) <= 90 or "\\u" in page.locator("h1").inner_text()
    assert report[1].advice[0].command.split()[0] in page.locator(".command").first.inner_text()
    assert all(quote.inner_text() for quote in page.locator(".proofs q").all())


def test_a_narrow_screen_never_scrolls_sideways_and_axe_finds_no_serious_violation(
    chromium: Any, report: tuple[Path, Any], tmp_path: Path
) -> None:
    source = browser.axe()
    text = report[0].read_text("utf-8")
    assert text.count('http-equiv="Content-Security-Policy"') == 1
    copy = tmp_path / "report.html"
    copy.write_text(text.replace('http-equiv="Content-Security-Policy"', 'name="was-policy"'), encoding="utf-8")
    context = chromium.new_context(viewport=NARROW, offline=True, color_scheme="dark")
    try:
        opened = context.new_page()
        opened.goto(copy.as_uri())
        opened.add_script_tag(content=source)
        assert opened.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        assert serious(opened) == []
        opened.set_viewport_size(WIDE)
        opened.emulate_media(color_scheme="light")
        assert serious(opened) == []
    finally:
        context.close()


def serious(page: Any) -> list[tuple[str, list[str]]]:
    """Return what axe holds against a page."""
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert "color-contrast" in {each["id"] for each in found["passes"]}
    return [
        (each["id"], [node["html"][:160] for node in each["nodes"][:4]])
        for each in found["violations"]
        if each["impact"] in {"serious", "critical"}
    ]


def test_it_reads_in_order_where_styles_are_stripped(chromium: Any, report: tuple[Path, Any], tmp_path: Path) -> None:
    text = report[0].read_text("utf-8")
    bare = tmp_path / "report.html"
    bare.write_text(text.replace("style-src 'unsafe-inline'", "style-src 'none'"), encoding="utf-8")
    context = chromium.new_context(viewport=WIDE, java_script_enabled=False, offline=True)
    try:
        opened = context.new_page()
        opened.goto(bare.as_uri())
        tops = [opened.locator(what).first.bounding_box()["y"] for what in ("h1", "dl", "nav", "main", "footer")]
        picture = opened.locator("svg").first.bounding_box()
    finally:
        context.close()
    assert tops == sorted(tops)
    assert picture["width"] < 500
