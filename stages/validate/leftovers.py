"""What was left over in a text from where it was made: placeholders, HTML, a chat model's boilerplate, its name."""

import re

# <UNK> is no placeholder: data sets such as ADGEN mark a word that was unknown to them by it.
_PLACEHOLDER = re.compile(
    r"<(?!UNK>)[A-Z][A-Z_]{2,}>|\{\{.{0,80}?\}\}|\$\{.{0,80}?\}|\{%.{0,80}?%\}"
    r"|\[(?:(?:[Yy]our|YOUR|[Ii]nsert|INSERT)\b|插入|填写|请填|请输入|你的|您的)[^\[\]\n(]{0,30}\](?!\()"
)
_HTML = re.compile(
    r"</?(?:a|b|br|div|em|font|h[1-6]|hr|i|img|li|ol|p|script|span|strong|style|table|tbody|td|th|tr|u|ul)"
    r"(?:\s[^<>]{0,200})?/?>|&(?:nbsp|lt|gt|amp|quot|apos|#\d{2,6}|#x[0-9A-Fa-f]{2,6});",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"作为(?:一[个名款位])?(?:AI|人工智能|大型)?的?(?:AI|人工智能|大型)?语言模型"
    r"|[Aa]s an? (?:AI|artificial intelligence)(?: language)? (?:model|assistant)"
    r"|(?:很|非常)?(?:抱歉|对不起)[，,]?(?:但)?(?:作为[^，。]{0,20}[，,])?我(?:无法|不能|没有办法|没办法)"
    r"|I(?:'m| am) sorry,? but I (?:can(?:no|')t|am (?:not able|unable))|I cannot (?:fulfill|assist|help)"
)
_BOILERPLATE_SIGNS = ("语言模型", "抱歉", "对不起", " AI", " artificial", "sorry", "I cannot")
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
