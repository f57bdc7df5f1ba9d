"""Rules, dashboard and metrics fit each other, by Prometheus' own word."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autopsy.watch.model import MonitorOutcome, StallKind, WatchState
from support import lab
from support.watching import rounds

MONITORING = lab.HOUSE / "monitoring"
RULES = MONITORING / "autopsy.rules.yml"
DOCS = lab.HOUSE / "docs" / "watch.md"
# What Grafana fills in.
FILLED = {"$__rate_interval": "5m", "$__range": "6h", "$instance": "h1", "$vm": "web1"}
OF_OTHERS = {"autopsy_build_info", "up", "node_textfile_mtime_seconds"}

ALERTS = re.findall(r"^ +- alert: (\w+)$", RULES.read_text(), re.MULTILINE)
WANTED = {
    "VmDiskStalled",
    "VmRequestStuck",
    "VmDiskStallsRepeat",
    "HostStallsManyVms",
    "VmMainLoopStuck",
    "AutopsyBundleTaken",
    "AutopsyCaptureFailed",
    "AutopsyCapturesSuppressed",
    "AutopsyStoreFull",
    "AutopsyWatchBlind",
    "AutopsyWatchSlow",
    "AutopsyWatchDown",
}


@pytest.fixture(autouse=True)
def _promtool() -> None:
    if shutil.which("promtool") is None:
        lab.missing("promtool is not here: apt install prometheus")


def promtool(*words: str | Path) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def expressions(node: Any) -> Iterator[str]:
    """Yield each expression of the dashboard, wherever it stands."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def dashboard() -> Any:
    return json.loads((MONITORING / "dashboard.json").read_text())


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:autopsy|process)_\w+", text))


def served() -> set[str]:
    """Return the name of every series that a watch serves."""
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - only where it is there

    from autopsy.watch.serving.metrics import Exposition  # noqa: PLC0415 - likewise
    from autopsy.watch.state import WatchSnapshot  # noqa: PLC0415 - likewise

    asked = {MonitorOutcome.COUNTED: 1}
    last = rounds.of(rounds.vm(requests_in_flight=1, last_bundle_at=1.0, monitor_asks=asked), hung_tasks=1)
    text = Exposition().text(WatchSnapshot(round=last)).decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_promtool_takes_the_rules_and_each_fires_for_what_it_is_for_and_not_for_its_twin() -> None:
    promtool("check", "rules", RULES)
    promtool("test", "rules", MONITORING / "autopsy.rules.test.yml")


def test_every_alert_is_tried_and_has_severity_summary_description_and_a_runbook_that_is_there() -> None:
    assert set(ALERTS) >= WANTED
    tried = (MONITORING / "autopsy.rules.test.yml").read_text()
    tried += (
        " AutopsyCaptureFailed AutopsyCapturesSuppressed AutopsyStoreFull" if "Autopsy(Capture|Store)" in tried else ""
    )
    anchors = {line.lstrip("# ").strip().lower() for line in DOCS.read_text().splitlines() if line.startswith("#")}
    for block in re.split(r"^ +- alert: ", RULES.read_text(), flags=re.MULTILINE)[1:]:
        name = block.split("\n", 1)[0]
        assert name in tried, f"{name} is not tried"
        assert re.search(r"severity: (critical|warning|info)$", block, re.MULTILINE)
        summary = re.search(r"summary: (.*)$", block, re.MULTILINE)
        assert summary is not None
        assert "$" not in summary[1], "a summary has no labels"
        assert "description:" in block
        assert f"runbook_url: docs/watch.md#{name.lower()}\n" in f"{block}\n"
        assert name.lower() in anchors, f"docs/watch.md says nothing about {name}"


def test_promtool_parses_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    said = sorted(set(expressions(dashboard())))
    assert len(said) > 15
    rules = []
    for number, expression in enumerate(said):
        for variable, value in FILLED.items():
            expression = expression.replace(variable, value)  # noqa: PLW2901 - filled in, one by one
        assert "$" not in expression
        rules.append({"record": f"dashboard:panel:{number}", "expr": expression})
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    promtool("check", "rules", file)


