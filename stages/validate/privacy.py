"""Personal data and secrets: found, and masked wherever a person reads of them."""

import re
from collections.abc import Iterator

from stdnum import luhn
from stdnum.cn import ric

# Eleven to nineteen digits, perhaps in groups, and not inside a longer number, decimal or word.
_DIGITS = re.compile(r"(?<![0-9A-Za-z_.])\d(?:[ -]?\d){9,17}(?:[ -]?[\dXx])(?![0-9A-Za-z_]|\.\d)")
_MOBILE = re.compile(r"(?:00)?(?:86)?(1[3-9]\d{9})")
# Issuer prefixes and lengths: UnionPay, Visa, Mastercard, American Express.
_CARD = re.compile(r"62\d{14,17}|4\d{15}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}")
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![A-Za-z])")
_RESERVED_DOMAIN = re.compile(r"(?:[@.]example\.(?:com|org|net|cn)|\.(?:example|test|invalid|localhost))$", re.I)
# Keys by the shapes that their issuers gave them, so that scanners find them; then what is assigned to a telling name.
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bLTAI[0-9A-Za-z]{12,24}\b|\bAKID[0-9A-Za-z]{13,36}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{22,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bsk-(?:[A-Za-z0-9]+-)*[A-Za-z0-9_]{20,}|\bhf_[A-Za-z0-9]{30,}|\bxox[abeprs]-[A-Za-z0-9-]{10,}"
    r"|\bAIza[0-9A-Za-z_-]{35}|\bnpm_[A-Za-z0-9]{36}|\bpypi-[A-Za-z0-9_-]{50,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}"
    r"|\b[Bb]earer\s+[A-Za-z0-9._~+/-]{20,}|[a-z]{2,10}://[^\s/:@]{1,64}:[^\s/:@]{3,64}@"
    r"|(?:\b(?:api[_-]?key|secret(?:[_-]?key)?|access[_-]?(?:key|token)|auth[_-]?token|passw(?:or)?d|pwd)|密码|密钥)"
    r"[\"']?\s*(?:[:=：]|是|为)\s*[\"']?(?=[A-Za-z_]*\d)[A-Za-z0-9_/+=!@#$%^&*.-]{8,}",
    re.IGNORECASE,
)


def find_personal(text: str) -> Iterator[tuple[str, re.Match]]:
    """Kind and place of every identity card number, mobile number, bank card and e-mail address."""
    for match in _DIGITS.finditer(text):
        if kind := _kind_of_number(re.sub("[ -]", "", match[0])):
            yield kind, match
    for match in _EMAIL.finditer(text):
        if not _RESERVED_DOMAIN.search(match[0]):
            yield "e-mail address", match


def _kind_of_number(digits: str) -> str | None:
    if len(digits) == 18 and ric.is_valid(digits.upper()):
        return "identity card number"
    if _MOBILE.fullmatch(digits):
        return "mobile number"
    if _CARD.fullmatch(digits) and luhn.is_valid(digits):
        return "bank card number"
    return None


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
