"""Text checks take time proportional to the length of a row, so that no row stalls the gate."""

import time

import pytest
from gate import params_with
from shared_data import conversation

from measures.boilerplate import find_boilerplate
from stages.validate.artifacts_in_text import find_html, find_placeholder
from stages.validate.assistant_names import find_other_name
from stages.validate.characters import find_bad_character, to_ascii
from stages.validate.chat_markup import find_role_mark, find_truncation
from stages.validate.escapes import find_escape
from stages.validate.mojibake import find_mojibake
from stages.validate.privacy import find_personal_data, find_secret, mask
from stages.validate.row_features import find_null_marker, measure_repetition

LENGTH = 40_000  # characters; quadratic patterns took 3 to 8 s for as many
SECONDS = 2  # CPU time; linear patterns take less than a tenth of it
# Beginnings of a match of some pattern that never ends, or ends very often.
BEGINNINGS = {
    "keys": ["sk-", "sk-a1", "eyJ-", "eyJ.", "eyJa.", "ghp_", "xoxb-", "bearer ", "Bearer a", "AKIA", "-----BEGIN A "],
    "passwords": [
        "password=",
        "password is ",
        "api_key=",
        "密码是",
        "密码是是",
        "secret_access_key: ",
        "://a:",
        "://a:bcd",
    ],
    "secrets": ["password=Abc12345x ", "sk-a1b2c3d4e5f6g7h8i9j0k1l2 ", "://a:Xk29dfT1q@b "],
    "numbers": ["1", "1 ", "1-", "1111 ", "1111-", "1.", "09 ", "+8", "138.0013.", "١"],
    "phones": ["13812345678 ", "13812345678,", "138.1234.5678 ", "１３８１２３４５６７８，"],
    "addresses": ["a", "a@", "a@a.", "@", ".", "a.person@mail.cn "],
    "lost": [
        "&deg;",
        "&deg",
        "`&lt;",
        "```\n&lt;",
        "[插入图片",
        "[插入",
        "无输入",
        "\n无输入",
        "```\\n",
        "。\\n",
        "```\n{",
    ],
    "layouts": ["|", "|\n", "  ", "a = ", "a;", "a; ", "{}", "<td>", "\n "],
    "markup": ["<", "<a ", "<a b", "<a b=", "<A", "<A_", "</", "</a", "<!--", "&", "&lt", "&lt;", "&lt;a", "&#1"],
    "slots": ["{{", "{{ ", "{{a", "${", "${a", "{%", "[", "[your", "[插入", "【你的", "`", "```", "`a\n"],
    "refusals": [
        "抱歉，",
        "抱歉，我无法",
        "由于我是",
        "作为一个",
        "作为AI",
        "作为一个的",
        "您没有提供",
        "我是一个AI",
        "我作为",
        "我的知识",
        "作为一个AI，",
        "我是AI。",
        "扮演",
        "扮演AI",
        "“",
        "“a",
        "「",
    ],
    "apologies": ["As an ", "As an AI", "I am a", "Sorry, I ", "I'm ", "Unfortunately ", '"'],
    "claims": ["我是", "我叫", "叫我", "我是由", "我是由OpenAI", "名字是", "自称", "My name is "],
    "turns": [
        "Human:",
        "\nHuman:",
        "问：",
        "\n问：\n答：",
        "[Round ",
        "###",
        "<|",
        "<|im_",
        "[INST",
        "</s",
        "Answer: ",
    ],
    "misread": [
        "锟",
        "烫",
        "?",
        "? ",
        "Ã",
        "é”",
        "“é”",
        "ä½",
        "鎴",
        "鎴戞",
        "茯",
        "涴欴",
        "§A",
        "ÄãºÃ",
        "ｱ",
        "あ",
        "б",
    ],
    "blanks": [" ", "\n", "\u3000", "，", "，但是", "1. ", "\n1. ", "好", "生成密码 ", "import a\n", "{\n"],
}
PROMPT = "写一封信。抱歉，我不能。"


def run_text_checks(text: str) -> None:
    """Run all text checks with a text as the answer, and as the prompt."""
    for find in (find_bad_character, to_ascii, find_mojibake, find_personal_data, find_secret, mask, find_truncation):
        find(text)
    for find in (find_placeholder, find_html, find_boilerplate, find_role_mark):
        find(text, PROMPT)
        for answer in ("抱歉，我不能。", "<br>[姓名]{{a}}", "好\n问：x"):
            find(answer, text)
    find_other_name("小智", text)
    find_escape(conversation(text, text))
    find_null_marker(conversation(text, text))
    measure_repetition([text], params_with())


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_time_is_linear_in_the_length_of_a_row(kind):
    run_text_checks("好")  # imports libraries and builds tables
    for beginning in BEGINNINGS[kind]:
        text = (beginning * (LENGTH // len(beginning) + 1))[:LENGTH]
        started = time.process_time()
        run_text_checks(text)
        assert time.process_time() - started < SECONDS, repr(beginning)
