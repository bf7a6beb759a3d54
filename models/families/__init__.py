"""Families of base models, and which family a checkpoint belongs to.

=================  =============================================================================
``chatglm-6b``     ChatGLM-6B, with its own model class (:mod:`models.families.chatglm_6b`)
``chatglm2-6b``    in transformers' Glm (:mod:`models.families.chatglm_successors`)
``chatglm3-6b``    the same, with tokens for roles
``chat-template``  models of transformers with their own chat template, such as GLM-4, Qwen3 and Llama
                   (:mod:`models.families.chat_template`); ``chat-template-thinking`` with thinking
=================  =============================================================================
"""

from pathlib import Path

from models import schemas
from models.base_model import CONFIG, Base
from models.errors import UserError
from models.families.chat_template import ChatTemplateFamily, ThinkingTemplateFamily
from models.families.chatglm_6b import ChatGLM6BFamily
from models.families.chatglm_successors import ChatGLM2Family, ChatGLM3Family
from models.families.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        ChatGLM6BFamily(),
        ChatGLM2Family(),
        ChatGLM3Family(),
        ChatTemplateFamily(),
        ThinkingTemplateFamily(),
    )
}
SUCCESSOR_VOCABULARY = 65_024  # rows of the embedding of ChatGLM2-6B and ChatGLM3-6B
FAMILY_FILE = "family.json"  # in tokenizer folders: the family's name


def family_of(base: Base) -> Family:
    """Return the family that the record of a base model names."""
    return FAMILIES[base.family]


def family_of_config(config) -> Family:
    """Return a family with the architecture of a loaded configuration; its prompt may be that of another family."""
    return FAMILIES[ChatGLM6BFamily.name if config.model_type == "chatglm" else ChatTemplateFamily.name]


def recognize_family(folder: Path, name: str = "auto") -> Family:
    """Return the family of a checkpoint folder, or of one that has a tokenizer only.

    Args:
        name: of the family, or ``auto``.

    Raises:
        UserError: the configuration is damaged, or its model is unknown or cannot be told from others.
    """
    if name != "auto":
        return FAMILIES[name]
    path = folder / CONFIG
    if path.is_file():
        return _recognize_config(schemas.parse_json(schemas.read_small_file(path), path), path)
    template = FAMILIES[ChatTemplateFamily.name]
    is_template = (folder / template.vocabulary_file).is_file()
    return template if is_template else FAMILIES[ChatGLM6BFamily.name]


def recognize_tokenizer(folder: Path) -> Family:
    """Return the family of a folder that stage tokenizer wrote, or of a checkpoint folder.

    Raises:
        UserError: see :func:`recognize_family`.
    """
    path = folder / FAMILY_FILE
    if not path.is_file():
        return recognize_family(folder)
    content = schemas.parse_json(schemas.read_small_file(path), path)
    return FAMILIES[schemas.validate_schema(schemas.FamilyFile, content, path).family]


def _recognize_config(content: dict, path: Path) -> Family:
    model_type = content.get("model_type")
    if model_type != "chatglm":
        if not isinstance(model_type, str) or "quantization_config" in content:
            raise UserError(f"{path} names no model_type that Tuneline can load, or weights that are quantized.")
        return FAMILIES[ChatTemplateFamily.name]
    if not any(key in content for key in schemas.SUCCESSOR_KEYS):
        return FAMILIES[ChatGLM6BFamily.name]
    if content.get("padded_vocab_size", SUCCESSOR_VOCABULARY) != SUCCESSOR_VOCABULARY:
        raise UserError(
            f"{path} has the original layout of GLM-4. Use the checkpoint in the layout of transformers, whose name "
            "ends with -hf, such as zai-org/glm-4-9b-chat-hf."
        )
    published = Path(str(content.get("_name_or_path", "")).lower()).name
    named = [family for family in (ChatGLM2Family, ChatGLM3Family) if family.name.removesuffix("-6b") in published]
    if len(named) == 1:
        return FAMILIES[named[0].name]
    raise UserError(
        f"{path} is that of ChatGLM2-6B or of ChatGLM3-6B, and _name_or_path does not say which. Set base.family in "
        f"params.yaml to {ChatGLM2Family.name} or {ChatGLM3Family.name}."
    )
