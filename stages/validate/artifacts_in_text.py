"""Artifacts of data generation and web scraping in a text: unfilled placeholders and HTML.

Both are intended where a row asks for code, a web page or a template, so the topic of the row is checked first.
"""

import re
from html.entities import name2codepoint

from stages.validate.text_patterns import CODE, MAX_SEARCHED_CHARACTERS

# Not placeholders: <UNK>, the out-of-vocabulary word of data sets such as ADGEN; keys of a keyboard; names of tags.
_NOT_PLACEHOLDERS = (
    "UNK|ENTER|RETURN|TAB|ESC|CTRL|ALT|SHIFT|DEL|DELETE|SPACE|CMD|HTML|HEAD|BODY|DIV|SPAN|TABLE|SCRIPT|CODE"
)
# Excluded below: formulas such as ${x}^2$, and environment variables of every shell.
_SLOT = re.compile(
    rf"<(?!(?:{_NOT_PLACEHOLDERS})>)[A-Z][A-Z_]{{2,40}}+>|<(?:your|insert)[ _][^<>]{{1,30}}>"
    r"|\{\{[ #/^>&]{0,4}[A-Za-z_\u4e00-\u9fff][\w .|-]{0,60}\}\}"
    r"|\$\{(?!(?:HOME|PATH|USER|PWD|SHELL)\})[A-Za-z_\u4e00-\u9fff][\w.-]{2,60}\}|\{%.{0,80}?%\}"
)
# Media that were to be inserted: no letter or form is sent with them.
_MEDIA = re.compile(
    r"[\[【](?:插入|提供的|附上?的?|此处[为是]?|上传的|添加)\s?(?:一?[张个段幅])?(?:图片|图像|照片|GIF|视频|音频|截图|图表|动图|表情)"
    r"[^\[\]【】\n]{0,8}[\]】](?!\()|\[insert (?:an? )?(?:image|picture|photo|gif|video)\b[^\[\]\n]{0,20}\](?!\()",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"“[^“”\n]{0,300}+”|「[^「」\n]{0,300}+」|\"[^\"\n]{0,300}+\"")
_CODE_SLOT = re.compile(r"[{$]|<(?:your|insert|api|path|file|url|token|key|host|user|db|port|secret|id)", re.IGNORECASE)
# Blanks for a person to fill in; intended in a letter or a form.
_BLANK = re.compile(
    r"\[(?:(?:[Yy]our|YOUR|[Ii]nsert|INSERT)\b|插入|填写|请填|请输入|你的|您的)[^\[\]\n(]{0,30}\](?!\()"
    r"|\[(?:[Nn]ame|NAME|姓名|名字|日期|公司名?)\](?!\()|【(?:你的|您的|插入|填写|请填|请输入)[^【】\n]{0,30}】"
)
_DOCUMENT = re.compile(
    r"信[函件]|[封写回]信|[封写][^。\n]{0,16}信(?![息用任号])|情书|传单|新闻稿|消息|(?:求职|感谢|推荐|道歉|邀请|辞职"
    r"|介绍|投诉|表扬|慰问|祝贺|申诉|证明)信|邮件|郵件|模板|範本|范本|范文|样本|格式|简历|履历|履歷|合同|协议|申请"
    r"|通知"
    r"|公告|请柬|邀请|证明|收据|发票|票据|文案|脚本|台词|致辞|演讲|发言|备忘|报告|声明|海报|广告|贺卡|礼品卡|短信"
    r"|便条|请假|检讨|自我介绍|报价|提案|计划|书面|话术"
    r"|\b(?:letters?|e-?mails?|templates?|resum[eé]s?|cv|cover|contracts?|invoices?|receipts?|memos?|scripts?"
    r"|invitations?|speech|posts?|ads?|advert\w*|messages?|notes?|forms?"
    r"|proposals?|agreements?|certificates?|reports?|cards?|greetings?|bio|statements?|offer|notice|pitch|voicemail"
    r"|resignation|press release|bios?|introduction)\b",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"(?m:^)\W{0,4}(?:Dear|Hi|Hello|Hey|To whom|Subject:|尊敬的|亲爱的|敬爱的|致[：:]|主题[：:])|此致|敬礼|敬上"
    r"|Sincerely|Regards|regards|Best wishes|(?m:^)[你您]好[^，,。\n]{0,12}[，,：:]?$"
    r"|(?m:^)[^，,。\n]{2,10}[，,]\s{1,4}[\[【][^\[\]【】\n]{1,16}[\]】]\s*\Z"  # a closing formula and a name
)

