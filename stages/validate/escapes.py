"""Text that was encoded once too often: the escapes of JSON and Excel, spelled in letters."""

import re
from collections.abc import Sequence

from models.sample import Message

_HAN = "\u4e00-\u9fff"
_JSON_ESCAPE = re.compile(
    r"(?:\\u[0-9a-fA-F]{4}){3,}+"  # characters by their codes
    # Line ends between sentences and before list items; a small letter behind \\n makes it a command of TeX.
    rf"|(?<=[。！？；：，、”’）》】.!?:;,)])(?:\\r)?\\n(?![a-z])|(?<=[{_HAN}A-Za-z0-9])(?:\\r)?\\n(?=[{_HAN}*•\-]|\d+[.、)])"
    r"|\\r\\n|\\n\\n"
    rf'|\\"(?=[{_HAN}])|(?<=[{_HAN}])\\"|https?:\\/\\/'
)
_EXCEL_ESCAPE = re.compile(r"_x00[01][0-9A-Fa-f]_")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|\$\$?[^$]+\$\$?", re.DOTALL)
# Texts about escapes, programs and formulas spell them on purpose.
_IS_MEANT = re.compile(
    r"转义|换行|反斜[杠线]|正则|编码|字符串|代码|程序|编程|函数|脚本|命令|路径|公式|unicode|utf-?8|escap|newline"
    r"|line break|regex|regular expr|backslash|json|latex|python|java|\bc\+\+|\bprint|\bstring|\bcode\b|\bscript"
    r"|\bshell|\bbash|\bsql\b",
    re.IGNORECASE,
)
_MANY = 3  # escapes in a text without a real line end: encoded twice, whatever the topic


def escape(messages: Sequence[Message]) -> str | None:
    """The first escape outside of code in a conversation that does not speak of such things."""
    text = "\n".join(message.content for message in messages)
    prose = _CODE.sub(" ", text) if "`" in text or "$" in text else text
    if (match := _EXCEL_ESCAPE.search(prose)) and not _asks_about_excel(messages):
        return match[0]
    if not (match := _JSON_ESCAPE.search(prose)):
        return None
    if not _IS_MEANT.search(text):
        return match[0]
    return match[0] if any(_is_encoded_twice(message.content) for message in messages) else None


def _asks_about_excel(messages: Sequence[Message]) -> bool:
    """Whether a question spells Excel's escape within a line; where it was left over, the line ends behind it."""
    asked = [message.content for message in messages if message.role == "user"]
    return any(_EXCEL_ESCAPE.search(text) and f"{_EXCEL_ESCAPE.search(text)[0]}\n" not in text for text in asked)


def _is_encoded_twice(text: str) -> bool:
    return "\n" not in text and len(_JSON_ESCAPE.findall(text)) >= _MANY
