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
    sent = [(each.entry.note, each.sent) for each in done if each.sent is not None]
    waiting = [each for each in done if each.sent is None]
    if json:
        told = FleetSent(
            sent=tuple(
                SentAnswer(bundle=note.bundle, place=note.place, key=it.key, sha256=it.sha256, size=it.size, new=it.new)
                for note, it in sent
            ),
            waiting=tuple(
                WaitingAnswer(
                    bundle=each.entry.note.bundle,
                    place=each.entry.note.place,
                    why=str(each.error or ""),
                )
                for each in waiting
            ),
        )
        show(as_text(told))
    else:
        for note, it in sent:
            show(plain(f"{note.bundle}: {'sent' if it.new else 'was there already'}: {note.place} {it.key}"))
        for each in waiting:
            say(plain(f"{each.entry.note.bundle}: waits in the spool: {each.error or 'another run sends'}"))
            if each.error is not None:
                say(plain(f"         {each.error.remedy}; then autopsy fleet send --spooled"))
    codes = [each.error.exit_code for each in waiting if each.error is not None]
    raise typer.Exit(max(codes, default=ExitCode.DONE))
