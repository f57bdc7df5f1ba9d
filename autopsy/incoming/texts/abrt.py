"""Reads the backtrace that ABRT keeps of a crash as JSON (core_backtrace)."""

from __future__ import annotations

from signal import Signals
from typing import Any

from autopsy.bundle.records import Frame
from autopsy.incoming.stacks.names import plain_name

SIGNALS = frozenset(map(int, Signals))
MOST_THREADS = 20_000
MOST_FRAMES = 1_000  # of one thread
MOST_WORDS = 1_000


def stacks(value: Any) -> tuple[tuple[Frame, ...], ...]:  # noqa: ANN401 - a stranger's JSON
    """Return each thread's frames, innermost first, the one that crashed before the others; none for other JSON."""
    traces = value.get("stacktrace") if isinstance(value, dict) else None
    threads = [trace for trace in traces if isinstance(trace, dict)] if isinstance(traces, list) else []
    threads.sort(key=lambda trace: trace.get("crash_thread") is not True)
    read = (_frames(thread.get("frames")) for thread in threads[:MOST_THREADS])
    return tuple(trace for trace in read if trace)


def executable(value: Any) -> str:  # noqa: ANN401 - as above
    """Return the program whose backtrace it is."""
    path = value.get("executable") if isinstance(value, dict) else None
    return path[:MOST_WORDS] if isinstance(path, str) else ""


def crash(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - as above
    """Return by which signal the program ended, nothing where that is not told."""
    signal = value.get("signal") if isinstance(value, dict) else None
    if not isinstance(signal, int) or signal not in SIGNALS:
        return ()
    return (f"{executable(value).rpartition('/')[2]} killed by {Signals(signal).name}",)


def _frames(value: Any) -> tuple[Frame, ...]:  # noqa: ANN401 - as above
    frames = value if isinstance(value, list) else []
    return tuple(_frame(frame) for frame in frames[:MOST_FRAMES] if isinstance(frame, dict))


def _frame(entry: dict[str, Any]) -> Frame:
    name, module = entry.get("function_name"), entry.get("file_name")
    pc = entry.get("address")
    return Frame(
        pc=pc if isinstance(pc, int) and 0 <= pc < 1 << 64 else 0,
        function=plain_name(name[:MOST_WORDS]) if isinstance(name, str) else "",
        module=module[:MOST_WORDS] if isinstance(module, str) else "",
    )
