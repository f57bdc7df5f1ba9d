"""The one list of what is a secret, in whatever text it stands; who captures, redacts or reports asks it here."""

from __future__ import annotations

import re

REMOVED = "(removed)"

# Parts of names whose values are secrets.
NAMES = (
    r"pass(?:w(?:or)?d|phrase|code)|passw|token|credential|api[-_]?key|private[-_]?key|auth[-_]?key|access[-_]?key"
    r"|account[-_]?key|encryption[-_]?key|secret[-_]?key|amz-signature|cookie|authorization|keyring|fingerprint|psk|luks"
    r"|chap|session[-_]?id|otp|pincode"
)
# A key whose whole value is taken out: in JSON, on a command line, in a configuration.
KEY = re.compile(rf"{NAMES}|secret$|master-pubkey|sshkeys?$|^pw$|^pin$", re.IGNORECASE)
# The names of secret objects, which say nothing; their values would be `data`.
SECRET_ID = re.compile(r"-secret$|^secret-?id$", re.IGNORECASE)
# key=value, key: value, "key": "value", --key value, `key is value`.
WORD = re.compile(
    rf"(?P<key>[\w.-]*(?:{NAMES}|secret)[\w.-]*['\"]?(?:\s*(?:=|:)\s*|\s(?:is|was)\s)"
    rf"|(?<![\w-])--?[\w-]*(?:{NAMES}|secret)[\w-]*\s+(?!-))"
    r"(?P<value>'[^'\n]*'|\"(?:[^\"\n\\]|\\.)*\"|(?:Bearer|Basic|Digest|Negotiate|Token)\s+\S+|[^\s,;'\"<>&]+)",
    re.IGNORECASE,
)
# A line of a configuration, whose value ends with the line.
LINE = re.compile(rf"^(?P<key>\s*[\w-]*(?:{NAMES}|secret)[\w-]*\s*:\s*)\S.*$", re.IGNORECASE | re.MULTILINE)
SCHEME = re.compile(r"\b(?P<key>Bearer|Basic|Negotiate)\s+[A-Za-z0-9+/_.~=-]{8,}", re.IGNORECASE)
# -object secret,id=s0,data=…; its JSON; libvirt's and others' XML.
DATA = re.compile(r"(?P<key>\bsecret\b[^\s'\"]*?,data=)[^\s,'\"<>]+", re.IGNORECASE)
JSON_DATA = re.compile(r"(?P<key>\"data\"\s*:\s*)\"(?:[^\"\\]|\\.)*\"")
ELEMENT = re.compile(r"(?P<key><(?:secret|passwd|password|passphrase|token|cookie)\b[^>/]*>)[^<]+", re.IGNORECASE)
USERINFO = re.compile(r"(?P<key>\b[a-z][a-z0-9+]{1,15}://)[^\s/@'\"]+@", re.IGNORECASE)
PEM = re.compile(r"-----BEGIN [^-\n]+-----.*?(?:-----END [^-\n]+-----|\Z)", re.DOTALL)
SSH_KEY = re.compile(r"\b(?:ssh-(?:rsa|ed25519|dss)|ecdsa-sha2-\w+)[ %]\S+(?: [^\s,]+)?")
# A key of Ceph (`key = AQ…==`), JSON Web Tokens, and keys that their issuers mark.
MARKED = re.compile(
    r"\bAQ[A-Za-z0-9+/]{32,40}==|\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk_live_|hvs\.)[\w.-]{10,}"
)
# What each of the above cannot do without, in small letters but for the marks: most texts have none of it.
MARKS = ("AQ", "eyJ", "AKIA", "ASIA", "gh", "glpat-", "xox", "sk_live_", "hvs.")
STEMS = (
    *("passw", "passphrase", "passcode", "token", "credential", "key", "amz-signature", "cookie", "authorization"),
    *("fingerprint", "psk", "luks", "chap", "session", "otp", "pincode", "secret"),
)
SCHEMES = ("bearer", "basic", "negotiate")
# The text of one of these is a name of somebody or something: no secret, and not for strangers.
EMAIL = re.compile(r"[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
OF_IQN = ("0x5", "iqn.", "eui.", "naa.", "wwn-0x")  # one of which each has
IQN = re.compile(r"\b0x5[0-9a-f]{15}\b|\b(?:iqn\.\d{4}-\d\d\.|eui\.|naa\.|wwn-0x)[\w.:-]{4,}", re.IGNORECASE)
LENGTH_OF_WWN = 23
WWN = re.compile(r"(?<![\w:])[0-9a-f]{2}(?::[0-9a-f]{2}){7}(?![\w:])", re.IGNORECASE)


# What a pattern takes for these letters of ASCII where case does not matter, beside their capitals.
ALIKE = str.maketrans("\u0130\u0131\u017f\u212a", "iisk")


def small(text: str) -> str:
    """Return a text in small letters, as a pattern sees it for which case does not matter."""
    return (text if text.isascii() else text.translate(ALIKE)).lower()


def holds(letters: str, hints: tuple[str, ...]) -> bool:
    """Return whether a text has any of the words in it."""
    for hint in hints:  # noqa: SIM110 - any() takes three times as long, and this is asked of every line
        if hint in letters:
            return True
    return False


def without_secrets(text: str, *, has_keys: bool = True) -> str:
    """Return a text whose secrets are taken out, line by line where it was; names and addresses stay.

    `has_keys` is False where it is known that no word of STEMS and SCHEMES is in it.
    """
    letters = small(text) if has_keys else ""
    if "-----BEGIN " in text:
        text = PEM.sub(lambda match: REMOVED + "\n" * match[0].count("\n"), text)
    if "ssh-" in text or "ecdsa-" in text:
        text = SSH_KEY.sub(REMOVED, text)
    if holds(text, MARKS):
        text = MARKED.sub(REMOVED, text)
    if holds(letters, STEMS):
        for pattern in (DATA, LINE, WORD):
            text = pattern.sub(_removed, text)
        text = ELEMENT.sub(_removed, text)
    if '"data"' in text:
        text = JSON_DATA.sub(lambda match: f'{match["key"]}"{REMOVED}"', text)
    if holds(letters, SCHEMES):
        text = SCHEME.sub(lambda match: f"{match['key']} {REMOVED}", text)
    if "://" in text:
        text = USERINFO.sub(lambda match: f"{match['key']}{REMOVED}@", text)
    return text


def _removed(match: re.Match[str]) -> str:
    key = match["key"]
    name = re.split(r"[\s=:'\"]", key.strip().lstrip("-"), maxsplit=1)[0]
    if SECRET_ID.search(name) or match[0].endswith(REMOVED):
        return match[0]
    value = match[0][len(key) :]
    quote = value[0] if value[:1] in {"'", '"'} and value[-1:] == value[:1] else ""
    return f"{key}{quote}{REMOVED}{quote}"