_TAGS = (
    "a|b|body|code|div|em|font|form|h[1-6]|head|html|i|li|ol|p|pre|script|span|strong|style|table|tbody|td|th|tr|u|ul"
)
_ENTITY = r"&(?:nbsp|lt|gt|amp|quot|apos|copy|reg|hellip|mdash|ndash|middot|[lr][ds]quo|#\d{2,6}|#x[0-9A-Fa-f]{2,6});"
# A closing, void or attributed tag is an artifact; a bare opening tag may be the subject of the text.
_TAG = (
    rf"</(?:{_TAGS})\s{{0,4}}>|<(?:{_TAGS}|img)\s{{1,8}}[a-z-]{{1,20}}\s{{0,4}}=[^<>]{{1,200}}>"
    r"|<(?:br|hr|p|li|td|tr)\s{0,4}/?>"
)
_ARTIFACT = re.compile(f"{_TAG}|{_ENTITY}", re.IGNORECASE)
_ENTITIES = re.compile(_ENTITY, re.IGNORECASE)
_NAMED_ENTITY = re.compile(r"&([A-Za-z]{3,8}\d{0,2});")
# The characters that are escaped in pages. In code they are artifacts, unless they are a whole string or piece of code.
_ESCAPED_CHARACTER = re.compile(
    r"(?:(?<![\"'`/])|(?<=[\"'`])(?=&[a-z#0-9]{2,4};[^\"'`/]))&(?:quot|lt|gt|amp|apos|#39|#x27);"
)
_ESCAPED_TAG = re.compile(r"&lt;/?[a-z][a-z0-9]{0,9}[^&<>\n]{0,60}?&gt;", re.IGNORECASE)
_ANY_TAG = re.compile(
    r"</?([A-Za-z][\w:.-]{0,40})(?:\s[^<>]{0,400})?/?>|<!--.{0,200}?-->|<![A-Za-z][^<>]{0,200}>", re.DOTALL
)
_PROSE_TAGS = frozenset(["p", "br", "span", "div", "b", "i", "u", "strong", "em", "font", "a", "hr"])

_MARKUP_TOPIC = re.compile(
    r"(?<![A-Za-z])(?:x?html5?|xml|svg|css3?|jsx|tsx|xslt?|dom|vue(?:\.?js)?|react(?:\.?js)?|angular(?:js)?|jquery"
    r"|bootstrap|tailwind|jinja2?|handlebars|mustache|django"
    r"|flask|php|jsp|asp(?:\.net)?|javascript|typescript|node\.?js|markdown|web ?(?:pages?|forms?|apps?|components?"
    r"|development)|front-?end|hyper-?links?|tags?|templat(?:es?|ing)"
    r"|markup|iframe|rss|sitemap|escap(?:e|ed|ing)|entit(?:y|ies)|helm|ansible|github actions?|prompt)(?![A-Za-z])"
    r"|标签|標籤|网页|網頁|前端|模板|模版|樣板|超链接|超連結|超文本|标记语言|小程序|富文本|爬虫|爬蟲|实体字符|转义"
    r"|占位符|佔位符|提示词|变量插值",
    re.IGNORECASE,
)
_MARKUP_WORD = re.compile(
    r"(?<![A-Za-z])(?:X?HTML5?|XML|SVG|JSX|XSLT?|DOM|Jinja2?|Vue|React)(?![A-Za-z])|标记语言"
    r"|(?:</?[a-z][a-z0-9]{0,9} ?/?>|&[a-z]{2,6};)\W{0,3}(?:标签|標籤|元素|标记|实体|实体字符|转义|tag\b|element\b"
    r"|entity\b)"
)
_CODE_TOPIC = re.compile(
    r"(?<![A-Za-z])(?:code|coding|python|java|c\+\+|c#|golang|rust|ruby|perl|kotlin|sql|api|regex"
    r"|regular expressions?|algorithms?|snippets?|bash|shell|linux|yaml|json|latex|docker\w*"
    r"|kubernetes|makefile|web ?sites?|buttons?|navbar|drop-?down|checkbox)(?![A-Za-z])|代码|代碼|程式|函数|函數|脚本"
    r"|腳本|编程|編程|算法|演算法|正则|正則|变量|變數|組件|组件|控件|字符串"
    r"|按钮|按鈕|表单|表單|(?:创建|制作|设计|开发|搭建|实现|生成|添加)[^。\n]{0,20}(?:网站|網站|页面|頁面|表格|列表"
    r"|链接|导航|菜单)",
    re.IGNORECASE,
)
# Ambiguous: also frequent in questions that are not about code.
_AMBIGUOUS_CODE_TOPIC = re.compile(
    r"(?<![A-Za-z])(?:programs?|functions?|scripts?|compiles?|class|methods?|pars(?:e|ing)|strings?|navigation|menu"
    r"|layout)(?![A-Za-z])|程序|语法|解析|数据库|编写",
    re.IGNORECASE,
)
_CODE_LINE = re.compile(
    r"(?m)^[ \t]{0,40}(?:import \w|from [\w.]+ import|def \w+\(|class \w+|function\b|const \w|let \w|var \w|return\b"
    r"|public |private |#include|using \w|package \w|<\?(?:php|xml)|<!DOCTYPE"
    r"|@\w+|//|/\*|if ?\(|for ?\(|while ?\(|export |async |SELECT |INSERT |\}|\);?$)|[;{]$|=> ?[({]"
)
_MIN_FRAME = 10  # characters around a quotation; a text with fewer is the quotation itself


