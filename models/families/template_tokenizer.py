"""Tokenizer with a chat template: conversations become tokens by Jinja in transformers' sandbox.

A message cannot inject control tokens. If the tokenizer would find a control token in a message, also after its
normalization, a mark stands for the message while the template renders the conversation, and the message is then
encoded by a tokenizer without added tokens::

    messages      user: "Hi <|im_end|>"
    rendered      <|im_start|>user\\n⟨0⟩<|im_end|>\\n<|im_start|>assistant\\n        ⟨0⟩: U+E000, 0, U+E001
    ids           <|im_start|> user \\n Hi ▁< | im _end | > <|im_end|> \\n <|im_start|> assistant \\n
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from models.base_model import first_line
from models.errors import UserError
from models.sample import Message

_MARK = re.compile("\ue000([0-9]+)\ue001")
_MARK_CHARACTERS = re.compile("[\ue000\ue001]")
# For templates that write the date: with it, the rows of one day would not have the prompts of the next.
_FIXED_DATE = "{%- macro strftime_now(format) -%}01 Jan 2026{%- endmacro -%}"


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        text: with a mark for every escaped message.
        escaped: the escaped texts, by the number in their mark.
    """

    text: str
    escaped: list[str]


class TemplateTokenizer:
    """A fast tokenizer of transformers with a chat template.

    Args:
        tokenizer: transformers' PreTrainedTokenizerFast, which has the template.
        vocabulary: content of ``tokenizer.json``.
        end_token_ids: ids that end an answer.
        family: see :class:`models.families.family.Family`.
    """

    def __init__(self, tokenizer, vocabulary: bytes, end_token_ids: Sequence[int], family):
        from tokenizers import Tokenizer

        self.tokenizer, self.family, self.end_token_ids = tokenizer, family, list(end_token_ids)
        if "strftime_now" in tokenizer.chat_template:
            tokenizer.chat_template = _FIXED_DATE + tokenizer.chat_template
        content = json.loads(vocabulary)
        added = content.get("added_tokens") or []
        self._plain = Tokenizer.from_str(json.dumps(content | {"added_tokens": [], "post_processor": None}))
        # An added token that is white space, such as Gemma's line breaks, is ordinary text.
        self._control_ids = {token["id"] for token in added if token["content"].strip()}
        self._special_ids = {token["id"] for token in added if token["content"].strip() and token["special"]}
        pad_token_id = tokenizer.pad_token_id
        self.pad_token_id = self.end_token_ids[0] if pad_token_id is None else pad_token_id

    def __len__(self) -> int:
        return len(self.tokenizer)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **_) -> str:
        """Return the text of ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the spelling of every token."""
        return self.tokenizer.convert_ids_to_tokens(ids)

    def control_tokens(self) -> tuple[str, ...]:
        """Return the spellings of special tokens."""
        return tuple(self.tokenizer.convert_ids_to_tokens(sorted(self._special_ids)))

    # Texts ---------------------------------------------------------------------------------------

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens, and without added tokens that are control tokens.

        A lone surrogate, which has no UTF-8 form, is encoded as ``?``.
        """
        return self._encode_without(self._control_ids, text)

    def encode_answer_text(self, text: str) -> list[int]:
        """Return the ids of an answer's text, which may have added tokens that are not special, such as ``<think>``."""
        return self._encode_without(self._special_ids, text)

    def _encode_without(self, forbidden: set[int], text: str) -> list[int]:
        text = text.encode("utf-8", "replace").decode()
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids if forbidden.isdisjoint(ids) else self._plain.encode(text, add_special_tokens=False).ids

    def _has_control_tokens(self, message: Message) -> bool:
        """Whether the tokenizer would find a control token in a message.

        Answers may have added tokens that are not special, such as ``<think>``.
        """
        ids = self.tokenizer(message.content, add_special_tokens=False)["input_ids"]
        return not (self._special_ids if message.role == "assistant" else self._control_ids).isdisjoint(ids)

    # Conversations -------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], with_prompt: bool = False) -> Rendered:
        """Return the text of a conversation by the chat template.

        Without messages the text is that of an empty question. A template that knows no system messages gets them
        before the first question.

        Args:
            with_prompt: append the beginning of an answer.

        Raises:
            UserError: the template refuses the conversation, or fails.
        """
        escaped: list[str] = []
        chat = [{"role": message.role, "content": self._escape(message, escaped)} for message in messages]
        chat = chat or [{"role": "user", "content": ""}]
        text, reason = self._apply_template(chat, with_prompt)
        system = chat[0]["content"].strip() if chat[0]["role"] == "system" and len(chat) > 1 else None
        if system is not None and (text is None or system not in text):
            question = {"role": "user", "content": f"{chat[0]['content']}\n{chat[1]['content']}"}
            text, reason = self._apply_template([question, *chat[2:]], with_prompt)
        if text is None:
            raise UserError(f"The chat template of the base refuses a conversation: {reason}.")
        return Rendered(text, escaped)

    def _apply_template(self, chat: list[dict], with_prompt: bool) -> tuple[str | None, str]:
        """Return the rendered text, or None and the reason why the template fails."""
        options = {"tokenize": False, "add_generation_prompt": with_prompt, "enable_thinking": self.family.thinking}
        try:
            return self.tokenizer.apply_chat_template(chat, **options), ""
        except Exception as error:  # a template can fail in any way
            return None, first_line(error)

    def _escape(self, message: Message, escaped: list[str]) -> str:
        """Return the content of a message, with a mark for its text if it has control tokens or marks.

        White space around the text stays outside of the mark, since templates strip it.
        """
        content = message.content.encode("utf-8", "replace").decode()
        if not _MARK_CHARACTERS.search(content) and not self._has_control_tokens(replace(message, content=content)):
            return content
        text = content.strip()
        before, _, after = content.partition(text)
        escaped.append(text)
        return f"{before}\ue000{len(escaped) - 1}\ue001{after}"

    def encode(self, rendered: Rendered) -> list[int]:
        """Return the ids of a rendered conversation: control tokens of the template, and escaped messages as text."""
        ids: list[int] = []
        for index, part in enumerate(_MARK.split(rendered.text)):
            if index % 2:
                ids += self._plain.encode(rendered.escaped[int(part)], add_special_tokens=False).ids
            elif part:
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    def encode_pair(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Return the ids of the prompt, and of the last answer up to the token that ends it, if the template has one.

        The ids of the whole conversation begin with those of the prompt, unless a token crosses the boundary or the
        template writes more into a prompt than before an answer, such as an empty thinking block. The answer is then
        encoded alone.
        """
        prompt, whole = self.render(messages[:-1], with_prompt=True), self.render(messages)
        prompt_ids, whole_ids = self.encode(prompt), self.encode(whole)
        if whole.text.startswith(prompt.text):
            answer = whole_ids[len(prompt_ids) :]
            if whole_ids[: len(prompt_ids)] != prompt_ids:
                answer = self.encode(Rendered(whole.text[len(prompt.text) :], whole.escaped))
        else:
            answer = self.encode_answer_text(messages[-1].content)
        end = next((index for index, token_id in enumerate(answer) if token_id in self.end_token_ids), None)
        return prompt_ids, answer if end is None else answer[: end + 1]

    def has_end(self, ids: Sequence[int]) -> bool:
        """Whether ids end with a token that ends an answer."""
        return bool(ids) and ids[-1] in self.end_token_ids

    def add_end(self, answer: list[int]) -> list[int]:
        """Return an answer with the token that ends it."""
        return answer if self.has_end(answer) else [*answer, self._turn_end]

    @cached_property
    def _turn_end(self) -> int:
        """The token that ends an answer: that of the template, or the next role's, or the first that ends answers."""
        turns = (Message("user", "?"), Message("assistant", "!"), Message("user", "?"))
        for length in (2, 3):
            rendered = self.render(turns[:length])
            following = self.encode(Rendered(rendered.text.rpartition("!")[2], rendered.escaped))
            if end := [token_id for token_id in following if token_id in self.end_token_ids]:
                return end[0]
        return self.end_token_ids[0]
