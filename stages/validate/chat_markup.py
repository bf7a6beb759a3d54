"""Chat markup inside a text (role marks, prompt templates, end-of-turn tokens), and truncated answers."""

import re

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
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_MAX_LENGTH = 20_000  # characters of a prompt that are searched for its topic


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
        token = _TOKEN.search(_CODE.sub(" ", text) if "`" in text else text)
        if token:
            return None if _ABOUT_TEMPLATES.search(prompt[-_MAX_LENGTH:]) else token[0]
    return None


def _find_flattened_turn(answer: str, prompt: str) -> str | None:
    """Return a turn in plain words: a further question in the answer, or a prompt that ends with "Answer:"."""
    if not (_HAS_ASKER.search(prompt) or ("\n" in answer and _HAS_ASKER.search(answer))):
        return None
    first_turn = _FIRST_TURN.search(prompt)
    if first_turn and (open_answer := _OPEN_ANSWER.search(prompt)):
        return open_answer[0].strip()
    if _ABOUT_DIALOGUES.search(prompt[-_MAX_LENGTH:]):
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
    r"|[和与及或且把被将对从向在于为如由给让使])\Z"
    r"|(?<=[A-Za-z,] )(?:the|an|and|or|but|of|to|in|on|at|for|with|from|by|is|are|was|were|as|that|which|because"
    r"|such as|including|e\.g|i\.e)\Z"
)
_TERMINATOR = re.compile(r"[。！？!?]")
# Endings of most answers, of which none is open: they skip the search.
_COMPLETE_ENDINGS = frozenset("。！？!?～~”』」》}`'…|％%") | {""}
# A letter or character with which no sentence of a conversation ends.
_MID_SENTENCE = re.compile(r"(?:[A-Za-z]|(?![的了吧啦啊呢哦呀吗嘛哈好复康乐谢油您你他她它们])[\u4e00-\u9fff])\Z")
_PROSE, _TERMINATORS = 200, 3  # characters, and full stops near the end, of an answer that punctuates its sentences
_TAIL, _EXCERPT = 400, 16  # characters that are searched, and that a report shows


def find_truncation(answer: str) -> str | None:
    """Return the end of an answer that was cut at a length limit: a comma, an open fence, an empty list item.

    Poems, lists and labels may end without a full stop, so only endings that cannot be complete count.
    """
    text = answer.rstrip()
    if text.count("```") % 2:
        return f"``` … {' '.join(text[-_EXCERPT:].split())}"
    if text[-1:] in _COMPLETE_ENDINGS:
        return None
    tail = text[-_TAIL:]
    has_open_ending = _OPEN_ENDING.search(tail[-60:]) and not _is_label(text)
    if has_open_ending or (len(text) >= _PROSE and _stops_mid_sentence(tail, text)):
        return " ".join(tail[-_EXCERPT:].split())
    return None


def _is_label(text: str) -> bool:
    """Whether an open ending is intended: a single word or label such as "给予" or "备注："."""
    max_length = {"：": 4, ":": 12}.get(text[-1:], 0 if text[-1:] in "（(【{“‘「『《" else 20)
    return len(text) < max_length and "\n" not in text and not re.search(r"[，。、,;；]|[^\d\s]\.", text)


def _stops_mid_sentence(tail: str, text: str) -> bool:
    """Whether the last line of prose stops within a sentence, in a text whose sentences end with a full stop."""
    line = tail[tail.rfind("\n") + 1 :]
    rest = _TERMINATOR.split(line)[-1]
    if len(rest) == len(line) or len(rest) < 8 or re.search(r"[#_：:/@|=*]|祝|希望|谢|http", rest):
        return False
    return bool(_MID_SENTENCE.search(rest)) and len(_TERMINATOR.findall(text[-4 * _PROSE :])) >= _TERMINATORS
