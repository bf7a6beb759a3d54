"""Attach, save and load adapters; the only place that knows peft.

An adapter folder holds peft's two files and ``manifest.json``, which says what the adapter is and
what it belongs to. Whoever loads an adapter checks the manifest first.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from models.base import Base, load_model
from models.errors import UserError
from models.prompt import PROMPT_VERSION
from models.storage import read_json, sha256_of, write_json, writing_folder

MANIFEST = "manifest.json"
WEIGHTS = "adapter_model.safetensors"
METHODS = ("lora", "ptuning_v2")


@dataclass(frozen=True)
class Manifest:
    """What an adapter is and what it belongs to.

    Attributes:
        name: its key under ``adapters:`` in params.yaml.
        method: ``lora`` or ``ptuning_v2``.
        settings: the method's settings and the training's.
        base, base_identity: the base model's name and :attr:`models.base.Base.identity`.
        tokenizer_sha256: of the base's ``ice_text.model``.
        prompt_version: :data:`models.prompt.PROMPT_VERSION` at training time.
        quantization: bits of the base at training time, or None.
        dtype: the base's type at training time.
        receipt_sha256: of the receipt of the data trained on.
        code_commit: git commit of the code, with ``+`` if the tree was dirty, or None.
        training: summary of the run.
        weights_sha256: of the adapter's weights; filled in when saving.
    """

    name: str
    method: str
    settings: dict
    base: str
    base_identity: str
    tokenizer_sha256: str
    prompt_version: str
    quantization: int | None
    dtype: str
    receipt_sha256: str
    code_commit: str | None
    training: dict
    weights_sha256: str = ""
    format: int = field(default=1)


def attach(
    model,
    method: str,
    *,
    rank: int | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: list[str] | None = None,
    prefix_tokens: int | None = None,
    projection: bool = False,
):
    """Wrap a frozen ChatGLM in a fresh adapter, whose weights alone require gradients.

    Args:
        method: ``lora`` or ``ptuning_v2``.
        rank, alpha, dropout, target_modules: LoRA's (Hu et al., arXiv:2106.09685).
        prefix_tokens, projection: of P-Tuning v2 (Liu et al., arXiv:2110.07602), which peft calls
            prefix tuning; ``projection`` puts a two-layer MLP before the prefix. Unlike the
            published code, peft has no dropout on the prefix.

    Returns:
        A PeftModel in training mode.

    Raises:
        UserError: a target module does not exist.
    """
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    if method == "lora":
        config = LoraConfig(
            task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=target_modules
        )
    elif method == "ptuning_v2":
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=prefix_tokens,
            prefix_projection=projection,
            encoder_hidden_size=model.config.hidden_size,
        )
    else:
        raise UserError(f"Unknown adapter method {method!r}; choose one of {', '.join(METHODS)}.")
    try:
        tuned = get_peft_model(model, config).train()
    except ValueError as error:
        raise UserError(f"The adapter cannot be attached: {str(error).splitlines()[0]}") from None
    _compute_in_the_type_of_the_base(tuned)
    return tuned


def _compute_in_the_type_of_the_base(tuned) -> None:
    """Keep LoRA's own weights in float32, but not the products with them: see :class:`Float32Weight`."""
    from peft.tuners.lora import LoraLayer
    from torch import nn

    from models.precision import Float32Weight

    for layer in tuned.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                if type(part) is nn.Linear:
                    part.__class__ = Float32Weight


def save(model, folder: Path, manifest: Manifest) -> None:
    """Write the adapter's weights, configuration and manifest; the folder is whole or absent."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = manifest.base  # not this machine's path to it
    with writing_folder(folder) as temporary:
        # No adapter here trains embeddings; left to itself, peft would ask the hub whether the base's changed.
        model.save_pretrained(temporary, safe_serialization=True, save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # peft's empty model card; the manifest says more
        content = asdict(manifest) | {"weights_sha256": sha256_of(temporary / WEIGHTS)}
        write_json(temporary / MANIFEST, content)


def read_manifest(folder: Path) -> Manifest:
    """Read an adapter's manifest.

    Raises:
        UserError: there is no adapter, or its manifest or weights are damaged.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"There is no adapter in {folder}; run `dvc repro` to train it.")
    try:
        manifest = Manifest(**read_json(folder / MANIFEST))
    except TypeError as error:
        raise UserError(f"{folder / MANIFEST} is not a manifest of this version ({error}).") from None
    if not (folder / WEIGHTS).is_file() or sha256_of(folder / WEIGHTS) != manifest.weights_sha256:
        raise UserError(f"{folder / WEIGHTS} is not the file that the manifest describes; train the adapter again.")
    return manifest


def check(manifest: Manifest, base: Base, folder: Path) -> None:
    """Refuse an adapter that does not belong to this base.

    Raises:
        UserError: base, tokenizer or prompt differ from those of the training.
    """
    expected = {
        "base model": (manifest.base_identity[:12], base.identity[:12]),
        "tokenizer": (manifest.tokenizer_sha256[:12], base.tokenizer_sha256[:12]),
        "prompt version": (manifest.prompt_version, PROMPT_VERSION),
    }
    for what, (trained, given) in expected.items():
        if trained != given:
            raise UserError(
                f"The adapter in {folder} was trained on {manifest.base!r} with {what} {trained}, but the {what} of "
                f"{base.name!r} is {given}. Load it with the base it was trained on, or train it again."
            )


def load(folder: Path, base: Base):
    """A saved adapter on its base, loaded as it was trained, in evaluation mode.

    The manifest is checked first: a mismatch is told before gigabytes are read.

    Raises:
        UserError: see :func:`read_manifest`, :func:`check` and :func:`models.base.load_model`.
    """
    from peft import PeftModel

    manifest = read_manifest(folder)
    check(manifest, base, folder)
    model = load_model(base, manifest.dtype, manifest.quantization)
    tuned = PeftModel.from_pretrained(model, folder).eval()
    _compute_in_the_type_of_the_base(tuned)
    return tuned
