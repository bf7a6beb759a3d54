"""Chat markup inside a text (role marks, prompt templates, end-of-turn tokens), and truncated answers."""

import logging
import re
from collections.abc import Callable, Iterator
from functools import cache

from stages.validate.text_patterns import CODE, MAX_SEARCHED_CHARACTERS

# Tokens of prompt templates. Full-width bars and blanks are DeepSeek's.
_TOKEN = re.compile(
    r"<[|｜][A-Za-z_▁ ]{2,40}[|｜]>(?::|：)?|\[/?INST\]|<</?SYS>>|</?s>|\[gMASK\]|<[sego]op>|<(?:start|end)_of_turn>"
    r"|<eo[hamt]>|<reserved_\d{1,4}>|</?think(?:ing)?>"
    r"|<_?/?(?:user|bot|human|assistant|system|gpt|ai|usr|robot|chatbot|instruction|response)_?>|\[\|?(?:Human|AI"
    r"|User|Assistant)\|\]|\[Round \d{1,3}\]|###\s?(?:Instruction|Response|Input|Human|Assistant|User|System|指令"
    r"|输入|输出|回答|回复|用户|助手)\s?[:：]"
    r"|Below is an instruction that describes a task|A chat between a curious (?:user|human)|以下是一个描述任务的指令"
    r"|下面是一条描述任务的指令",
    re.IGNORECASE,
)
_SUBSTRINGS = ("<", "[", "###", "Below is an instruction", "A chat between", "描述任务的指令")
# Speakers at the beginning of a line.
_ASKS = r"(?:Human|User|USER|用户|用戶|人类|人類|提问者|Question|Instruction|问|問|客户|患者|Q)"
_ANSWERS = (
    r"(?:Assistant|ASSISTANT|AI|Bot|GPT|ChatGPT|ChatGLM|助手|助理|机器人|機器人|Answer|Response|回答|答|客服|医生|A)"
)
_NEXT_TURN = re.compile(
    r"(?m)(?<=\n)[ \t]{0,4}(?:\*\*)?(?:Human|User|USER|用户|用戶|人类|人類|Question|Instruction|问"
    r"|問)(?:\*\*)?\s?[:：](?:\*\*)?[ \t]{0,4}\S"
)
_OPEN_ANSWER = re.compile(rf"(?:^|\n|\s){_ANSWERS}\s?[:：]\s{{0,4}}\Z")
_FIRST_TURN = re.compile(rf"(?m)^\s{{0,4}}{_ASKS}\s?[:：]")
_REPLY = re.compile(rf"(?m)(?:^|(?<=[。？！?!.\s])){_ANSWERS}\s?[:：]")
_HAS_ASKER = re.compile(r"Human|User|USER|用户|用戶|人类|人類|Question|Instruction|[问問Q][:：]|问 ?：")
# Rows about dialogues or templates, in which such marks are intended.
_ABOUT_DIALOGUES = re.compile(
    r"对话|對話|对白|采访|採訪|访谈|訪談|专访|剧本|劇本|问答|問答|FAQ|情景|场景|聊天记录|群聊|话术|相声|话剧|台词"
    r"|记录|笔录|庭审|面试|模拟|扮演|角色"
    r"|\b(?:interview|transcript|dialog(?:ue)?s?|script|conversation|play|chat|q ?& ?a|role-?play|screenplay|quiz"
    r"|trivia)\b",
    re.IGNORECASE,
)
_ABOUT_TEMPLATES = re.compile(
    r"模板|模版|提示词|特殊(?:词元|标记|字符|符号)|词元|分词|微调|标记符|ChatML|Llama|Alpaca|Vicuna|Qwen|ChatGLM|XML"
    r"|HTML|\b(?:token(?:s|izer|ization)?|template|prompt|fine-?tun\w+|instruct|special|tags?|markup)\b|删除线"
    r"|strikethrough",
    re.IGNORECASE,
)


def find_role_mark(answer: str, prompt: str = "") -> str | None:
    """Return the first token of a prompt template, or the first turn of a flattened dialogue, inside a text.

    Args:
        prompt: all messages before the answer, one per line.
    """
    return _find_template_token(answer, prompt) or _find_flattened_turn(answer, prompt)


def _find_template_token(answer: str, prompt: str) -> str | None:
    if not any(substring in answer or substring in prompt for substring in _SUBSTRINGS):
        return None
    for text in (prompt, answer):
        token = _TOKEN.search(CODE.sub(" ", text) if "`" in text else text)
        if token:
            return None if _ABOUT_TEMPLATES.search(prompt[-MAX_SEARCHED_CHARACTERS:]) else token[0]
    return None


