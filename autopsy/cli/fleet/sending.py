"""`autopsy fleet send`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopsy.cli.printing import Json, say, show
from autopsy.errors import ExitCode, UsageError


def send(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[BUNDLE... PLACE]", help="sealed bundles, then a folder or a bucket")
    ] = None,
    spooled: Annotated[bool, typer.Option("--spooled", help="send all that could not be sent before")] = False,
    redact: Annotated[bool, typer.Option("--redact", help="send the copy that can be shown to strangers")] = False,
    recipient: Annotated[
        list[str] | None, typer.Option("--recipient", metavar="KEY", help="encrypt to age1… or an SSH public key")
    ] = None,
    json: Json = False,
) -> None:
    """Send sealed bundles to where they are read with all others.

    What cannot be sent now waits in the spool of the store.
    """
    from autopsy.cli.fleet.extra import extra
    from autopsy.cli.fleet.fleet_json import FleetSent, SentAnswer, WaitingAnswer
    from autopsy.cli.json_output import as_text
    from autopsy.commands.fleet.send import send_bundles, send_spooled
    from autopsy.fleet.places.sealed import check_recipients
    from autopsy.text import plain

    if spooled == bool(words) or (words and len(words) == 1):
        raise UsageError("send", "it is not said what goes where", remedy="say BUNDLE… PLACE, or --spooled alone")
    recipients = tuple(recipient or ())
    with extra():
        check_recipients(recipients)
        if words:
            *bundles, place = words
            done = send_bundles(
                tuple(map(Path, bundles)), place, hide=redact, recipients=recipients, say=lambda text: say(plain(text))
            )
        else:
            done = send_spooled(lambda text: say(plain(text)))
    sent = [(attempt.entry.note, attempt.sent) for attempt in done if attempt.sent is not None]
    waiting = [attempt for attempt in done if attempt.sent is None]
    if json:
        answer = FleetSent(
            sent=tuple(
                SentAnswer(
                    bundle=note.bundle, place=note.place, key=file.key, sha256=file.sha256, size=file.size, new=file.new
                )
                for note, file in sent
            ),
            waiting=tuple(
                WaitingAnswer(
                    bundle=attempt.entry.note.bundle,
                    place=attempt.entry.note.place,
                    why=str(attempt.error or ""),
                )
                for attempt in waiting
            ),
        )
        show(as_text(answer))
    else:
        for note, file in sent:
            show(plain(f"{note.bundle}: {'sent' if file.new else 'was there already'}: {note.place} {file.key}"))
        for attempt in waiting:
            say(plain(f"{attempt.entry.note.bundle}: waits in the spool: {attempt.error or 'another run sends'}"))
            if attempt.error is not None:
                say(plain(f"         {attempt.error.remedy}; then autopsy fleet send --spooled"))
    codes = [attempt.error.exit_code for attempt in waiting if attempt.error is not None]
    raise typer.Exit(max(codes, default=ExitCode.DONE))
