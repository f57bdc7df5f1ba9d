"""Whether a VM may be killed, once its evidence is sealed."""

from __future__ import annotations

from dataclasses import dataclass

from autopsy.bundle.manifest import StepRecord
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.errors import ExitCode

NOT_WEDGED = frozenset({"none", "vm-state"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the kill is not done, and how the process says so."""

    words: str
    exit_code: ExitCode


def licence(
    diagnosis: Diagnosis | None, steps: tuple[StepRecord, ...], require: tuple[str, ...], *, even_if_healthy: bool
) -> Refusal | None:
    """Return why the VM must not be killed, or None where it may be.

    A VM that is healthy or paused on purpose is not killed by a habit of the fingers; a step that the operator requires
    must have been Collected; a capture that a person interrupted kills nothing.
    """
    outcomes = {step.name: step for step in steps}
    for name in require:
        step = outcomes.get(name)
        if step is None or step.outcome != "Collected":
            became = f"{step.outcome} ({step.why})" if step else "not reached"
            return Refusal(f"--require {name}, but it was {became}", ExitCode.NOT_STORED)
    if any(step.interrupted for step in steps):
        return Refusal("the capture was interrupted", ExitCode.INTERRUPTED)
    if diagnosis is not None and diagnosis.where in NOT_WEDGED and not even_if_healthy:
        return Refusal(
            f"the verdict is {diagnosis.where} ({diagnosis.headline}); --even-if-healthy kills it all the same",
            ExitCode.NOT_STORED,  # "nothing was killed": 0 would tell a script that its VM is gone
        )
    return None