def _find_flattened_turn(answer: str, prompt: str) -> str | None:
    """Return a turn in plain words: a further question in the answer, or a prompt that ends with "Answer:"."""
    if not (_HAS_ASKER.search(prompt) or ("\n" in answer and _HAS_ASKER.search(answer))):
        return None
    first_turn = _FIRST_TURN.search(prompt)
    if first_turn and (open_answer := _OPEN_ANSWER.search(prompt)):
        return open_answer[0].strip()
    if _ABOUT_DIALOGUES.search(prompt[-MAX_SEARCHED_CHARACTERS:]):
        return None
    if first_turn and (reply := _REPLY.search(prompt, first_turn.end())) and _FIRST_TURN.search(prompt, reply.end()):
        return reply[0].strip()
    next_turn = _NEXT_TURN.search(answer)
    return next_turn and next_turn[0].strip()


# Truncated answers ---------------------------------------------------------------------------------

# Endings after which a sentence must continue: an open bracket, an empty list item, a conjunction.
_OPEN_ENDING = re.compile(
    r"[，、,；(（\[【{“‘「『《]\Z|(?<![:：\w])[:：]\Z|(?<![:：])\b\w{1,40}[:：]\Z|(?<=\w) [+=]\Z|[\u4e00-\u9fff]—\Z"
    r"|(?:^|\n)[ \t]{0,8}(?:\d{1,3}[.、)）]|[-*•·]|[（(]\d{1,3}[)）])\Z"
    r"|(?:例如|比如|譬如|包括|以及|并且|而且|但是|因为|由于|所以|如果|或者|其中|此外|另外|同时"
    r"|任何|通过|逐渐|不断|尽量|能够|关于|对于|根据|按照|随着|以便|从而|甚至|更加"
    # Not 总和, 参与, 涉及, 行为, 存在: words that end with the character of a conjunction or preposition.
    r"|(?<![总饱柔温缓平共调附随])和|(?<![参赠授])与|(?<![涉普顾])及|[或且于如]|(?<![一火车拖手几两])把|被|(?<![即麻])将"
    r"|(?<![相绝不面针核])对|(?<![服跟顺遵听])从|(?<![方倾导趋取志意动])向|(?<![存现所实潜内外健自])在"
    r"|(?<![行认作因人])为|(?<![自理缘事])由|(?<!供)给|(?<![退转礼谦忍])让|(?<![天大促])使)\Z"
    r"|(?<=[A-Za-z,] )(?:the|an|and|or|but|of|to|in|on|at|for|with|from|by|is|are|was|were|as|that|which|because"
    r"|such as|including|e\.g|i\.e)\Z"
)
_TERMINATOR = re.compile(r"[。！？!?]")
# Endings of most answers, of which none is open: they skip the search.
_COMPLETE_ENDINGS = frozenset("。！？!?～~”』」》}`'…|％%") | {""}
# A letter or character with which no sentence of a conversation ends.
_MID_SENTENCE = re.compile(r"(?:[A-Za-z]|(?![的了吧啦啊呢哦呀吗嘛哈好复康乐谢油您你他她它们])[\u4e00-\u9fff])\Z")
# Words that modify the next one, and a number that was cut after a preposition: "在202".
_MODIFIER = re.compile(r"(?:直接|日常|有关|相应|各种|某些|这些|那些|进一步|[在于至到从约达]\s?\d{1,3})\Z")
_LIST_ITEM = re.compile(
    r"[ \t]{0,8}(?:\d{1,3}[.、)）]|[-*•·①-⑳]|[（(][\d一二三四五六七八九十]{1,3}[)）]|[一二三四五六七八九十]{1,3}、)"
)
_CLOSING = re.compile(r"[#_/@|=*<>]|(?:祝|希望|[谢感]谢|此致|敬上)[^，,]{0,30}\Z|http|[：:][^，,：:]*\Z")
_OPEN_BRACKET = re.compile(r"[\w\u4e00-\u9fff] ?(?:\([^()\n]{0,30}|（[^（）\n]{0,30}|《[^《》\n]{0,30})\Z")
_FENCE = re.compile(r"```[^\n`]*\n(.*?)```\Z", re.DOTALL)
_STRING = re.compile(r"\"[^\"\n]{0,200}+\"|'[^'\n]{0,200}+'")
_MIN_CODE_LINES = 8  # a shorter piece of code with a single open brace may be an excerpt on purpose
_PROSE, _TERMINATORS = 200, 3  # characters, and full stops near the end, of an answer that punctuates its sentences
_SHORT_PROSE, _FEW_TERMINATORS = 60, 2  # the same, where the last word itself is incomplete
_BOUND_SHARE = 0.2  # a character that stands alone in less of its uses is the beginning of a word
# Characters with a low share that end clauses: complements and modal particles.
_FREE_CHARACTERS = frozenset("的了吧啦啊呢哦呀吗嘛哈好行成到见掉完开来去起上下中里外内等人们住过得着您你我他她它")
_TAIL, _EXCERPT = 400, 16  # characters that are searched, and that a report shows


