"""Personal data and secrets: found, and masked wherever a person reads of them."""

import re
from collections.abc import Iterator

from stdnum import luhn
from stdnum.cn import ric

from stages.validate.characters import in_ascii

# Runs of digits, perhaps in groups. No pattern of this file reads a character more than a bounded number of times:
# repeats are possessive or bounded, so that one row cannot stop the gate.
_DIGITS = re.compile(r"[0-9](?:[ -]?[0-9])*+[Xx]?+")
_SEPARATOR = re.compile("[ -]")
_CALCULATES = frozenset("=+*/^×")
# In such a run, what may follow other groups of digits, as after a date.
_MOBILE = re.compile(r"(?<!\d)(?:(?:00|\+)?86[ -]?)?(1[3-9]\d[ -]?\d{4}[ -]?\d{4})(?!\d)")
# Of Hong Kong, Macau and Taiwan only where a country code or the groups of three tell them from other numbers.
_MOBILE_ABROAD = re.compile(
    r"\+(?:85[23][ -]?[5-9]\d{3}[ -]?\d{4}|886[ -]?0?9\d{2}[ -]?\d{3}[ -]?\d{3})(?!\d)"
    r"|(?<![\d-])09\d{2}([ -])\d{3}\1\d{3}(?![\d-])"
)
_DOTTED = re.compile(r"(?<![\d.])1[3-9]\d\.\d{4}\.\d{4}(?![\d.])")
_IDENTITY = re.compile(r"(?<!\d)\d{6}[ -]?\d{8}[ -]?\d{3}[\dXx](?!\d)")
_CARD = re.compile(r"(?<!\d)\d{4}(?:([ -]?)\d{4}(?:\1\d{4}){1,3}(?:\1\d{1,3})?|[ -]?\d{6}[ -]?\d{5})(?!\d)")
# Issuer prefixes and lengths: UnionPay, Visa, Mastercard, American Express.
_ISSUED = re.compile(r"62\d{14,17}|4\d{15}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}")
# Numbers of payment services' documentation, which no bank issues.
_TEST_CARDS = {
    "4012888888881881", "4012001037141112", "4000056655665556", "4000002500003155", "4000002760003184",
    "4000000000000002", "4000000000009995", "4000000000000069", "4000000000000119", "4000000000000127",
    "4005519200000004", "4009348888881881", "4035501000000008", "4500600000000061", "4917610000000000",
    "4988438843884305", "4166676667666746", "5200828282828210", "5105105105105100", "5425233430109903",
    "5431111111111111", "5431111111111228", "5577000055770004", "5136333333333335", "5454545454545454",
    "5496198584584769", "2223003122003222", "2222400070000005", "2223000048400011", "378282246310005",
    "371449635398431", "378734493671000", "374245455400126", "343434343434343", "370000000000002", "6200000000000005",
    "6250941006528599", "6205500000000000004", "6221261111111111", "6243030000000001", "6222988812340000",
}  # fmt: skip
_AMOUNT = re.compile(r"\s{0,4}(?:[元块圆万亿米克吨人次个字年]|美元|人民币|欧元|日元|公里|千米|字节|bytes?\b|[=+*×÷^])")
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z])"
)
# Role addresses, hosts of code, files such as logo@2x.png, and what documentation writes.
_NOBODY = re.compile(
    r"[@.-]example-?\w{0,9}\.[a-z.]{2,9}$|\.(?:example|test|invalid|localhost|local|png|jpe?g|gif|webp|svg)$"
    r"|@(?:(?:my|your|this|some)?-?(?:e?mail|domain|company|site|website|host|server|business|organization|org|school"
    r"|university)|sample|test|abc|xyz|foo|bar|acme|x{2,}|y{2,}|xx\w)\.(?:com?|org|net|edu|io|dev|xx+)(?:\.[a-z]{2})?$"
    r"|^[^a-z0-9]*@|^git@|^(?:(?:your|my)[._-]?)?(?:e?mail|user|username|name|account|address|login)\d{0,3}@"
    r"|^(?:example|sample|test|tester|testuser|foo|bar|baz|someone|somebody|you|yourself|me|abc|xyz|x+|y+|z+"
    r"|first[._-]?name|last[._-]?name|first[._]last|(?:john|jane|joe)[._-]?doe|john[._-]?smith)\d{0,4}@"
    r"|^\w@\w{1,2}\.",
    re.IGNORECASE,
)
# An address of an organisation, unless it is that of a person at a provider of mail.
_OFFICE = re.compile(
    r"^(?:support|info|service|contact|sales|help|hello|no-?reply|do-?not-?reply|alerts?|notifications?|webmaster"
    r"|postmaster|marketing|press|feedback|customer[._-]?(?:service|care|support)|kefu|jobs|careers|privacy|security"
    r"|legal|billing|newsletter|enquir(?:y|ies))@(?!(?:qq|126|163|139|189|sina|sohu|foxmail|gmail|yahoo|hotmail|outlook"
    r"|aliyun|yeah|icloud|live|msn)\.)",
    re.IGNORECASE,
)


