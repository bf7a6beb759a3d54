"""The names that answers give themselves: those of other assistants, and of the companies that made them."""

import re

from measures.boilerplate import QUOTING_REQUEST


def _named(names: tuple[str, ...]) -> str:
    """A group of a pattern that holds any of the names."""
    return f"({'|'.join(map(re.escape, names))})"


# Names that no person, animal or thing of everyday life has; a version may follow.
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
# Names that count only where the answer speaks as an assistant.
_WORDS = (
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
# The family of the base that this project trains: an answer may say so where no name is configured.
_OWN = ("ChatGLM", "GLM", "智谱", "智谱清言", "清华", "Zhipu")
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
_CLAIM = re.compile(rf"{_IS}{_BETWEEN}(?:{_named(_PRODUCTS)}{_VERSION}|({_GPT}))")
_CLAIM_WORD = re.compile(rf"{_IS}{_BETWEEN}(?<![A-Za-z]){_named(_WORDS)}{_VERSION}")
_WHAT = r"(?:AI|人工智[能慧]|语言模型|語言模型|大模型|模型|助[手理]|机器人|機器人|聊天)"
_ARTICLE = r"(?:一[个名款位种台]|[您你]的)?"
_COMPANY = _named(_COMPANIES)
_MADE = re.compile(
    rf"我(?:只|仅|就)?是{_ARTICLE}(?:由|被|来自|來自)?\s*{_COMPANY}[^。！？\n]{{0,16}}?(?:训练|訓練|开发|開發|研发|研發|创建|創建|创造|設計"
    rf"|设计|打造|推出|提供|发布|旗下|自主)[^。！？\n]{{0,24}}?{_WHAT}"
    rf"|(?:我(?:是)?|作为(?:一[个名款位种])?|本(?:模型|助手))由\s*{_COMPANY}[^。，！？\n]{{0,12}}?(?:训练|訓練|开发|開發|研发|研發|创建|創建|创造"
    rf"|设计|打造)(?:而成|出来|的)?[^。！？\n]{{0,24}}?(?:{_WHAT})"
    rf"|我是(?:来自|來自)\s*{_COMPANY}\s*的[^。！？\n]{{0,12}}?{_WHAT}"
    rf"|\b(?:[Ii](?:['’]m| am| was)|[Aa]s)\b[^.!?\n]{{0,80}}?\b(?:trained|developed|created|built|made|designed) by "
    rf"(?:the team at )?{_COMPANY}\b"
)
_NAMED = re.compile(
    r"(?:我的名字(?:是|叫)|我叫做?|叫我|\b[Mm]y name is|\b[Cc]all me)\s*[“\"「]?([A-Za-z][\w.-]{1,24}"
    r"|[\u4e00-\u9fff]{2,8}?)(?=[”\"」，,。.！!\s]|$)"
    r"|我是\s*([A-Za-z][\w.-]{1,24}|[^，,。！？\s的一个您你由在名位款是]{2,8})[，,](?:是|我是)?(?:一[个名款位种]|您的"
    r"|你的|由)[^。！？\n]{0,24}?(?:AI|人工智[能慧]|语言模型|智能助[手理]|大模型|机器人)"
)
_LONGEST = 20_000  # characters of an answer that are looked at, which bounds the time
_I_SIGNS = ("我是", "我叫", "我就", "我其", "我的", "叫我", "我由", "我现", "我只", "我不", "称我")
_CLAIM_SIGNS = ("名字", "名为", "自称", "这里是", "本人是", "作为由", "模型由", "助手由")
_ENGLISH_SIGNS = (" am ", "'m ", "’m ", "ame is", "all me", "his is", " by ", "nown as")


def other_name(assistant: str | None, answer: str, asked: str = "") -> str | None:
    """Another assistant's name, or another company's, that the answer gives as its own.

    Args:
        assistant: the name that answers may give; None where the data teach none. Then an answer may be of the base's
            own family, and no other name is asked for.
        asked: all that came before the answer.
    """
    answer = answer[:_LONGEST]
    if not _may_claim(answer):
        return None
    if assistant:
        answer = re.sub(re.escape(assistant), "\N{BULLET}", answer, flags=re.IGNORECASE)
    speaks, others = _AS_ASSISTANT.search(answer), QUOTING_REQUEST.search(asked[-_LONGEST:])
    for pattern in (_CLAIM, _MADE, *((_CLAIM_WORD,) if speaks else ())):
        for claim in pattern.finditer(answer):
            name = next(filter(None, claim.groups()))
            if (assistant or name not in _OWN) and not (others and name in asked):
                return name
    if assistant and speaks and "\N{BULLET}" not in answer and not others:
        for named in _NAMED.finditer(answer):
            if _AS_ASSISTANT.search(answer, max(named.start() - 40, 0), named.end() + 40):
                return named[1] or named[2]
    return None


def _may_claim(answer: str) -> bool:
    """Whether an answer has words by which one speaks of oneself; most have none."""
    return (
        ("我" in answer and any(sign in answer for sign in _I_SIGNS))
        or any(sign in answer for sign in _CLAIM_SIGNS)
        or (" " in answer and any(sign in answer for sign in _ENGLISH_SIGNS))
    )
