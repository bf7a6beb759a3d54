"""Wrong identity: answers that introduce themselves as another assistant, or as made by another company."""

import re

from measures.boilerplate import QUOTING_REQUEST, ROLE_REQUEST
from stages.validate.text_patterns import MAX_SEARCHED_CHARACTERS


def _group(names: tuple[str, ...]) -> str:
    """Return a capturing group of all names."""
    return f"({'|'.join(map(re.escape, names))})"


# Unambiguous product names; a version may follow.
_PRODUCTS = (
    "ChatGPT", "InstructGPT", "Google Bard", "Google Gemini", "Microsoft Copilot", "GitHub Copilot", "Bing Chat",
    "DeepSeek",
    "Qwen", "QwQ", "ChatGLM", "Baichuan", "InternLM", "Open Assistant", "OpenAssistant", "Chinese-Alpaca", "Vicuna",
    "Mixtral",
    "文心一言", "通义千问", "通義千問", "讯飞星火", "訊飛星火", "星火认知", "智谱清言", "腾讯混元", "豆包大模型",
    "百川大模型", "书生大模型",
    "小爱同学", "小愛同學", "天猫精灵", "天貓精靈", "小度助手", "小布助手", "小艺助手", "微软小冰", "微軟小冰",
    "Siri", "Cortana", "盘古大模型", "日日新", "商量大模型",
    "Kimi智能助手", "月之暗面", "MiniMax",
)  # fmt: skip
# Product names that are also everyday words or first names: matched only if the answer speaks as an assistant.
_AMBIGUOUS_PRODUCTS = (
    "Claude", "Gemini", "Copilot", "Llama", "Mistral", "Grok", "Kimi", "MOSS", "Alexa", "Bard", "Alpaca", "Yi", "GLM",
    "Phi",
    "文心", "通义", "通義", "星火", "百川", "豆包", "混元", "书生", "書生", "元宝", "元寶", "小冰", "小度", "小艺",
    "小布", "智谱", "盘古", "紫东太初", "天工", "悟道",
)  # fmt: skip
_COMPANIES = (
    "OpenAI", "Anthropic", "Google", "谷歌", "Microsoft", "微软", "微軟", "Meta", "Facebook", "xAI", "Mistral AI",
    "DeepSeek", "深度求索", "百度", "Baidu",
    "阿里", "Alibaba", "腾讯", "騰訊", "Tencent", "字节", "字節", "ByteDance", "科大讯飞", "科大訊飛", "讯飞", "华为",
    "華為", "Huawei", "商汤", "SenseTime", "月之暗面",
    "Moonshot", "百川智能", "零一万物", "MiniMax", "360", "小米", "苹果", "Apple", "Amazon", "亚马逊", "LAION",
    "复旦", "LMSYS", "Stability",
)  # fmt: skip
# Names of the base model's own family, which are accepted unless params.yaml configures a name.
_BASE_FAMILY = ("ChatGLM", "GLM", "智谱", "智谱清言", "清华", "Zhipu")
_VERSION = (
    r"(?:[ -]?(?:\d[\w.]{0,8}|[a-z]\d?|Plus|Pro|Max|Turbo|Chat|mini|Opus|Sonnet|Haiku)){0,4}(?![A-Za-z]|-[a-z]{3})"
)
_GPT = r"GPT[ -]?[345](?:\.\d)?(?:[ -]?(?:o|turbo|mini|V))?(?![A-Za-z])"
_IS = (
    r"(?:我(?:就|其实|叫做?|现在|只|不过)?(?:是|叫做?|乃)|我的(?:名字|全名|中文名|英文名|名称)(?:是|叫|为)|名字(?:是"
    r"|叫)|名为|自称|这里是|本人是|叫我|称我为"
    r"|\b(?:[Ii] am|[Ii]['’]m|[Mm]y name is|[Cc]all me|[Tt]his is|[Kk]nown as)\b)"
)
_BETWEEN = r"(?:(?![用和跟与以]|通过|基于|不是|而非|不同于|\bnot\b|based|like|than)[^。！？!?.\n，,在比像]){0,20}?"
_AS_ASSISTANT = re.compile(
    r"(?<![A-Za-z])AI(?![A-Za-z])|人工智[能慧]|[语語]言模型|大模型|助[手理]|[机機]器人|(?:训练|研发|开发|開發|訓練"
    r"|推出)的"
    r"|\bassistant|language model|chat ?bot|(?:developed|created|trained|made|built) by"
)
_CLAIM = re.compile(rf"{_IS}{_BETWEEN}(?:{_group(_PRODUCTS)}{_VERSION}|({_GPT}))")
_AMBIGUOUS_CLAIM = re.compile(rf"{_IS}{_BETWEEN}(?<![A-Za-z]){_group(_AMBIGUOUS_PRODUCTS)}{_VERSION}")
_WHAT = r"(?:AI|人工智[能慧]|语言模型|語言模型|大模型|模型|助[手理]|机器人|機器人|聊天|计算机程序|電腦程式|电脑程序)"
_ARTICLE = r"(?:一[个名款位种台]|[您你]的)?"
_COMPANY = _group(_COMPANIES)
_MADE_BY = re.compile(
    rf"我(?:只|仅|就)?是{_ARTICLE}(?:由|被|来自|來自)?\s*{_COMPANY}[^。！？\n]{{0,16}}?(?:训练|訓練|开发|開發|研发|研發|创建|創建|创造|設計"
    rf"|设计|打造|推出|提供|发布|旗下|自主)[^。！？\n]{{0,24}}?{_WHAT}"
    rf"|(?:我(?:是)?|作为(?:一[个名款位种])?|本(?:模型|助手))由\s*{_COMPANY}[^。，！？\n]{{0,12}}?(?:训练|訓練|开发|開發|研发|研發|创建|創建|创造"
    rf"|设计|打造)(?:而成|出来|的)?[^。！？\n]{{0,24}}?(?:{_WHAT})"
    rf"|作为{_ARTICLE}{_COMPANY}(?:所)?(?:训练|訓練|开发|開發|研发|研發|创建|創建|创造|设计|打造)的?[^。，！？\n]{{0,24}}?{_WHAT}[，,]?我"
    rf"|我是(?:来自|來自)\s*{_COMPANY}\s*的[^。！？\n]{{0,12}}?{_WHAT}"
    rf"|\b(?:[Ii](?:['’]m| am| was)|[Aa]s)\b[^.!?\n]{{0,80}}?\b(?:trained|developed|created|built|made|designed) by "
    rf"(?:the team at )?{_COMPANY}\b"
)
_SELF_NAMING = re.compile(
    r"(?:我的名字(?:是|叫)|我叫做?|叫我|\b[Mm]y name is|\b[Cc]all me)\s*[“\"「]?([A-Za-z][\w.-]{1,24}"
    r"|[\u4e00-\u9fff]{2,8}?)(?=[”\"」，,。.！!\s]|$)"
    r"|我是\s*([A-Za-z][\w.-]{1,24}|[^，,。！？\s的一个您你由在名位款是]{2,8})[，,](?:是|我是)?(?:一[个名款位种]|您的"
    r"|你的|由)[^。！？\n]{0,24}?(?:AI|人工智[能慧]|语言模型|智能助[手理]|大模型|机器人)"
)
# An answer without any of these substrings cannot match.
_FIRST_PERSON = ("我是", "我叫", "我就", "我其", "我的", "叫我", "我由", "我现", "我只", "我不", "称我")
_CLAIM_SUBSTRINGS = ("名字", "名为", "自称", "这里是", "本人是", "作为", "模型由", "助手由")
_ENGLISH_SUBSTRINGS = (" am ", "'m ", "’m ", "ame is", "all me", "his is", " by ", "nown as")