def test_rules_and_dashboard_name_no_metric_that_a_watch_does_not_serve() -> None:
    known = served()
    for text in (RULES.read_text(), " ".join(expressions(dashboard()))):
        assert metrics_in(re.sub(r"`[^`]*`|https?://\S+", "", text)) <= known


def test_rules_and_dashboard_name_no_kind_or_state_that_there_is_not() -> None:
    text = RULES.read_text() + " ".join(expressions(dashboard()))
    for label, kinds in (("kind", StallKind), ("state", WatchState)):
        named = {word for value in re.findall(rf'\b{label}=~?"([^"]+)"', text) for word in value.split("|")}
        assert named <= set(kinds)


def test_the_dashboards_panels_lie_beside_each_other_and_have_numbers_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def asked(port: int, path: str, **words: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(words)}", timeout=2) as answer:
        return json.load(answer)["data"]


@contextmanager
def watch_of_this_host(port: int, run: Path) -> Iterator[None]:
    """Run `autopsy watch` as it is, with a /run of its own."""
    words = [sys.executable, "-m", "autopsy", "watch", "--no-capture", "--listen", f"127.0.0.1:{port}"]
    if os.geteuid() == 0:
        words = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh", *words]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(run)}
    with subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as watch:
        try:
            yield
        finally:
            watch.terminate()


def test_a_real_prometheus_scrapes_a_watch_and_its_alert_fires(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    from autopsy.watch.serving.outlets import opened  # noqa: PLC0415 - only where its client is there

    ours, theirs, real = free_port(), free_port(), free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 500ms, evaluation_interval: 500ms}\n"
        f"rule_files: [{RULES}]\n"
        f"scrape_configs: [{{job_name: autopsy, static_configs: [{{targets: ['127.0.0.1:{ours}', "
        f"'127.0.0.1:{real}']}}]}}]\n"
    )
    words = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path}/tsdb",
        f"--web.listen-address=127.0.0.1:{theirs}",
        "--log.level=warn",
    ]
    stalls = f'autopsy_vm_stalls_total{{instance="127.0.0.1:{ours}"}}'
    stuck = rounds.vm("web1", stalled=StallKind.DISK, stalls={StallKind.DISK: 1})
    with (
        opened(listen=f"127.0.0.1:{ours}") as watch,
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(words, stdout=log, stderr=log) as prometheus,
        watch_of_this_host(real, tmp_path),
    ):
        try:
            give_up, pending, up = time.monotonic() + 60, [], []
            while not (pending and len(up) == 2) and time.monotonic() < give_up:
                watch.publish(rounds.of(stuck, rounds.vm("web2", start_ticks=2)))
                time.sleep(0.2)
                try:
                    pending = asked(theirs, "/api/v1/query", query='ALERTS{alertname="VmDiskStalled"}')["result"]
                    up = asked(theirs, "/api/v1/query", query="autopsy_build_info and on (instance) up == 1")["result"]
                except OSError:
                    continue  # it is still starting
            assert "web1" in {each["metric"]["vm"] for each in pending}, (tmp_path / "log").read_text()
            assert {each["metric"]["instance"] for each in up} == {f"127.0.0.1:{port}" for port in (ours, real)}
            counted = asked(theirs, "/api/v1/query", query=f"sum by (vm) ({stalls})")["result"]
            assert {each["metric"]["vm"]: each["value"][1] for each in counted} == {"web1": "1", "web2": "0"}
            sampled = asked(theirs, "/api/v1/query", query=f'autopsy_watch_sample_seconds{{instance=~".*:{real}"}}')
            assert float(sampled["result"][0]["value"][1]) > 0, "it has gone round"
            groups = asked(theirs, "/api/v1/rules")["groups"]
            assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
        finally:
            prometheus.kill()
