"""One row cannot stop the gate: each look at a text takes time in proportion to its length, whatever it holds."""

import time

import pytest

from measures.boilerplate import find_boilerplate
from stages.validate.artifacts_in_text import html, placeholder
from stages.validate.assistant_names import other_name
from stages.validate.characters import bad_character, in_ascii
from stages.validate.chat_markup import cut_off, role_mark
from stages.validate.mojibake import mojibake
from stages.validate.privacy import mask, personal_data, secret

LENGTH = 40_000  # characters: quadratic patterns took 3 to 8 s for as many
SECONDS = 2  # of a processor; linear ones take less than a tenth of that
# What begins a match of some pattern and never ends one, or ends very many.
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
ASKED = "写一封信。抱歉，我不能。"


def look_at(text: str) -> None:
    """Every look that the checks take at a text, as the answer and as what was asked."""
    for find in (bad_character, in_ascii, mojibake, personal_data, secret, mask, cut_off):
        find(text)
    for find in (placeholder, html, find_boilerplate, role_mark):
        find(text, ASKED)
    for answer in ("抱歉，我不能。", "<br>[姓名]{{a}}", "好\n问：x"):
        for find in (placeholder, html, find_boilerplate, role_mark):
            find(answer, text)
    other_name("小智", text)


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_a_long_row_costs_time_in_proportion_to_its_length(kind):
    look_at("好")  # libraries are imported and tables made
    for beginning in BEGINNINGS[kind]:
        text = (beginning * (LENGTH // len(beginning) + 1))[:LENGTH]
        started = time.process_time()
        look_at(text)
        assert time.process_time() - started < SECONDS, repr(beginning)
