"""A drill from the wedge to the kill: what an on-call engineer would do, on a QEMU that nobody needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from autopsy.bundle import layout
from autopsy.capture.run import Watcher
from autopsy.capture.step import Options
from autopsy.commands.capture import fulfil
from autopsy.commands.capture_options import CaptureOptions
from autopsy.commands.ending import Ended
from autopsy.commands.sealed_capture import report_path
from autopsy.commands.stored import ShownBundle, named
from autopsy.dataclass import dataclass
from autopsy.drill.scenarios import SCENARIOS, Scenario, wedged
from autopsy.drill.stored import STORED_DRILLS, StoredDrill
from autopsy.errors import ExitCode, NotStored
from autopsy.files import private
from autopsy.linux import clocks
from autopsy.report.render import render
from autopsy.store.place import is_of_store, provide


@dataclass(frozen=True, slots=True)
class Drilled:
    """How a drill went. It is as it should be when the verdict is the scenario's."""

    scenario: Scenario
    ended: Ended

    @property
    def as_it_should(self) -> bool:
        """Return whether the verdict points where the scenario is stuck."""
        diagnosis = self.ended.captured.diagnosis
        return diagnosis is not None and diagnosis.where == self.scenario.where

    @property
    def verdict_line(self) -> str:
        """Return the drill's own last line."""
        if self.as_it_should:
            outlived = self.ended.exit_code is ExitCode.STILL_THERE
            end = (
                "; a kill cannot end it before its storage answers: a capture says so by exit code 6"
                if outlived
                else ""
            )
            return f"drill: {self.scenario.name} is stuck in '{self.scenario.where}', and the verdict says so{end}"
        return f"drill: {self.scenario.name} is stuck in '{self.scenario.where}', but the verdict says otherwise"

    @property
    def exit_code(self) -> ExitCode:
        """Return the capture's exit code, or a mismatch where the verdict is wrong.

        A QEMU on storage that is really stuck outlives its kill until the drill sets the storage free.
        """
        outlived = self.ended.exit_code is ExitCode.STILL_THERE and self.scenario.survives_kill
        if self.ended.exit_code is not ExitCode.DONE and not outlived:
            return self.ended.exit_code
        return ExitCode.DONE if self.as_it_should else ExitCode.MISMATCH


def listing() -> Iterator[str]:
    """Yield a line for each scenario."""
    for scenario in SCENARIOS:
        needs = f"  (needs {', '.join(scenario.needs)})" if scenario.needs else ""
        yield f"{scenario.name:<17} {scenario.description}{needs}"
    for drill in STORED_DRILLS:
        yield f"{drill.name:<17} {drill.description}  (needs {drill.needs})"


def walk_through(drill: StoredDrill, place: Path, say: Callable[[str], None]) -> ShownBundle:
    """Put a stored capture and its report where a drill's would go, and return what it says.

    Raises:
        NotStored: it cannot be put there.
    """
    say(f"drill: {drill.description}: needs {drill.needs}")
    name = layout.name_of(drill.name, clocks.now().utc)
    bundle = place / f"{name}.tar.zst"
    try:
        if is_of_store(place):
            provide(place)
        else:
            private.provide(place)
        private.publish(bundle, drill.bundle.read_bytes())
        private.publish(report_path(bundle), render(bundle, "html").encode())
    except OSError as error:
        raise NotStored(str(place), error.strerror or str(error), remedy="give a folder: --out DIR") from error
    return named(str(bundle))


def run(scenario: str, *, keep: bool, place: Path, watcher: Watcher, say: Callable[[str], None]) -> Drilled:
    """Wedge a QEMU, capture it and kill it; with `keep` capture it and leave it.

    Raises:
        AutopsyError: something that the scenario needs is missing, or the capture failed.
    """
    with wedged(scenario, keep=keep) as wedge:
        say(f"drill: {wedge.note}")
        if keep:
            say("drill: it stays; to end it:")
            for command in wedge.endings:
                say(f"         {command}")
        ended = fulfil(
            CaptureOptions(
                name=wedge.target,
                options=Options(),
                places=(place,),
                words=("drill", scenario),
                then_kill=not keep,
                even_if_healthy=True,
                even_if_needless=True,
            ),
            watcher,
            say,
        )
        return Drilled(wedge.scenario, ended)
