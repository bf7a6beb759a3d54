"""Personal data and secrets in a text: detection, and masking in reports and logs.

Secrets are found by patterns of our own. detect-secrets 1.5.0, measured on the cases of
tests/stages/test_validate_texts.py and on 689 rows of OAAST (Chinese), is worse: scanning a row as a file, it finds 8
of 18 secrets (none after a Chinese word such as 密码, no ``hf_``, ``LTAI`` or ``Bearer``), reports 9 of 17 values that
are not secrets (``your-api-key``, ``user:password@localhost``) and takes 13 ms per row instead of 0.2 ms. With its
entropy rules on unquoted text it finds all 18, but reports 15 of the 17 and 442 of the 689 rows. It returns no offsets
for masking.
"""

import re
from collections.abc import Iterable, Iterator

from stdnum import luhn
from stdnum.cn import ric

from stages.validate.characters import to_ascii

# Runs of digits, possibly in groups. All repetitions in this file are possessive or bounded, so that no row causes
# catastrophic backtracking.
_DIGITS = re.compile(r"[0-9](?:[ -]?[0-9])*+[Xx]?+")
_SEPARATOR = re.compile("[ -]")
_OPERATORS = frozenset("=+*/^×")
# Searched within a run, because a number may follow other digits, such as a date.
_MOBILE = re.compile(r"(?<!\d)(?:(?:00|\+)?86[ -]?)?(1[3-9]\d[ -]?\d{4}[ -]?\d{4})(?!\d)")
# Hong Kong, Macau and Taiwan: only with a country code or in groups of three, as other numbers have as many digits.
_MOBILE_ABROAD = re.compile(
    r"\+(?:85[23][ -]?[5-9]\d{3}[ -]?\d{4}|886[ -]?0?9\d{2}[ -]?\d{3}[ -]?\d{3})(?!\d)"
    r"|(?<![\d-])09\d{2}([ -])\d{3}\1\d{3}(?![\d-])"
)
_DOTTED = re.compile(r"(?<![\d.])1[3-9]\d\.\d{4}\.\d{4}(?![\d.])")
_IDENTITY = re.compile(r"(?<!\d)\d{6}[ -]?\d{8}[ -]?\d{3}[\dXx](?!\d)")
_CARD = re.compile(r"(?<!\d)\d{4}(?:([ -]?)\d{4}(?:\1\d{4}){1,3}(?:\1\d{1,3})?|[ -]?\d{6}[ -]?\d{5})(?!\d)")
# Issuer prefixes and lengths: UnionPay, Visa, Mastercard, American Express.
_ISSUED = re.compile(r"62\d{14,17}|4\d{15}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}")
# Test numbers from the documentation of payment services; no bank issues them.
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
# Addresses of no person: examples of documentation, hosts of code, files such as logo@2x.png.
_EXAMPLE_ADDRESS = re.compile(
    r"[@.-]example-?\w{0,9}\.[a-z.]{2,9}$|\.(?:example|test|invalid|localhost|local|png|jpe?g|gif|webp|svg)$"
    r"|@(?:(?:my|your|this|some)?-?(?:e?mail|domain|company|site|website|host|server|business|organization|org|school"
    r"|university)|sample|test|abc|xyz|foo|bar|acme|x{2,}|y{2,}|xx\w)\.(?:com?|org|net|edu|io|dev|xx+)(?:\.[a-z]{2})?$"
    r"|^[^a-z0-9]*@|^git@|^(?:(?:your|my)[._-]?)?(?:e?mail|user|username|name|account|address|login)\d{0,3}@"
    r"|^(?:example|sample|test|tester|testuser|foo|bar|baz|someone|somebody|you|yourself|me|abc|xyz|x+|y+|z+"
    r"|first[._-]?name|last[._-]?name|first[._]last|(?:john|jane|joe)[._-]?doe|john[._-]?smith)\d{0,4}@"
    r"|^\w@\w{1,2}\.",
    re.IGNORECASE,
)
# Role addresses of organisations; at a free mail provider, the same name belongs to a person.
_ROLE_ADDRESS = re.compile(
    r"^(?:support|info|service|contact|sales|help|hello|no-?reply|do-?not-?reply|alerts?|notifications?|webmaster"
    r"|postmaster|marketing|press|feedback|customer[._-]?(?:service|care|support)|kefu|jobs|careers|privacy|security"
    r"|legal|billing|newsletter|[ei]nquir(?:y|ies)|foia|media|office|admissions|registrar|library|editor|news"
    r"|events|reservations|bookings?|orders|recruitment|research|secretary|reception|records|public[._-]?affairs)@(?!(?:qq|126|163|139|189|sina|sohu|foxmail|gmail|yahoo|hotmail|outlook"
    r"|aliyun|yeah|icloud|live|msn)\.)",
    re.IGNORECASE,
)