def find_other_name(assistant: str | None, answer: str, prompt: str = "", question: str | None = None) -> str | None:
    """Return the first name of another assistant or company that the answer claims as its own.

    Args:
        assistant: the configured name; None if the data teach none. Then an answer may claim to be of the base model's
            own family, and names of no known product are not searched for.
        prompt: all messages before the answer, one per line.
        question: the newest of them; None for the whole prompt.
    """
    answer = answer[:MAX_SEARCHED_CHARACTERS]
    if not _has_substring(answer):
        return None
    if assistant:
        answer = re.sub(re.escape(assistant), "\N{BULLET}", answer, flags=re.IGNORECASE)
    prompt = prompt[-MAX_SEARCHED_CHARACTERS:]
    is_assistant = _AS_ASSISTANT.search(answer)
    request = prompt if question is None else question[-MAX_SEARCHED_CHARACTERS:]
    is_quoting = QUOTING_REQUEST.search(request) or ROLE_REQUEST.search(prompt)
    for pattern in (_CLAIM, _MADE_BY, *((_AMBIGUOUS_CLAIM,) if is_assistant else ())):
        for claim in pattern.finditer(answer):
            name = next(filter(None, claim.groups()))
            if (assistant or name not in _BASE_FAMILY) and not (is_quoting and name in prompt):
                return name
    if assistant and is_assistant and not is_quoting and "\N{BULLET}" not in answer:
        return _find_unknown_name(answer)
    return None


def _find_unknown_name(answer: str) -> str | None:
    """Return the first name, of no known product, by which an assistant introduces itself."""
    for naming in _SELF_NAMING.finditer(answer):
        if _AS_ASSISTANT.search(answer, max(naming.start() - 40, 0), naming.end() + 40):
            return naming[1] or naming[2]
    return None


def _has_substring(answer: str) -> bool:
    return (
        ("我" in answer and any(substring in answer for substring in _FIRST_PERSON))
        or any(substring in answer for substring in _CLAIM_SUBSTRINGS)
        or (" " in answer and any(substring in answer for substring in _ENGLISH_SUBSTRINGS))
    )
