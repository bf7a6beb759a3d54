"""Personal data and secrets: found, and masked wherever a person reads of them."""

import re
from collections.abc import Iterator

from stdnum import luhn
from stdnum.cn import ric

# Runs of digits, perhaps in groups, and not inside a word, a decimal or a calculation.
_DIGITS = re.compile(r"(?<![0-9_.^])(?<![=+*/^]\s)(?<![=+*/^×])\d(?:[ -]?\d)*[Xx]?(?![0-9A-Za-z_]|\.\d)")
# In such a run, what may follow other groups of digits, as after a date.
_MOBILE = re.compile(r"(?<!\d)(?:(?:00|\+)?86[ -]?)?(1[3-9]\d[ -]?\d{4}[ -]?\d{4})(?!\d)")
_IDENTITY = re.compile(r"(?<!\d)\d{6}[ -]?\d{8}[ -]?\d{3}[\dXx](?!\d)")
_CARD = re.compile(r"(?<!\d)\d{4}(?:([ -]?)\d{4}(?:\1\d{4})+(?:\1\d{1,3})?|[ -]?\d{6}[ -]?\d{5})(?!\d)")
# Issuer prefixes and lengths: UnionPay, Visa, Mastercard, American Express.
_ISSUED = re.compile(r"62\d{14,17}|4\d{15}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}")
_AMOUNT = re.compile(r"\s*(?:[元块圆万亿米克吨人次个字年]|美元|人民币|欧元|日元|公里|千米|字节|bytes?\b|[=+*×÷^])")
_EMAIL = re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![A-Za-z])")
# Names that belong to nobody, hosts of code, and files such as logo@2x.png.
_NOBODY = re.compile(
    r"(?:[@.]example\.(?:com|org|net|cn)|\.(?:example|test|invalid|localhost|png|jpe?g|gif|webp|svg))$"
    r"|^(?:git@|e?mail@e?mail\.|x+@x+\.|(?:your[._-]?|user)?(?:name|email)@)",
    re.IGNORECASE,
)
# Keys by the shapes that their issuers gave them, so that scanners find them; then what is assigned to a telling name.
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bLTAI[0-9A-Za-z]{12,24}\b|\bAKID[0-9A-Za-z]{13,36}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{22,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bsk-(?=[A-Za-z-]*\d)(?:[A-Za-z0-9]+-)*[A-Za-z0-9_]{20,}|\bhf_[A-Za-z0-9]{30,}|\bxox[abeprs]-[A-Za-z0-9-]{10,}"
    r"|\bAIza[0-9A-Za-z_-]{35}|\bnpm_[A-Za-z0-9]{36}|\bpypi-[A-Za-z0-9_-]{50,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}"
    r"|\b[Bb]earer\s+[A-Za-z0-9._~+/-]{20,}|[a-z]{2,10}://[^\s/:@]{1,64}:[^\s/:@]{3,64}@"
    r"|(?:(?:api[_-]?key|secret(?:[_-]?(?:access[_-]?)?key)?|access[_-]?(?:key|token)|auth[_-]?token|passw(?:or)?d|\bpwd)"
    r"|密码|密钥|口令)[\"']?\s*(?:(?:is|as|为|是)?\s*[:=：]|\bis\b|是|为)\s*[\"'“「]?"
    r"(?=[!-~]*\d)(?=[!-~]*[A-Za-z])[A-Za-z0-9_/+=!@#$%^&*.-]{8,}",
    re.IGNORECASE,
)


def find_personal(text: str) -> Iterator[tuple[str, re.Match]]:
    """Kind and place of every identity card number, mobile number, bank card and e-mail address."""
    for run in _DIGITS.finditer(text):
        if run.end() - run.start() >= 11:
            yield from _numbers(text, run)
    for match in _EMAIL.finditer(text):
        if not _NOBODY.search(match[0]):
            yield "e-mail address", match


def _numbers(text: str, run: re.Match) -> Iterator[tuple[str, re.Match]]:
    """What a run of digits holds; of what overlaps, the longest kind."""
    taken = run.start()
    found = [
        (kind, match)
        for kind, pattern in _KINDS.items()
        for match in pattern.finditer(text, *run.span())
        if _is_valid(kind, re.sub("[ -]", "", match[0])) and not _AMOUNT.match(text, match.end())
    ]
    for kind, match in sorted(found, key=lambda each: (each[1].start(), -each[1].end())):
        if match.start() >= taken:
            taken = match.end()
            yield kind, match


_KINDS = {"identity card number": _IDENTITY, "bank card number": _CARD, "mobile number": _MOBILE}


def _is_valid(kind: str, digits: str) -> bool:
    """Whether the number can have been issued, going by its check digit where it has one."""
    if kind == "identity card number":
        return ric.is_valid(digits.upper())
    return kind == "mobile number" or bool(_ISSUED.fullmatch(digits) and luhn.is_valid(digits))


def find_secrets(text: str) -> Iterator[tuple[str, re.Match]]:
    """Kind and place of every key, token and password."""
    for match in _SECRET.finditer(text):
        yield "secret", match


def personal_data(text: str) -> str | None:
    """The first piece of personal data, by its kind and masked."""
    return next((f"{kind} {_masked(match[0])}" for kind, match in find_personal(text)), None)


def secret(text: str) -> str | None:
    """The first secret, masked."""
    return next((_masked(match[0]) for _, match in find_secrets(text)), None)


def mask(text: str) -> str:
    """The text with all personal data and secrets masked: what reports, logs and pages may show."""
    for find in (find_secrets, find_personal):
        for _, match in sorted(find(text), key=lambda found: -found[1].start()):
            text = text[: match.start()] + _masked(match[0]) + text[match.end() :]
    return text


def _masked(text: str) -> str:
    return f"{text[:3]}***"
