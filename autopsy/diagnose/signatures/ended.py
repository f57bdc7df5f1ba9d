"""The VM's process ended by itself, or by somebody else's hand, while it was captured."""

from __future__ import annotations

from autopsy.bundle.vm_end import in_words, manner
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.queries.threads import threads
from autopsy.diagnose.queries.wording import count
from autopsy.diagnose.signature import Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Unknown
from autopsy.facts.model.facts import EndFact, Facts


def _ended(facts: Facts) -> Judgement:
    ending = facts.vm.end
    if isinstance(ending, Unknown):
        return RuledOut(ending.why)
    return Match(
        headline=f"The VM ended while it was captured: {in_words(ending.value.end)}",
        objects=(subjects.Process(facts.vm.pid),),
        confidence="proven",
        claims=tuple(_claims(ending.value, ending.cite)),
        weight=len(threads(facts)),
    )


def _claims(ending: EndFact, cite: Cite) -> list[Claim]:
    end = ending.end
    if end.how == "dumping core":
        claims = [claim("The kernel was writing the core of the process when the capture ended.", cite)]
    else:
        claims = [claim(f"{manner(end)}: its pidfd said so, and it was not killed by this capture.", cite)]
    if end.question:
        became = "answered" if end.answered else "not answered"
        claims.append(
            claim(f"The last question before it was {end.after}, {became}. That is an order in time, no cause.", cite)
        )
    else:
        claims.append(claim(f"The step under way was {end.step}. That is an order in time, no cause.", cite))
    if ending.last_words:
        last = ending.last_words[-1]
        claims.append(claim(f"QEMU's log ends: {last.text}", *(line.cite for line in ending.last_words)))
    if ending.left:
        files = ", ".join(line.text for line in ending.left[:4])
        claims.append(claim(f"It left {count(len(ending.left), 'file')} behind: {files}", ending.left[0].cite))
    return claims


SIGNATURES = (Signature("vm-ended", "process", "the VM ended while it was captured", _ended),)
