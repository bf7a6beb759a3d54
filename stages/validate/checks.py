"""The checks: their names, what they look at, their limits, and what befalls a row that fails one."""

from dataclasses import dataclass
from typing import Literal

from formats.params_schema import Params


@dataclass(frozen=True)
class Check:
    """One named check of one feature.

    Attributes:
        name: as it stands in params.yaml, quarantine and reports.
        column: the feature that it judges, in a table with one row a sample, or one row for all data.
        group: what it is a check of, as reports put it.
        scope: what the feature is of: one ``row`` by itself, a row ``among`` all others, or all ``data``.
        severity: ``warn``, ``quarantine`` or ``block``.
        maximum, minimum: the outermost values allowed; None and None if the feature must be absent.
        meaning, meaning_zh: what a row or data set that fails it has or is.
    """

    name: str
    column: str
    group: str
    scope: Literal["row", "among", "data"]
    severity: str
    maximum: float | None
    minimum: float | None
    meaning: str
    meaning_zh: str

    @property
    def limit(self) -> float | None:
        return self.maximum if self.minimum is None else self.minimum

    @property
    def sentence(self) -> str:
        """What befalls whom, in both languages."""
        limit = (
            ""
            if self.limit is None
            else f" ({'limit · 上限' if self.minimum is None else 'at least · 至少'} {self.limit})"
        )
        row = "" if self.scope == "data" else "the row "
        return f"{self.name}: {SEVERITIES[self.severity]} if {row}{self.meaning} · {self.meaning_zh}{limit}"

    def told(self) -> dict:
        """The check as reports tell it."""
        meaning = {"en": self.meaning, "zh": self.meaning_zh}
        return {"check": self.name, "severity": self.severity, "meaning": meaning, "limit": self.limit}


SEVERITIES = {"warn": "warn 提醒", "quarantine": "quarantine 隔离", "block": "block 拦截"}
# By what they look at, in the order of reports.
_OF_ROWS = {
    "structure · 结构": {
        "parseable": ("is not UTF-8 JSON, or is too long to be read", "不是 UTF-8 的 JSON，或太长而无法读取"),
        "known_format": ("is in none of the accepted formats", "不属于任何可接受的格式"),
        "roles_alternate": ("has its roles in the wrong order", "角色的顺序不对"),
        "nothing_blank": ("has an empty or blank text", "有空白的文本"),
    },
    "characters · 字符": {
        "clean_characters": ("has replacement, control or surrogate characters", "有替换符、控制符或孤立代理字符"),
        "no_mojibake": ("was read in the wrong encoding", "有乱码"),
        "no_control_tokens": ("spells a control token of the tokenizer", "写出了分词器的控制词元"),
        "mostly_text": ("is mostly symbols, not text", "多为符号而非文字"),
        "known_language": ("is in another language", "是其他语言"),
    },
    "length · 长度": {
        "prompt_fits": ("has a prompt over the token budget", "提示超出词元预算"),
        "answer_fits": ("has an answer over the token budget", "回答超出词元预算"),
        "answer_whole": ("has an answer that breaks off", "回答没有写完就中断"),
        "history_whole": ("lost its oldest turns to fit the budget", "为符合预算而去掉了最早的轮次"),
    },
    "leftovers · 残留": {
        "no_placeholders": ("has an unfilled placeholder", "有未填写的占位符"),
        "no_html": ("has debris of HTML", "有 HTML 残留"),
        "no_role_marks": ("has role marks or a prompt template inside of a text", "文本中有角色标记或提示模板"),
        "no_boilerplate": (
            "answers with a refusal or 'as an AI language model'",
            "回答是拒绝或“作为AI语言模型”之类的套话",
        ),
        "not_repetitive": ("has an answer that repeats itself", "回答自我重复"),
        "right_name": ("speaks as another assistant", "以其他助手自称"),
        "no_null_marks": ("has a mark such as nan instead of a text", "以 nan 之类的空值标记代替文本"),
        "no_escapes": ("spells escapes that were meant to be characters", "把转义序列写成了文字"),
    },
    "privacy · 隐私": {
        "no_personal_data": ("has personal data", "有个人信息"),
        "no_secrets": ("has a key, token or password", "有密钥、令牌或密码"),
    },
}
_AMONG_ROWS = {
    "among all rows · 各行之间": {
        "unique": ("is the same as an earlier row", "与前面的行相同"),
        "no_near_duplicate": ("is nearly the same as an earlier row", "与前面的行几乎相同"),
        "one_answer": ("answers an earlier row's question differently", "对前面的同一问题给出了不同回答"),
        "no_leakage": ("is nearly the same as rows on both sides of the split", "与划分两侧的行都几乎相同"),
    }
}
_OF_ALL_DATA = {
    "the data as a whole · 数据整体": {
        "enough_rows": ("too few good rows are left", "剩下的合格行太少"),
        "few_quarantined": ("too large a share of the rows is quarantined", "被隔离的行占比过大"),
        "few_cut": ("too large a share of the rows lost turns", "被截去轮次的行占比过大"),
        "diverse": ("the rows are too much alike", "各行彼此太相似"),
        "steady_lengths": ("lengths moved away from the last accepted data", "长度分布偏离上次接受的数据"),
    }
}


def checks_of(params: Params) -> list[Check]:
    """All checks, with the severities and limits of params.yaml, in the order of reports."""
    knobs, budget = params.validate_.checks, params.encode
    maxima = {
        "prompt_fits": ("prompt_tokens", budget.max_prompt_tokens),
        "answer_fits": ("answer_tokens", budget.max_answer_tokens),
        "history_whole": ("turns_cut", 0),
        "nothing_blank": ("blank_texts", 0),
        "not_repetitive": ("repetition", knobs.not_repetitive.limit),
        "mostly_text": ("symbol_share", knobs.mostly_text.limit),
        "known_language": ("other_language_share", knobs.known_language.limit),
        "few_quarantined": ("quarantined_share", knobs.few_quarantined.limit),
        "few_cut": ("cut_share", knobs.few_cut.limit),
        "steady_lengths": ("length_drift", knobs.steady_lengths.limit),
    }
    minima = {"enough_rows": ("good_rows", knobs.enough_rows.limit), "diverse": ("diversity", knobs.diverse.limit)}
    checks = []
    for scope, groups in (("row", _OF_ROWS), ("among", _AMONG_ROWS), ("data", _OF_ALL_DATA)):
        for group, name, meanings in ((group, *item) for group, named in groups.items() for item in named.items()):
            column, maximum = maxima.get(name, (None, None))
            column, minimum = minima.get(name, (column or f"{name}_fault", None))
            checks.append(Check(name, column, group, scope, getattr(knobs, name).severity, maximum, minimum, *meanings))
    return checks
