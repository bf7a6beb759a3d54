"""Tokenizer of ChatGLM-6B: SentencePiece with symbols for line breaks, tabs and runs of blanks."""

import json
import re
import shutil
from pathlib import Path

from transformers import AddedToken, PreTrainedTokenizer

from models.chatglm.configuration_chatglm import image_tokens_of
from models.families.chatglm_6b import ChatGLM6BFamily
from models.vocabulary import Vocabulary

VOCAB_FILE = "ice_text.model"
_IMAGE_TOKEN = re.compile(r"<image_(\d+)>")


class ChatGLMTokenizer(PreTrainedTokenizer):
    """Text to token ids and back, identical to the published tokenizer.

    A single text becomes ``text [gMASK] <sop>``, a pair ``text [gMASK] <sop> answer <eop>``. Batches are padded on the
    left. Text that contains ``<sop>``, ``</s>``, ``[MASK]``, ``<pad>`` or ``<unk>`` becomes that control token, so data
    must be checked for it.

    Args:
        vocab_file: path of ``ice_text.model``.
        do_lower_case, remove_space: published options, both off in published checkpoints.
        num_image_tokens: ids before the first text token. By default derived from ``vocab_size`` in the config.json
            next to the vocabulary: 20,000 for 150,528, else 0.

    Attributes:
        gmask_token_id, sop_token_id, eop_token_id, end_token_id: ids of ``[gMASK]``, ``<sop>``, ``<eop>`` and ``</s>``.
            ``eos_token_id`` is one of the last two, depending on the checkpoint's tokenizer_config.json, so generation
            uses ``eos_token_id`` of the model's configuration instead.
    """

    family = ChatGLM6BFamily()
    vocab_files_names = {"vocab_file": VOCAB_FILE}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file,
        do_lower_case=False,
        remove_space=False,
        bos_token="<sop>",
        eos_token="<eop>",
        mask_token="[MASK]",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        num_image_tokens=None,
        clean_up_tokenization_spaces=True,
        **kwargs,
    ):
        self.vocab_file = str(vocab_file)
        self.vocabulary = Vocabulary(self.vocab_file, do_lower_case, remove_space)
        if num_image_tokens is None:
            num_image_tokens = _infer_num_image_tokens(self.vocab_file)
        self.num_image_tokens = num_image_tokens
        self.gmask_token_id = self._convert_token_to_id("[gMASK]")
        self.sop_token_id = self._convert_token_to_id("<sop>")
        self.eop_token_id = self._convert_token_to_id("<eop>")
        self.end_token_id = self._convert_token_to_id("</s>")
        special = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "mask_token": mask_token,
            "pad_token": pad_token,
            "unk_token": unk_token,
        }
        # transformers 4.27 stripped blanks on both sides of a special token; transformers 5 needs lstrip and rstrip.
        for name, token in special.items():
            special[name] = AddedToken(str(token), lstrip=True, rstrip=True, special=True, normalized=False)
        # Published configurations also have gmask_token, eop_token and end_token. transformers 5 would match them in
        # text, where the published tokenizer treats "[gMASK]" and "<eop>" as plain text.
        kwargs = {key: value for key, value in kwargs.items() if not key.endswith("_token")}
        kwargs.pop("model_specific_special_tokens", None)
        super().__init__(
            do_lower_case=do_lower_case,
            remove_space=remove_space,
            padding_side=padding_side,
            num_image_tokens=num_image_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **special,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        return self.num_image_tokens + self.vocabulary.pieces.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        return {self._convert_id_to_token(index): index for index in range(self.vocab_size)}

    def _tokenize(self, text, **kwargs):
        return self.vocabulary.tokenize(text)

    def _convert_token_to_id(self, token):
        if image := _IMAGE_TOKEN.fullmatch(token):
            return int(image[1])
        return self.vocabulary.pieces.piece_to_id(token) + self.num_image_tokens

    def _convert_id_to_token(self, index):
        if index < self.num_image_tokens:
            return f"<image_{index}>"
        if index >= self.vocab_size:  # ids of the model's padded vocabulary; the published tokenizer raises
            return str(self.unk_token)
        return self.vocabulary.pieces.id_to_piece(index - self.num_image_tokens)

    def convert_tokens_to_string(self, tokens):
        pieces = [token for token in tokens if not _IMAGE_TOKEN.fullmatch(token)]
        return self.vocabulary.detokenize(pieces)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        """Return ``context [gMASK] <sop>``, followed by ``answer <eop>`` if there is an answer.

        A context that already contains a mask token keeps it, and ends with ``</s>`` if the mask is not its last token
        (published behaviour).
        """
        mask_ids = {self.mask_token_id, self.gmask_token_id}
        context = list(token_ids_0)
        if not mask_ids.intersection(context):
            context.append(self.gmask_token_id)
        if context[-1] not in mask_ids:
            context.append(self.end_token_id)
        context.append(self.sop_token_id)
        if token_ids_1 is None:
            return context
        answer = list(token_ids_1)
        return context + (answer if answer[-1:] == [self.eop_token_id] else [*answer, self.eop_token_id])

    def save_vocabulary(self, save_directory, filename_prefix=None):
        name = f"{filename_prefix}-{VOCAB_FILE}" if filename_prefix else VOCAB_FILE
        target = Path(save_directory) / name
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


def _infer_num_image_tokens(vocab_file: str) -> int:
    config = Path(vocab_file).with_name("config.json")
    if not config.is_file():
        return 0
    return image_tokens_of(json.loads(config.read_text(encoding="utf-8")).get("vocab_size", 0))