def iter_personal_data(text: str) -> Iterator[tuple[str, re.Match]]:
    """Yield kind and match of every identity card number, mobile number, bank card number and e-mail address.

    The text is searched in its ASCII form (see :func:`stages.validate.characters.to_ascii`), with the same offsets.
    """
    text = to_ascii(text)
    for run in _DIGITS.finditer(text):
        if run.end() - run.start() >= 10 and (span := _trim_run(text, *run.span())):
            yield from _iter_numbers(text, *span)
    for match in _MOBILE_ABROAD.finditer(text) if "+8" in text or "09" in text else ():
        yield "mobile number", match
    for match in _DOTTED.finditer(text) if text.count(".") > 1 else ():
        yield "mobile number", match
    for match in _EMAIL.finditer(text) if "@" in text else ():
        if not (_EXAMPLE_ADDRESS.search(match[0]) or _is_role_address(match[0])):
            yield "e-mail address", match


def _is_role_address(address: str) -> bool:
    """Whether an address is of an office; it may repeat the organization: uscis.foia@uscis.dhs.gov."""
    local, _, domain = address.lower().partition("@")
    labels = domain.split(".")
    words = [word for word in re.split("[._-]", local) if word not in labels[:-1]]
    return bool(_ROLE_ADDRESS.search(f"{'-'.join(words)}@{domain}"))


