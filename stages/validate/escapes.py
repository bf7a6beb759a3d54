"""Text that was encoded twice: escape sequences of JSON and Excel left as literal characters."""

import re
from collections.abc import Sequence

from models.sample import Message
from stages.validate.text_patterns import CODE_OR_FORMULA

_HAN = "\u4e00-\u9fff"
_JSON_ESCAPE = re.compile(
    r"(?:\\u[0-9a-fA-F]{4}){3,}+"  # Unicode escapes
    # Line breaks between sentences and before list items; \\n before a lower-case letter is a TeX command.
    rf"|(?<=[。！？；：，、”’）》】.!?:;,)])(?:\\r)?\\n(?![a-z])|(?<=[{_HAN}A-Za-z0-9])(?:\\r)?\\n(?=[{_HAN}*•\-]|\d+[.、)])"
    r"|\\r\\n|\\n\\n"
    rf'|\\"(?=[{_HAN}])|(?<=[{_HAN}])\\"|https?:\\/\\/'
)
_EXCEL_ESCAPE = re.compile(r"_x00[01][0-9A-Fa-f]_")
# Topics in which escape sequences are intended.
_ESCAPE_TOPIC = re.compile(
    r"转义|换行|反斜[杠线]|正则|编码|字符串|代码|程序|编程|函数|脚本|命令|路径|公式|unicode|utf-?8|escap|newline"
    r"|line break|regex|regular expr|backslash|json|latex|python|java|\bc\+\+|\bprint|\bstring|\bcode\b|\bscript"
    r"|\bshell|\bbash|\bsql\b",
    re.IGNORECASE,
)
# Line breaks that no program writes: after the mark of a fence, and between two Chinese sentences.
_FENCE_BREAK = re.compile(
    r"```[A-Za-z+#]{0,12}(?:\\r)?\\n(?!(?:ew|ode|abla|eq|eg|ot|oindent|umber|orm)[a-z]*\b)|\\n```"
)
_SENTENCE_BREAK = re.compile(rf"(?<=[。！？])(?:\\r)?(?:\\n)+(?=[{_HAN}])")
_LINE_BREAK_TOPIC = re.compile(
    r"转义|换行|反斜[杠线]|字符串|正则|escap|newline|line break|\bstring|regex", re.IGNORECASE
)
_MANY = 3  # escapes in a text without a line break: encoded twice, whatever its topic


def find_escape(messages: Sequence[Message]) -> str | None:
    """Return the first literal escape sequence outside of code, unless the topic is escapes or programs."""
    text = "\n".join(message.content for message in messages)
    prose = CODE_OR_FORMULA.sub(" ", text) if "`" in text or "$" in text else text
    if (excel_escape := _EXCEL_ESCAPE.search(prose)) and not _asks_about_excel(messages):
        return excel_escape[0]
    line_break = _FENCE_BREAK.search(text) or _SENTENCE_BREAK.search(prose)
    if line_break and not _LINE_BREAK_TOPIC.search(text):
        return line_break[0]
    if not (json_escape := _JSON_ESCAPE.search(prose)):
        return None
    if _ESCAPE_TOPIC.search(text) and not any(_is_encoded_twice(message.content) for message in messages):
        return None
    return json_escape[0]


def _asks_about_excel(messages: Sequence[Message]) -> bool:
    """Whether a question has an Excel escape within a line; an artifact is at the end of a line."""
    questions = [message.content for message in messages if message.role == "user"]
    return any(
        (escape := _EXCEL_ESCAPE.search(question)) and f"{escape[0]}\n" not in question for question in questions
    )


def _is_encoded_twice(text: str) -> bool:
    return "\n" not in text and len(_JSON_ESCAPE.findall(text)) >= _MANY
