"""What was left over in a text from where it was made: placeholders, HTML, a chat model's boilerplate, its name."""

import re

# <UNK> is no placeholder: data sets such as ADGEN mark a word that was unknown to them by it. Nor are keys of a
# keyboard, tags that a text speaks of, formulas such as ${x}^2$, and what every shell knows.
_NO_PLACEHOLDERS = (
    "UNK|ENTER|RETURN|TAB|ESC|CTRL|ALT|SHIFT|DEL|DELETE|SPACE|CMD|HTML|HEAD|BODY|DIV|SPAN|TABLE|SCRIPT|CODE"
)
_PLACEHOLDER = re.compile(
    rf"<(?!(?:{_NO_PLACEHOLDERS})>)[A-Z][A-Z_]{{2,}}>|<(?:your|insert)[ _][^<>]{{1,30}}>"
    r"|\{\{[ #/^>&]*[A-Za-z_\u4e00-\u9fff][\w .|-]{0,60}\}\}"
    r"|\$\{(?!(?:HOME|PATH|USER|PWD|SHELL)\})[A-Za-z_\u4e00-\u9fff][\w.-]{2,60}\}|\{%.{0,80}?%\}"
    r"|\[(?:(?:[Yy]our|YOUR|[Ii]nsert|INSERT)\b|插入|填写|请填|请输入|你的|您的)[^\[\]\n(]{0,30}\](?!\()"
    r"|\[(?:[Nn]ame|NAME|姓名|名字|日期|公司名?)\](?!\()|【(?:你的|您的|插入|填写|请填|请输入)[^【】\n]{0,30}】"
)
_TAGS = (
    "a|b|body|code|div|em|font|form|h[1-6]|head|html|i|li|ol|p|pre|script|span|strong|style|table|tbody|td|th|tr|u|ul"
)
# A tag that closes, has attributes or stands alone is debris; a bare opening one may be what a text speaks of.
_HTML = re.compile(
    rf"</(?:{_TAGS})\s*>|<(?:{_TAGS}|img)\s+[a-z-]+\s*=[^<>]{{1,200}}>|<(?:br|hr|p|li|td|tr)\s*/?>"
    r"|&(?:nbsp|lt|gt|amp|quot|apos|copy|reg|hellip|mdash|ndash|middot|[lr][ds]quo|#\d{2,6}|#x[0-9A-Fa-f]{2,6});",
    re.IGNORECASE,
)
# «As an AI language model, I», in simplified and traditional characters, and refusals.
_MODEL = (
    r"(?:AI|人工智能|大型?)?\s*的?\s*(?:AI|人工智能|大型?)?\s*(?:语言|語言)模型"
    r"|(?:AI|人工智能)\s*(?:助手|助理|模型|程序)"
)
_BOILERPLATE = re.compile(
    "|".join(
        (
            rf"作[为為]\s*(?:一[个個名款位种種])?\s*(?:{_MODEL})\s*[，,]?\s*(?:我|本|这个问题|很难|无法|不能)",
            r"\b[Aa]s an? (?:AI|artificial intelligence)(?:,| (?:language )?(?:model|assistant))",
            r"\b[Aa]s an? (?:large )?language model",
            r"(?:很|非常)?(?:抱歉|对不起|對不起|不好意思)[，,]?(?:但|可是)?(?:作[为為][^，。]{0,20}[，,])?"
            r"我(?:并|暂时|目前|还)?(?:无法|無法|不能|没有办法|没办法)",
            r"(?:I(?:['’]m| am) )?[Ss]orry,? (?:but )?I (?:can(?:no|['’])t|am (?:not able|unable))",
            r"I cannot (?:fulfill|assist|help)",
        )
    )
)
_BOILERPLATE_SIGNS = (
    "作为",
    "作為",
    "抱歉",
    "对不起",
    "對不起",
    "不好意思",
    " an AI",
    " a l",
    " artificial",
    "orry",
    "I cannot",
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
OTHER_ASSISTANTS = (
    "ChatGPT", "GPT-3", "GPT-4", "GPT-5", "OpenAI", "Claude", "Anthropic", "Gemini", "Google Bard", "Copilot", "Llama",
    "Mistral", "Grok", "DeepSeek", "Qwen", "ChatGLM", "GLM-4", "MOSS", "Baichuan", "InternLM", "Yi-34B", "Kimi",
    "Open Assistant", "文心一言", "通义千问", "讯飞星火", "智谱清言", "百川", "豆包", "混元", "书生",
    "元宝", "小冰", "小度",
)  # fmt: skip
# "I am X", but not "I was made on the basis of X", "unlike X", "I am not X".
_CLAIM = re.compile(
    r"(?:(?:我是|我叫|我就是|名字是|名字叫|名为|自称)(?:(?!基于|不是|而非|不同于)[^。！？!?\n，,在比像]){0,12}?"
    r"|(?:[Ii] am|[Ii]'m|[Mm]y name is|[Cc]all me)\b(?:(?!\bnot\b|based|like|than)[^.!?\n,]){0,20}?)"
    rf"({'|'.join(map(re.escape, OTHER_ASSISTANTS))})(?![A-Za-z])"
)


_CLAIM_SIGNS = ("我是", "我叫", "我就是", "名字", "名为", "自称", " am ", "'m ", "name is", "all me")


def without_code(text: str) -> str:
    """The text without what is marked as code, where braces and tags are meant."""
    return _CODE.sub(" ", text) if "`" in text else text


def placeholder(text: str) -> str | None:
    """The first unfilled placeholder outside of code: ``<NAME>``, ``{{name}}``, ``[Your name]``."""
    return _first(_PLACEHOLDER, text)


def html(text: str) -> str | None:
    """The first HTML tag or entity outside of code."""
    return _first(_HTML, text)


def boilerplate(answer: str) -> str | None:
    """The first words by which an answer refuses or calls itself a language model."""
    return _first(_BOILERPLATE, answer) if any(sign in answer for sign in _BOILERPLATE_SIGNS) else None


def other_name(assistant: str | None, answer: str) -> str | None:
    """Another assistant's name that the answer gives itself; None where no ``assistant`` is configured."""
    if not assistant or not any(sign in answer for sign in _CLAIM_SIGNS):
        return None
    found = _CLAIM.search(re.sub(re.escape(assistant), "\N{BULLET}", answer, flags=re.IGNORECASE))
    return found[1] if found else None


def _first(pattern: re.Pattern, text: str) -> str | None:
    found = pattern.search(text)
    return found[0] if found else None