def find_personal(text: str) -> Iterator[tuple[str, re.Match]]:
    """Kind and place of every identity card number, mobile number, bank card and e-mail address.

    Full-width digits and letters, and those of other scripts, count as ASCII ones; a match holds them as such.
    """
    text = in_ascii(text)
    for run in _DIGITS.finditer(text):
        if run.end() - run.start() >= 10 and (span := _outside_of_words(text, *run.span())):
            yield from _numbers(text, *span)
    for match in _MOBILE_ABROAD.finditer(text) if "+8" in text or "09" in text else ():
        yield "mobile number", match
    for match in _DOTTED.finditer(text) if text.count(".") > 1 else ():
        yield "mobile number", match
    for match in _EMAIL.finditer(text) if "@" in text else ():
        if not _NOBODY.search(match[0]) and not _OFFICE.search(match[0]):
            yield "e-mail address", match


def _outside_of_words(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The groups of a run of digits that are not part of a word, a decimal or a calculation."""
    before = text[max(start - 2, 0) : start]
    if before[-1:] in {"_", ".", *_CALCULATES} or (before[-1:].isspace() and before[:1] in _CALCULATES):
        first = _SEPARATOR.search(text, start, end)
        if not first:
            return None
        start = first.end()
    after = text[end : end + 2]
    if (after[:1].isascii() and after[:1].isalnum()) or after[:1] == "_" or (after[:1] == "." and after[1:].isdigit()):
        end = max(text.rfind(" ", start, end), text.rfind("-", start, end))
    return (start, end) if end - start >= 10 else None


def _numbers(text: str, start: int, end: int) -> Iterator[tuple[str, re.Match]]:
    """What a run of digits holds; of what overlaps, the longest kind."""
    taken = start
    found = [
        (kind, match)
        for kind, pattern in _KINDS
        for match in pattern.finditer(text, start, end)
        if _is_valid(kind, re.sub("[ -]", "", match[0])) and not _AMOUNT.match(text, match.end())
    ]
    for kind, match in sorted(found, key=lambda kind_and_match: (kind_and_match[1].start(), -kind_and_match[1].end())):
        if match.start() >= taken:
            taken = match.end()
            yield kind, match


_KINDS = (
    ("identity card number", _IDENTITY),
    ("bank card number", _CARD),
    ("mobile number", _MOBILE),
)


def _is_valid(kind: str, digits: str) -> bool:
    """Whether the number can have been issued, going by its check digit where it has one."""
    if kind == "identity card number":
        return ric.is_valid(digits.upper())
    if kind == "mobile number":
        return True
    return bool(_ISSUED.fullmatch(digits)) and luhn.is_valid(digits) and not _is_test_card(digits)


def _is_test_card(digits: str) -> bool:
    """Whether it is on the list, repeats groups of four, is one digit over and over, or all zeros but a few."""
    repeats = digits[:4] * 4 == digits
    most = max(map(digits.count, set(digits)))
    return digits in _TEST_CARDS or repeats or most >= len(digits) - 5


# Secrets ---------------------------------------------------------------------------------------------

# What a text in small letters has to hold for a pattern to be tried, and keys by the shapes that their issuers gave
# them, so that scanners find them. The last group of a match is the secret.
_KEYS = tuple(
    (needles.split(), re.compile(pattern))
    for needles, pattern in (
        ("private", r"-----BEGIN (?:[A-Z]{1,20} ){0,3}PRIVATE KEY-----"),
        ("akia asia", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        ("ltai", r"\bLTAI[0-9A-Za-z]{12,24}\b"),
        ("akid", r"\bAKID[0-9A-Za-z]{13,36}\b"),
        ("ghp_ gho_ ghu_ ghs_ ghr_", r"\bgh[pousr]_[A-Za-z0-9]{30,255}"),
        ("github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{22,255}"),
        ("glpat-", r"\bglpat-[A-Za-z0-9_-]{20,255}"),
        ("hf_", r"\bhf_[A-Za-z0-9]{30,255}"),
        ("xox", r"\bxox[abeprs]-[A-Za-z0-9-]{10,255}"),
        ("aiza", r"\bAIza[0-9A-Za-z_-]{35}"),
        ("npm_", r"\bnpm_[A-Za-z0-9]{36}"),
        ("pypi-", r"\bpypi-[A-Za-z0-9_-]{50,255}"),
        ("_live_", r"\b[sr]k_live_[A-Za-z0-9]{16,255}"),
        ("bearer", r"\b[Bb](?i:earer)\s{1,4}([A-Za-z0-9._~+/-]{20,500}+)"),
    )
)
_DASHED = re.compile(r"(?<![A-Za-z0-9])(?i:sk)-[A-Za-z0-9_-]++")
_TOKEN = re.compile(r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_.-]++")  # a JSON web token: {"… in base64
_LOGIN = re.compile(r"://([^\s/:@]{1,64}):([^\s/:@]{3,64})@")
_NAMES = (
    "apikey", "api_key", "api-key", "secret", "accesskey", "access_", "access-", "authtoken", "auth_", "auth-",
    "passwd", "password", "pwd", "密码", "密碼", "密钥", "密鑰", "金鑰", "口令",
)  # fmt: skip
_ASSIGNED = re.compile(
    r"(?:(?:a(?:pi[_-]?key|ccess[_-]?(?:key|token)|uth[_-]?token)|secret(?:[_-]?(?:access[_-]?)?key)?|passw(?:or)?d"
    r"|\bpwd)"
    r"|密[码碼钥鑰]|金鑰|口令)[\"'”」]?\s{0,4}(?:(?:is|as|[为為是])?\s{0,4}[:=：]|is\b|[是为為])\s{0,4}[\"'“「]?"
    r"([A-Za-z0-9_/+=!@#$%^&*.-]{8,200}+)(?!\()",
    re.IGNORECASE,
)
# Values that stand for one, as documentation writes them.
_STANDS_FOR_ONE = re.compile(
    r"your|example|sample|dummy|placeholder|change_?me|redacted|x{4}|\*{3}|\.{3}|insert|replace|[_-]here|my[_-]"
    r"|p[a@4][s$5]{2}[w_]|(?:^|[^a-z])(?:test|demo|fake|foo|mock)(?:[^a-z]|$)|^[<$%{\[]|1234567890"
    r"|eyJzdWIiOiIxMjM0NTY3",
    re.IGNORECASE,
)
_DEFAULTS = {
    "pass", "password", "passwd", "pwd", "secret", "postgres", "root", "admin", "user", "mysql", "redis", "guest",
    "test", "token",
}  # fmt: skip
# A password that the row was asked to make up.
_MADE_UP = re.compile(
    r"(?:生成|随机|隨機|创建|强|random(?:ly)?|generat\w{1,5}|create|strong)[^。\n]{0,30}(?:密码|密碼|口令|password)",
    re.IGNORECASE,
)


def find_secrets(text: str) -> Iterator[tuple[str, re.Match]]:
    """Kind and place of every key, token and password, but for those that only stand for one."""
    small = text.lower()
    for needles, pattern in _KEYS:
        if any(needle in small for needle in needles):
            yield from (("secret", match) for match in pattern.finditer(text) if _is_meant(match[match.lastindex or 0]))
    if "sk-" in small:
        yield from (("secret", match) for match in _DASHED.finditer(text) if _is_dashed_key(match[0]))
    if "eyj" in small:
        yield from (("secret", match) for match in _TOKEN.finditer(text) if _is_token(match[0]))
    if "://" in text:
        yield from (("secret", match) for match in _LOGIN.finditer(text) if _is_login(match[1], match[2]))
    if any(name in small for name in _NAMES):
        assigned = [match for match in _ASSIGNED.finditer(text) if _is_password(match[1])]
        if assigned and not _MADE_UP.search(text):
            yield from (("secret", match) for match in assigned)


def _is_meant(value: str) -> bool:
    """Whether a value is one itself, and does not only stand for one."""
    return not _STANDS_FOR_ONE.search(value) and len(set(value.lower())) > 3


def _is_dashed_key(token: str) -> bool:
    digits = any(map(str.isdigit, token[3:]))
    return digits and len(token.rpartition("-")[2]) >= 20 and _is_meant(token[3:])


def _is_token(token: str) -> bool:
    parts = token.split(".", 3)
    return (
        len(parts) > 2
        and all(len(part) >= 5 + 5 * (place < 2) for place, part in enumerate(parts[:3]))
        and _is_meant(token)
    )


def _is_login(user: str, password: str) -> bool:
    return password.lower() not in {*_DEFAULTS, user.lower()} and _is_meant(password)


def _is_password(value: str) -> bool:
    letters = any("a" <= character <= "z" for character in value.lower())
    return letters and any(map(str.isdigit, value)) and _is_meant(value)


# Masking ---------------------------------------------------------------------------------------------


def personal_data(text: str) -> str | None:
    """The first piece of personal data, by its kind and masked."""
    return next((f"{kind} {_masked(match[0])}" for kind, match in find_personal(text)), None)


def secret(text: str) -> str | None:
    """The first secret, masked."""
    return next((_masked(match[0]) for _, match in find_secrets(text)), None)


def mask(text: str) -> str:
    """The text with all personal data and secrets masked: what reports, logs and pages may show."""
    for find in (find_secrets, find_personal):
        parts, position = [], 0
        for start, end, first in sorted((*match.span(), match[0]) for _, match in find(text)):
            if start >= position:
                parts += [text[position:start], _masked(first)]
            position = max(position, end)
        text = "".join((*parts, text[position:]))
    return text


def _masked(text: str) -> str:
    return f"{text[:3]}***"
