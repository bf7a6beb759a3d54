"""Role marks, prompt templates and end marks of chat models inside of a text; and answers that were cut off."""

import re

# What only a template writes. Full-width bars and blanks are DeepSeek's.
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
_OPENERS = ("<", "[", "###", "Below is an instruction", "A chat between", "描述任务的指令")
# A turn at the beginning of a line, by who speaks.
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
# A row that is about dialogues or templates.
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


_LONGEST = 20_000  # characters of a question that are looked at to tell what a row is about


def role_mark(answer: str, asked: str = "") -> str | None:
    """The first role mark, template or end mark of a chat model, or the first turn of a dialogue, inside of a text.

    Args:
        asked: all that came before the answer.
    """
    return _special_token(answer, asked) or _flattened_turn(answer, asked)


def _special_token(answer: str, asked: str) -> str | None:
    if not any(opener in answer or opener in asked for opener in _OPENERS):
        return None
    for text in (asked, answer):
        token = _TOKEN.search(_CODE.sub(" ", text) if "`" in text else text)
        if token:
            return None if _ABOUT_TEMPLATES.search(asked[-_LONGEST:]) else token[0]
    return None


def _flattened_turn(answer: str, asked: str) -> str | None:
    """A turn of a dialogue in plain words: another question in the answer, or a question that ends with "Answer:"."""
    if not (_HAS_ASKER.search(asked) or ("\n" in answer and _HAS_ASKER.search(answer))):
        return None
    first = _FIRST_TURN.search(asked)
    if first and (opened := _OPEN_ANSWER.search(asked)):
        return opened[0].strip()
    if _ABOUT_DIALOGUES.search(asked[-_LONGEST:]):
        return None
    if first and (reply := _REPLY.search(asked, first.end())) and _FIRST_TURN.search(asked, reply.end()):
        return reply[0].strip()
    turn = _NEXT_TURN.search(answer)
    return turn and turn[0].strip()


# Cut-off answers -------------------------------------------------------------------------------------

_HANGS = re.compile(
    r"[，、,；(（\[【{“‘「『《]\Z|(?<![:：\w])[:：]\Z|(?<![:：])\b\w{1,40}[:：]\Z|(?<=\w) [+=]\Z|[\u4e00-\u9fff]—\Z"
    r"|(?:^|\n)[ \t]{0,8}(?:\d{1,3}[.、)）]|[-*•·]|[（(]\d{1,3}[)）])\Z"
    r"|(?:例如|比如|譬如|包括|以及|并且|而且|但是|因为|由于|所以|如果|或者|其中|此外|另外|同时"
    r"|[和与及或且把被将对从向在于为如由给让使])\Z"
    r"|(?<=[A-Za-z,] )(?:the|an|and|or|but|of|to|in|on|at|for|with|from|by|is|are|was|were|as|that|which|because"
    r"|such as|including|e\.g|i\.e)\Z"
)
_TERMINATOR = re.compile(r"[。！？!?]")
# What most answers end with, at which none hangs.
_ENDS = frozenset("。！？!?～~”』」》}`'…|％%") | {""}
# A letter or a character at which no sentence of a conversation ends by itself.
_BREAKS_OFF = re.compile(r"(?:[A-Za-z]|(?![的了吧啦啊呢哦呀吗嘛哈好复康乐谢油您你他她它们])[\u4e00-\u9fff])\Z")
_PROSE, _TERMINATORS = 200, 3  # characters and full stops of an answer that ends its sentences
_TAIL, _SEEN = 400, 16  # characters that are looked at, and that a report shows


def cut_off(answer: str) -> str | None:
    """The end of an answer that was cut at a length limit: a comma, an open fence, an empty list item, half a word.

    Poems, lists and labels may end without a full stop; what counts is what cannot end there.
    """
    text = answer.rstrip()
    if text.count("```") % 2:
        return f"``` … {' '.join(text[-_SEEN:].split())}"
    if text[-1:] in _ENDS:
        return None
    tail = text[-_TAIL:]
    hangs = _HANGS.search(tail[-60:]) and not _is_label(text)
    if hangs or (len(text) >= _PROSE and _breaks_off(tail, text)):
        return " ".join(tail[-_SEEN:].split())
    return None


def _is_label(text: str) -> bool:
    """Whether an end that hangs is meant, as of a word such as "给予" or "备注：" by itself."""
    longest = {"：": 4, ":": 12}.get(text[-1:], 0 if text[-1:] in "（(【{“‘「『《" else 20)
    return len(text) < longest and "\n" not in text and not re.search(r"[，。、,;；]|[^\d\s]\.", text)


def _breaks_off(tail: str, text: str) -> bool:
    """Whether the last line of prose stops within a sentence, where the others end in a full stop."""
    line = tail[tail.rfind("\n") + 1 :]
    rest = _TERMINATOR.split(line)[-1]
    if len(rest) == len(line) or len(rest) < 8 or re.search(r"[#_：:/@|=*]|祝|希望|谢|http", rest):
        return False
    return bool(_BREAKS_OFF.search(rest)) and len(_TERMINATOR.findall(text[-4 * _PROSE :])) >= _TERMINATORS