def find_truncation(answer: str) -> str | None:
    """Return the end of an answer that was cut at a length limit: a comma, an open fence, an incomplete word.

    Poems, lists and labels may end without a full stop, so only endings that cannot be complete count.
    """
    text = answer.rstrip()
    if text.count("```") % 2 or _has_open_block(text):
        return f"``` … {' '.join(text[-_EXCERPT:].split())}"
    if text[-1:] in _COMPLETE_ENDINGS:
        return None
    tail = text[-_TAIL:]
    has_open_ending = _OPEN_ENDING.search(tail[-60:]) and not _is_label(text)
    if has_open_ending or (
        len(text) >= _SHORT_PROSE and (_stops_mid_sentence(tail, text) or _stops_mid_word(tail, text))
    ):
        return " ".join(tail[-_EXCERPT:].split())
    return None


def _is_label(text: str) -> bool:
    """Whether an open ending is intended: a single word or label such as "给予" or "备注："."""
    max_length = {"：": 4, ":": 12}.get(text[-1:], 0 if text[-1:] in "（(【{“‘「『《" else 20)
    return len(text) < max_length and "\n" not in text and not re.search(r"[，。、,;；]|[^\d\s]\.", text)


def _has_open_block(text: str) -> bool:
    """Whether the answer ends with a fence whose code opens more braces than it closes."""
    if not text.endswith("```") or not (fence := _FENCE.search(text, max(text.rfind("```", 0, -3), 0))):
        return False
    code = fence[1].rstrip()
    if code.endswith(("...", "…")):
        return False
    code = _STRING.sub("", code)
    return code.count("{") > code.count("}") + (code.count("\n") < _MIN_CODE_LINES)


def _stops_mid_sentence(tail: str, text: str) -> bool:
    """Whether the last line of prose stops within a sentence, in a text whose sentences end with a full stop."""
    line = tail[tail.rfind("\n") + 1 :]
    rest = _TERMINATOR.split(line)[-1]
    if len(text) < _PROSE or len(rest) == len(line) or len(rest) < 8 or _CLOSING.search(rest):
        return False
    return bool(_MID_SENTENCE.search(rest)) and len(_TERMINATOR.findall(text[-4 * _PROSE :])) >= _TERMINATORS


def _stops_mid_word(tail: str, text: str) -> bool:
    """Whether the last line stops within a word, a number or a bracket, in a text with complete sentences."""
    line = tail[tail.rfind("\n") + 1 :]
    if _OPEN_BRACKET.search(line) and not line.startswith((" ", "\t")):
        return True
    if len(_TERMINATOR.findall(text[-4 * _PROSE :])) < _FEW_TERMINATORS or not _continues_prose(tail, line):
        return False
    rest = _TERMINATOR.split(line)[-1]
    return bool(_MODIFIER.search(rest)) or (len(rest) >= 4 and _ends_with_bound_character(rest[-12:]))


def _continues_prose(tail: str, line: str) -> bool:
    """Whether the last line has complete sentences, or the line before it is of the same kind and has one."""
    if _CLOSING.search(_TERMINATOR.split(line)[-1]) or line.startswith("  "):
        return False
    if _TERMINATOR.search(line):
        return True
    before = tail[: len(tail) - len(line)].rstrip()
    previous = before[before.rfind("\n") + 1 :]
    is_item, is_previous_item = bool(_LIST_ITEM.match(line)), bool(_LIST_ITEM.match(previous))
    return is_item == is_previous_item and previous[-1:] in "。！？" and len(line) >= 8


def _ends_with_bound_character(clause: str) -> bool:
    """Whether the last word is a single character that is nearly always the beginning of a longer word."""
    last = clause[-1]
    if not "\u4e00" <= last <= "\u9fff" or last in _FREE_CHARACTERS:
        return False
    cut, shares = _load_segmenter()
    return list(cut(clause, HMM=False))[-1] == last and shares.get(last, 1.0) < _BOUND_SHARE


@cache
def _load_segmenter() -> tuple[Callable[..., Iterator[str]], dict[str, float]]:
    """Return jieba's function that cuts a text into words, and how often each character stands alone, by character."""
    import jieba  # takes a second, and few rows need it

    jieba.setLogLevel(logging.WARNING)
    jieba.initialize()
    counts: dict[str, int] = {}
    for word, count in jieba.dt.FREQ.items():
        counts[word[0]] = counts.get(word[0], 0) + count
    return jieba.cut, {first: jieba.dt.FREQ.get(first, 0) / max(count, 1) for first, count in counts.items()}