def find_placeholder(answer: str, prompt: str = "") -> str | None:
    """Return the first unfilled placeholder outside of code: ``<NAME>``, ``{{name}}``, ``[Your name]``.

    Args:
        prompt: all messages before the answer, one per line. Blanks such as ``[Your name]`` may be its subject.
    """
    for slot in _SLOT.finditer(f"{_remove_code(prompt)}\n{_remove_code(answer)}"):
        if not (_CODE_SLOT.match(slot[0]) and _is_code(answer, prompt)):
            return slot[0]
    if (media := _MEDIA.search(f"{_remove_code(prompt)}\n{_remove_code(answer)}")) and not _MARKUP_TOPIC.search(prompt):
        return media[0]
    if not (blank := _BLANK.search(_remove_quotes(_remove_code(answer)))):
        return None
    is_document = _DOCUMENT.search(prompt[-MAX_SEARCHED_CHARACTERS:]) or _LETTER.search(
        answer[:MAX_SEARCHED_CHARACTERS]
    )
    return None if blank[0] in prompt or is_document else blank[0]


def _remove_quotes(text: str) -> str:
    """Remove quotations in a text: an example for others to fill in."""
    rest = _QUOTED.sub(" ", text)
    return rest if len(rest.strip()) >= _MIN_FRAME else text


def find_html(answer: str, prompt: str = "") -> str | None:
    """Return the first HTML tag or entity outside of code, unless the row is about markup or code."""
    text = f"{_remove_code(prompt)}\n{_remove_code(answer)}"
    artifact = _ARTIFACT.search(text) or _find_named_entity(text)
    if not artifact:
        return _find_escaped_code(answer, prompt)
    if escaped := _find_escaped_markup(answer, prompt):
        return escaped
    is_about_markup = _MARKUP_TOPIC.search(prompt[-MAX_SEARCHED_CHARACTERS:]) or _MARKUP_WORD.search(
        answer[:MAX_SEARCHED_CHARACTERS]
    )
    if is_about_markup or _is_markup(answer, prompt):
        return None
    if not _is_code(answer, prompt):
        return artifact[0]
    entity = _ENTITIES.search(text)  # code does not write > as &gt;
    return entity[0] if entity else _find_escaped_code(answer, prompt)


def _find_named_entity(text: str) -> re.Match | None:
    """Return the first character of HTML 4 written as an entity, such as ``&deg;``."""
    return next((match for match in _NAMED_ENTITY.finditer(text) if match[1] in name2codepoint), None)


def _find_escaped_code(answer: str, prompt: str) -> str | None:
    """Return the first escaped character within code of a language that has no entities."""
    if "`" not in answer and "`" not in prompt:
        return None
    for text in (prompt, answer):
        for code in CODE.finditer(text):
            escaped = _ESCAPED_CHARACTER.search(code[0])
            if escaped and not (
                _ANY_TAG.search(code[0]) or _MARKUP_TOPIC.search(f"{code[0][:20]} {prompt}"[:MAX_SEARCHED_CHARACTERS])
            ):
                return escaped[0]
    return None


def _remove_code(text: str) -> str:
    """Remove code blocks and inline code, in which braces and tags are intended."""
    return CODE.sub(" ", text) if "`" in text else text


def _find_escaped_markup(answer: str, prompt: str) -> str | None:
    """Return the first tag of a page in which all tags are escaped, so that no browser would render it."""
    tags = _ESCAPED_TAG.findall(answer[:MAX_SEARCHED_CHARACTERS])
    if len(tags) < 3 or _ANY_TAG.search(answer[:MAX_SEARCHED_CHARACTERS]):
        return None
    return None if re.search(r"转义|实体|escap|entit|&lt;", prompt) else tags[0]


def _is_markup(answer: str, prompt: str) -> bool:
    """Whether the answer as a whole is markup, or edits markup from the prompt."""
    has_markup_prompt = any(
        line.startswith("<") and line.endswith(">") and len(line) > 6
        for line in map(str.strip, prompt[-MAX_SEARCHED_CHARACTERS:].split("\n"))
    )
    text = answer[:MAX_SEARCHED_CHARACTERS].strip()
    if not (text.startswith("<") and (text.endswith(">") or len(answer) > MAX_SEARCHED_CHARACTERS)):
        return has_markup_prompt and bool(_ANY_TAG.search(text))
    tags = [(tag[1] or "", len(tag[0])) for tag in _ANY_TAG.finditer(text)]
    is_structured = any(name.lower() not in _PROSE_TAGS for name, _ in tags)
    return has_markup_prompt or (is_structured and sum(length for _, length in tags) >= 0.4 * len(text))


def _is_code(answer: str, prompt: str) -> bool:
    """Whether the row asks for code, a page or a template, or the answer consists of code."""
    topic = prompt[-MAX_SEARCHED_CHARACTERS:]
    if (
        _MARKUP_TOPIC.search(topic)
        or _CODE_TOPIC.search(topic)
        or _MARKUP_WORD.search(answer[:MAX_SEARCHED_CHARACTERS])
    ):
        return True
    lines = len(_CODE_LINE.findall(answer[:MAX_SEARCHED_CHARACTERS]))
    return lines > 1 or (lines == 1 and bool(_AMBIGUOUS_CODE_TOPIC.search(topic)))
