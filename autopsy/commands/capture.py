"""One capture from a name to a sealed bundle, its report and, if asked, the kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from autopsy.capture.endwatch import EndWatch
from autopsy.capture.run import Watcher
from autopsy.capture.step import Options
from autopsy.commands.capture_options import CaptureOptions, check
from autopsy.commands.ending import Ended, Heard, ended_by_itself, kill_captured, left_alone
from autopsy.commands.sealed_capture import Captured, capture, quietly
from autopsy.errors import DamagedBundle
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.linux.tasks.cpus import kept_to_half
from autopsy.target import target
from autopsy.target.platforms.catalogue import platform_of

LEAST_TIDYING = 1.0  # seconds of the budget that it is begun with
SIGN_SECONDS = 25.0
HURRIED_GAP = 0.5
LEAST_HURRIED_CPUS = 2  # that it has work for at the same time


def fulfil(wish: CaptureOptions, watcher: Watcher, say: Callable[[str], None] = quietly) -> Ended:
    """Find the VM, capture it and, if that was asked for and may be done, kill it.

    `say` is given what a person must know before it happens.

    Raises:
        AutopsyError: no such VM, not permitted, or not stored; then nothing was killed.
    """
    check(wish)
    return fulfil_for(target.find_target(wish.name), wish, watcher, say)


def fulfil_for(
    vm: target.Target, wish: CaptureOptions, watcher: Watcher, say: Callable[[str], None] = quietly
) -> Ended:
    """Capture a VM that is held and, if that was asked for and may be done, kill it.

    Raises:
        AutopsyError: not stored; then nothing was killed.
    """
    options = _hurried(vm, wish.options, say)
    if wish.asked_at is not None:
        options = replace(options, budget=max(0.0, options.budget - (time.monotonic() - wish.asked_at)))
    watch = EndWatch(vm)
    with ExitStack() as while_it_is_captured:  # a VM that is started again afterwards must not inherit it
        if not wish.one_of_many:  # else there is a VM for each CPU, and no half of them is left
            while_it_is_captured.enter_context(kept_to_half(least=LEAST_HURRIED_CPUS if options.fast else 1))
        captured = capture(vm, watch, options=options, places=wish.places, words=wish.words, watcher=watcher, say=say)
    if wish.sign is not None:
        captured = _signed(captured, wish.sign)
    if captured.end is not None:
        return _with_rescued(ended_by_itself(captured, captured.end, wish), wish)
    if wish.then_kill:
        return _with_rescued(kill_captured(vm, watch, captured, wish, Heard(say, watcher.tell)), wish)
    return _with_rescued(left_alone(captured), wish)


def _hurried(vm: target.Target, options: Options, say: Callable[[str], None]) -> Options:
    """Shorten the capture where somebody else is about to kill the VM."""
    warning = platform_of(vm.record.manager).hurry(vm.record.name)
    if not warning:
        return options
    say(f"note: {warning}")
    return replace(options, fast=True, gap=min(options.gap, HURRIED_GAP))


def _signed(captured: Captured, key: Path) -> Captured:
    """Sign the sealed bundle. A key that has gone meanwhile costs the signature, which can be made later."""
    from autopsy.commands.signing import sign  # noqa: PLC0415 - few sign, and it is large

    bundle = captured.sealed.path

    def work() -> bytes:
        try:
            return f"signed: {sign(captured.sealed, key)}".encode()
        except DamagedBundle as error:
            return f"not signed: {error}; {error.remedy}".encode()

    try:
        note = in_child(work, SIGN_SECONDS).decode()
    except (ChildTimedOut, ChildFailed) as error:
        note = f"the bundle could not be signed: {error}; `ssh-keygen -Y sign -n autopsy -f KEY {bundle}` does"
    return replace(captured, notes=(*captured.notes, note))


def _with_rescued(ended: Ended, wish: CaptureOptions) -> Ended:
    """Seal what earlier captures, killed themselves, left in memory: now that this VM's own matter is settled."""
    from autopsy.commands.seal import rescue  # noqa: PLC0415 - loaded meanwhile: it is not needed to begin
    from autopsy.commands.tidying import tidy  # noqa: PLC0415 - likewise

    captured = ended.captured
    left = captured.budget.left()
    if captured.interrupted or wish.one_of_many or left < LEAST_TIDYING:  # the next capture does it
        return ended
    notes = (*tidy(captured.sealed.path, left), *rescue(captured.budget.left()))
    return replace(ended, captured=replace(captured, notes=captured.notes + notes)) if notes else ended
