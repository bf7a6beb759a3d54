"""ChatGLM-6B for transformers 5. Importing this package registers it with the Auto classes.

Afterwards ``from_pretrained`` on an official checkpoint needs no ``trust_remote_code`` and never
runs code that came with the checkpoint.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from models.chatglm.configuration_chatglm import ChatGLMConfig
from models.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration, ChatGLMModel
from models.chatglm.tokenization_chatglm import ChatGLMTokenizer

AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig, exist_ok=True)
# The published config.json maps AutoModel and AutoModelForSeq2SeqLM to the class with the head.
for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
    auto_class.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)


class _ByNameAlone(ChatGLMConfig):
    """Registers the tokenizer by its name, which both published and saved checkpoints give.

    Were it registered for ChatGLMConfig itself, AutoTokenizer would prefer the code in a checkpoint
    to ours wherever an old script says that it trusts remote code.
    """

    model_type = "chatglm-by-name-alone"


AutoTokenizer.register(_ByNameAlone, tokenizer_class=ChatGLMTokenizer, exist_ok=True)

__all__ = ["ChatGLMConfig", "ChatGLMForConditionalGeneration", "ChatGLMModel", "ChatGLMTokenizer"]