def _trim_run(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Trim the groups of a run of digits that belong to a word, a decimal or a calculation.

    Returns:
        Start and end of the remaining digits; None if they are too few for any number.
    """
    before = text[max(start - 2, 0) : start]
    if before[-1:] in {"_", ".", *_OPERATORS} or (before[-1:].isspace() and before[:1] in _OPERATORS):
        separator = _SEPARATOR.search(text, start, end)
        if not separator:
            return None
        start = separator.end()
    after = text[end : end + 2]
    if (after[:1].isascii() and after[:1].isalnum()) or after[:1] == "_" or (after[:1] == "." and after[1:].isdigit()):
        end = max(text.rfind(" ", start, end), text.rfind("-", start, end))
    return (start, end) if end - start >= 10 else None


def _iter_numbers(text: str, start: int, end: int) -> Iterator[tuple[str, re.Match]]:
    """Yield the numbers in a run of digits; of overlapping ones, the first and longest."""
    matches = [
        (kind, match)
        for kind, pattern in _KINDS
        for match in pattern.finditer(text, start, end)
        if _is_valid(kind, re.sub("[ -]", "", match[0])) and not _AMOUNT.match(text, match.end())
    ]
    position = start
    for kind, match in sorted(
        matches, key=lambda kind_and_match: (kind_and_match[1].start(), -kind_and_match[1].end())
    ):
        if match.start() >= position:
            position = match.end()
            yield kind, match


_KINDS = (
    ("identity card number", _IDENTITY),
    ("bank card number", _CARD),
    ("mobile number", _MOBILE),
)


def _is_valid(kind: str, digits: str) -> bool:
    """Whether a number can have been issued, by its prefix and check digit."""
    if kind == "identity card number":
        return ric.is_valid(digits.upper())
    if kind == "mobile number":
        return True
    return bool(_ISSUED.fullmatch(digits)) and luhn.is_valid(digits) and not _is_test_card(digits)


def _is_test_card(digits: str) -> bool:
    """Whether a card number is a documented test number, or consists of a repeated group or digit."""
    repeats = digits[:4] * 4 == digits
    most = max(map(digits.count, set(digits)))
    return digits in _TEST_CARDS or repeats or most >= len(digits) - 5


# Secrets -------------------------------------------------------------------------------------------

# Keys with the prefixes of their issuers. Each pattern is searched only if the lower-case text has one of its
# substrings. The last group of a match is the secret.
_KEYS = tuple(
    (substrings.split(), re.compile(pattern))
    for substrings, pattern in (
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
_SK_KEY = re.compile(r"(?<![A-Za-z0-9])(?i:sk)-[A-Za-z0-9_-]++")
_WEB_TOKEN = re.compile(r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_.-]++")  # JSON web token: {"… in base64
_URL_LOGIN = re.compile(r"://([^\s/:@]{1,64}):([^\s/:@]{3,64})@")
# A lower-case text without any of these substrings cannot match _ASSIGNMENT.
_SECRET_NAMES = (
    "apikey", "api_key", "api-key", "secret", "accesskey", "access_", "access-", "authtoken", "auth_", "auth-",
    "passwd", "password", "pwd", "密码", "密碼", "密钥", "密鑰", "金鑰", "口令",
)  # fmt: skip
_ASSIGNMENT = re.compile(
    # Encrypted and hashed passwords are no secrets.
    r"(?:(?:a(?:pi[_-]?key|ccess[_-]?(?:key|token)|uth[_-]?token)|secret(?:[_-]?(?:access[_-]?)?key)?"
    r"|(?<!enc_)(?<!crypted_)(?<!crypted )(?<!hash_)(?<!hashed_)(?<!hashed )passw(?:or)?d|\bpwd)"
    r"|密[码碼钥鑰]|金鑰|口令)[\"'”」]?\s{0,4}(?:(?:is|as|[为為是])?\s{0,4}[:=：]|is\b|[是为為])\s{0,4}[\"'“「]?"
    r"([A-Za-z0-9_/+=!@#$%^&*.-]{8,200}+)(?!\()",
    re.IGNORECASE,
)
# Dummy values of documentation.
_DUMMY = re.compile(
    r"your|example|sample|dummy|placeholder|change_?me|redacted|x{4}|\*{3}|\.{3}|insert|replace|[_-]here|my[_-]"
    r"|p[a@4][s$5]{2}[w_]|(?:^|[^a-z])(?:test|demo|fake|foo|mock)(?:[^a-z]|$)|^[<$%{\[]|1234567890"
    r"|eyJzdWIiOiIxMjM0NTY3",
    re.IGNORECASE,
)
_DEFAULT_PASSWORDS = {
    "pass", "password", "passwd", "pwd", "secret", "postgres", "root", "admin", "user", "mysql", "redis", "guest",
    "test", "token",
}  # fmt: skip
# Requests to generate a password: the answer is no secret.
_PASSWORD_REQUEST = re.compile(
    r"(?:生成|随机|隨機|创建|强|random(?:ly)?|generat\w{1,5}|create|strong)[^。\n]{0,30}(?:密码|密碼|口令|password)",
    re.IGNORECASE,
)


def iter_secrets(text: str) -> Iterator[re.Match]:
    """Yield the match of every key, token and password, except dummy values."""
    lower = text.lower()
    for substrings, pattern in _KEYS:
        if any(substring in lower for substring in substrings):
            yield from (match for match in pattern.finditer(text) if _is_genuine(match[match.lastindex or 0]))
    if "sk-" in lower:
        yield from (match for match in _SK_KEY.finditer(text) if _is_sk_key(match[0]))
    if "eyj" in lower:
        yield from (match for match in _WEB_TOKEN.finditer(text) if _is_web_token(match[0]))
    if "://" in text:
        yield from (match for match in _URL_LOGIN.finditer(text) if _is_login(match[1], match[2]))
    if any(name in lower for name in _SECRET_NAMES):
        passwords = [match for match in _ASSIGNMENT.finditer(text) if _is_password(match[1])]
        if passwords and not _PASSWORD_REQUEST.search(text):
            yield from passwords


def _is_genuine(value: str) -> bool:
    """Whether a value is not a dummy: neither a word of documentation nor a few repeated characters."""
    return not _DUMMY.search(value) and len(set(value.lower())) > 3


def _is_sk_key(token: str) -> bool:
    has_digits = any(map(str.isdigit, token[3:]))
    return has_digits and len(token.rpartition("-")[2]) >= 20 and _is_genuine(token[3:])


def _is_web_token(token: str) -> bool:
    """Whether a token has the three parts of a JSON web token: header, payload, signature."""
    parts = token.split(".", 3)
    if len(parts) < 3:
        return False
    header, payload, signature = parts[:3]
    return len(header) >= 10 and len(payload) >= 10 and len(signature) >= 5 and _is_genuine(token)


def _is_login(user: str, password: str) -> bool:
    return password.lower() not in {*_DEFAULT_PASSWORDS, user.lower()} and _is_genuine(password)


def _is_password(value: str) -> bool:
    has_letters = any("a" <= character <= "z" for character in value.lower())
    return has_letters and any(map(str.isdigit, value)) and _is_genuine(value)


# Masking -------------------------------------------------------------------------------------------


def find_personal_data(text: str) -> str | None:
    """Return kind and masked value of the first personal data; None if there is none."""
    return next((f"{kind} {_mask_match(match)}" for kind, match in iter_personal_data(text)), None)


def find_secret(text: str) -> str | None:
    """Return the first secret, masked; None if there is none."""
    return next((_mask_match(match) for match in iter_secrets(text)), None)


def mask(text: str) -> str:
    """Replace all personal data and secrets by their first three characters and ``***``."""
    text = _mask_all(text, iter_secrets(text))
    return _mask_all(text, (match for _, match in iter_personal_data(text)))


def _mask_all(text: str, matches: Iterable[re.Match]) -> str:
    parts, position = [], 0
    for match in sorted(matches, key=lambda match: (*match.span(), match[0])):
        if match.start() >= position:
            parts += [text[position : match.start()], _mask_match(match)]
        position = max(position, match.end())
    return "".join((*parts, text[position:]))


def _mask_match(match: re.Match) -> str:
    return f"{match[0][:3]}***"
