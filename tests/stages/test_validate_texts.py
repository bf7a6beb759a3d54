"""What the checks of texts find, and what they leave alone: each line was a miss or a false alarm once, or may be."""

import pytest

from stages.validate.features import _is_blank
from stages.validate.leftovers import boilerplate, html, other_name, placeholder
from stages.validate.privacy import mask, personal_data, secret

FOUND = {
    personal_data: """
        请打 13812345678。
        2024-05-01 13800138000
        13800138000 2023年
        13800138000-8001
        tel13800138000
        +86 138-1234-5678
        0086 13812345678
        证件 11010519491231002X
        110105 19491231 002X
        卡 6222021234567890128
        卡号 6222 0212 3456 7890 128
        找 a.person@mail.cn
    """,
    secret: """
        密码是：Abc12345
        口令：Abc12345x
        password is Hunter2abc
        DB_PASSWORD=Abc12345x
        AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI7K7MDENG
        client_secret=abcd1234efgh
        pwd=Abc@1234
        AKIAABCDEFGHIJKLMNOP
        sk-proj-abc123def456ghi789jkl012
        -----BEGIN RSA PRIVATE KEY-----
    """,
    placeholder: """
        我是 <NAME>。
        你好 {{ name }}
        {{用户名}}
        你好 ${user}
        [Your name]
        [姓名]
        【你的名字】
        <your name>
        {% if x %}
        [插入日期]
    """,
    html: """
        第一行<br/>第二行
        <p>段落
        完</div>
        <div class="a">
        &nbsp;
        &copy; 2024
    """,
    boilerplate: """
        作为一个AI语言模型，这个问题很难。
        作为一个 AI 语言模型，我没有感情。
        作为一个大语言模型，我不知道。
        作為一個AI語言模型，我不能。
        作为人工智能助理，我可以告诉您。
        抱歉，我并不能这样做。
        对不起，作为一个语言模型，我无法回答。
        As an AI, I have no feelings.
        As a large language model, I cannot know.
        I’m sorry, but I can’t help with that.
        Sorry, I cannot do that.
    """,
}
LEFT_ALONE = {
    personal_data: """
        2^34 = 17179869184
        价值 18500000000元
        共13800138000字节
        订单 11010519491231002 和 12345678901
        圆周率3.14159265358979
        git@github.com:user/repo.git
        logo@2x.png
        email@email.com
        发到 me@example.com
    """,
    secret: """
        密码是什么？
        密码至少8位
        password: required
        sk-learn-sklearn-ensemble-RandomForestClassifier
    """,
    placeholder: """
        int a[2][2] = {{1,2},{3,4}};
        集合 {{1},{2}}
        ${x}^2$
        echo ${HOME}
        按<ENTER>键
        <HTML> 标签
        裤子 <UNK> 显瘦
        [链接](http://a.cn)
    """,
    html: """
        什么是 <div> 标签？
        vector<i> 和 a<b>c
        AT&T; 公司
        如果 a < b 且 c > d
    """,
    boilerplate: """
        GPT 作为语言模型，训练时要很多数据。
        我是一个人工智能助手。
        抱歉打扰了。
        作为一名老师，我认为读书很重要。
        I am sorry to hear that.
    """,
}


def cases(table: dict) -> list:
    return [
        pytest.param(find, line.strip(), id=f"{find.__name__}-{line.strip()}")
        for find, lines in table.items()
        for line in lines.strip().splitlines()
    ]


@pytest.mark.parametrize(("find", "text"), cases(FOUND))
def test_it_is_found(find, text):
    assert find(text)


@pytest.mark.parametrize(("find", "text"), cases(LEFT_ALONE))
def test_it_is_left_alone(find, text):
    assert find(text) is None


@pytest.mark.parametrize(
    "text", [line.values[1] for line in cases({key: FOUND[key] for key in (personal_data, secret)})]
)
def test_what_is_private_is_masked(text):
    masked = mask(f"（{text}）")
    assert "***" in masked
    assert personal_data(masked) is None
    assert secret(masked) is None


def test_a_text_of_characters_that_nobody_sees_is_blank():
    assert _is_blank(" \u200b\ufeff\u3000\n")
    assert not _is_blank("\u200b好")


def test_another_assistants_name_counts_only_as_a_claim():
    assert other_name("小智", "我是ChatGPT。") == "ChatGPT"
    assert other_name("小智", "我和ChatGPT不同。") is None
    assert other_name("小智", "我是小智，不是ChatGPT。") is None
    assert other_name(None, "我是ChatGPT。") is None
