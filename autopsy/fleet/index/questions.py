"""The questions that are asked of every index, in SQL."""

from __future__ import annotations

from autopsy.dataclass import dataclass
from autopsy.errors import UsageError
from autopsy.fleet.index.row import FleetRow

# What a version is compared by: 10.0.2 of "10.0.2 (Debian 1:10.0.2+ds-2)" as a list of numbers.
_NUMBERS = "try_cast(string_split(regexp_extract({}, '^[0-9]+(\\.[0-9]+)*'), '.') AS INTEGER[])"
_STUCK = "error = '' AND \"where\" <> 'none'"

TOP = f"""
SELECT signature, cluster, count(*) AS captures, count(DISTINCT host) AS hosts, min(time) AS first, max(time) AS last,
  round(100 * avg(CAST(confidence = 'proven' AS INTEGER))) AS proven_percent
FROM latest WHERE {_STUCK} GROUP BY ALL ORDER BY captures DESC, cluster LIMIT 20
"""  # noqa: S608 - words of ours

UNKNOWN = """
SELECT cluster, count(*) AS captures, count(DISTINCT host) AS hosts, min(time) AS first, max(time) AS last,
  count(DISTINCT build_id) AS builds, min_by(bundle, size) AS smallest
FROM latest WHERE signature = 'unknown' GROUP BY ALL ORDER BY captures DESC, cluster LIMIT 50
"""

ERRORS = """
SELECT error, count(*) AS bundles, min_by(bundle, size) AS smallest, min_by(source, size) AS source
FROM latest WHERE error <> '' GROUP BY ALL ORDER BY bundles DESC, error LIMIT 50
"""

# A signature that nobody has seen since is not proven to be gone: hosts that have the version are counted beside it.
SINCE_UPGRADE = f"""
WITH told AS (
    SELECT *, {_NUMBERS.format("qemu_version")} AS version FROM latest WHERE {_STUCK} AND qemu_version <> ''
  ),
  since AS (
    SELECT CASE WHEN $version = '' THEN max(version) ELSE {_NUMBERS.format("$version")} END AS version FROM told
  ),
  sides AS (SELECT told.*, told.version >= since.version AS after FROM told, since)
SELECT signature,
  CASE WHEN NOT bool_or(after) THEN 'not seen since' WHEN bool_and(after) THEN 'new since' ELSE 'still seen' END
    AS it_is,
  count(*) FILTER (NOT after) AS before, count(DISTINCT host) FILTER (NOT after) AS hosts_before,
  max(time) FILTER (NOT after) AS last_before,
  count(*) FILTER (after) AS since, count(DISTINCT host) FILTER (after) AS hosts_since,
  min(time) FILTER (after) AS first_since, max(time) FILTER (after) AS last_since,
  (SELECT count(DISTINCT host) FROM sides WHERE after) AS hosts_upgraded,
  (SELECT array_to_string(version, '.') FROM since) AS version
FROM sides GROUP BY signature ORDER BY it_is, before + since DESC, signature
"""  # noqa: S608 - likewise

_ALIKE = "len(list_intersect({0}, ${1})) / greatest(1, len(list_distinct(list_concat({0}, ${1}))))"
SIMILAR = f"""
SELECT bundle, time, host, qemu_version, signature, cluster = $cluster AS same_mechanism,
  round({_ALIKE.format("stacks_named", "named")}, 2) AS by_names,
  round({_ALIKE.format("stacks_raw", "raw")}, 2) AS by_offsets
FROM latest
WHERE error = '' AND bundle <> $bundle
  AND (cluster = $cluster OR list_has_any(stacks_named, $named) OR list_has_any(stacks_raw, $raw))
ORDER BY CAST(same_mechanism AS INTEGER) + by_names + by_offsets DESC, time DESC, bundle LIMIT 20
"""  # noqa: S608 - likewise

ROW = "SELECT DISTINCT bundle, cluster, stacks_named, stacks_raw FROM latest WHERE starts_with(bundle, $bundle) LIMIT 2"

SEEN = """
SELECT count(*) AS times, count(DISTINCT host) AS hosts, min(time) AS first, max(time) AS last
FROM latest WHERE error = '' AND cluster = $cluster AND bundle <> $bundle
"""

NAMES = ("top", "similar", "since-upgrade", "unknown", "errors")
_PLAIN = {"top": TOP, "unknown": UNKNOWN, "errors": ERRORS}


@dataclass(frozen=True, slots=True)
class Question:
    """SQL with what stands for its names."""

    sql: str
    parameters: dict[str, object]


def question(words: tuple[str, ...]) -> Question:
    """Return what is asked: a named question with what it takes, or SQL.

    Raises:
        UsageError: a named question takes something else.
    """
    name, *more = words
    if name in _PLAIN and not more:
        return Question(_PLAIN[name], {})
    if name == "since-upgrade" and len(more) <= 1:
        return Question(SINCE_UPGRADE, {"version": more[0] if more else ""})
    if name in NAMES:
        raise UsageError(
            name, "is asked otherwise", remedy="say top, unknown, errors, since-upgrade [VERSION], similar BUNDLE"
        )
    if more:
        raise UsageError("query", "it is more than one question", remedy="put the SQL into quotes")
    return Question(name, {})


def similar_to(row: FleetRow) -> Question:
    """Ask for what is most like a bundle."""
    named, raw = list(row.stacks_named), list(row.stacks_raw)
    return Question(SIMILAR, {"bundle": row.bundle, "cluster": row.cluster, "named": named, "raw": raw})
