"""Whether a VM may be killed, once its evidence is sealed, and what is to be said of that kill beforehand."""

from __future__ import annotations

from autopsy.bundle.manifest import StepRecord
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.runbooks import cure
from autopsy.errors import ExitCode


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the kill is not done, and how the process says so."""

    words: str
    exit_code: ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Insistence:
    """What the operator wants killed all the same; `command` is the command line that says so, for the next time."""

    even_if_healthy: bool = False
    even_if_needless: bool = False
    command: str = "--even-if-needless"

    @property
    def on_needless(self) -> bool:
        """Tell whether a kill that is proven to be needless is wanted: whoever ends a healthy VM wants that, too."""
        return self.even_if_healthy or self.even_if_needless


def licence(
    diagnosis: Diagnosis | None, steps: tuple[StepRecord, ...], require: tuple[str, ...], insistence: Insistence
) -> Refusal | None:
    """Return why the VM must not be killed, or None where it may be.

    A VM that is healthy or paused on purpose is not killed by a habit of the fingers, nor one that is proven to go on
    without a kill; a step that the operator requires must have been Collected; a capture that a person interrupted
    kills nothing.
    """
    outcomes = {step.name: step for step in steps}
    for name in require:
        step = outcomes.get(name)
        if step is None or step.outcome != "Collected":
            became = f"{step.outcome} ({step.why})" if step else "not reached"
            return Refusal(f"--require {name}, but it was {became}", ExitCode.NOT_STORED)
    if any(step.interrupted for step in steps):
        return Refusal("the capture was interrupted", ExitCode.INTERRUPTED)
    if diagnosis is None:
        return None
    words = _needless(diagnosis, insistence)
    # "nothing was killed": 0 would tell a script that its VM is gone
    return Refusal(words, ExitCode.NOT_STORED) if words else None


def _needless(diagnosis: Diagnosis, insistence: Insistence) -> str:
    if diagnosis.where == "none" and not insistence.even_if_healthy:
        return f"it is well ({diagnosis.headline}); --even-if-healthy kills it all the same"
    proven = diagnosis.kill == "needless" and diagnosis.confidence == "proven"
    if (proven or diagnosis.where == "vm-state") and not insistence.on_needless:
        # Whether a paused VM is needed is its owner's to say, however sure we are of why it is paused.
        said = f"{diagnosis.headline}, and the kill is needless: {cure(diagnosis)}"
        return f"{said}; `{insistence.command}` kills it all the same"
    return ""


def cautions(diagnosis: Diagnosis | None) -> tuple[str, ...]:
    """Return what a person must know of a kill that may be done: that it is not needed, not enough, or a guess."""
    if diagnosis is None:
        return ("no verdict could be made: it is not known whether a kill helps",)
    warnings = []
    match diagnosis.kill:
        case "futile":
            warnings.append(f"a kill is futile: {diagnosis.kill_why}; first {cure(diagnosis)}")
        case "needless":
            warnings.append(f"a kill is needless: {diagnosis.kill_why}; {cure(diagnosis)}")
        case "unknown":
            warnings.append(f"it is not known whether a kill helps: {diagnosis.kill_why}")
        case "helps":
            pass
    if diagnosis.confidence == "possible" and diagnosis.kill != "unknown":
        warnings.append("the verdict is no more than possible: it is not known whether a kill helps")
    return tuple(warnings)
