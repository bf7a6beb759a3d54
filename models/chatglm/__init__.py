"""ChatGLM-6B for transformers 5. Importing this package registers it with the Auto classes.

``from_pretrained`` then loads official checkpoints without ``trust_remote_code``, and never runs code of a checkpoint.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from models.chatglm.configuration_chatglm import ChatGLMConfig
from models.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration, ChatGLMModel
from models.chatglm.tokenization_chatglm import ChatGLMTokenizer

AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig, exist_ok=True)
# The published config.json maps AutoModel and AutoModelForSeq2SeqLM to the class with the head.
for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
    auto_class.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)


class _PlaceholderConfig(ChatGLMConfig):
    """Registers the tokenizer by its class name, which published and saved checkpoints contain.

    If it was registered for ChatGLMConfig itself, AutoTokenizer would prefer the code in a checkpoint wherever a script
    passes ``trust_remote_code``.
    """

    model_type = "chatglm-placeholder"


AutoTokenizer.register(_PlaceholderConfig, tokenizer_class=ChatGLMTokenizer, exist_ok=True)

__all__ = ["ChatGLMConfig", "ChatGLMForConditionalGeneration", "ChatGLMModel", "ChatGLMTokenizer"]
