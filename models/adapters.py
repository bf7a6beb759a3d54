"""Attach, save and load adapters; the only place that knows peft.

An adapter folder holds peft's two files and ``manifest.json``, which says what the adapter is and
what it belongs to. Whoever loads an adapter checks the manifest first.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from models.base import Base, load_model
from models.errors import UserError
from models.prompt import PROMPT_VERSION
from models.storage import read_json, sha256_of, write_json, writing_folder

MANIFEST = "manifest.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX_ROWS = "prompt_embeddings"  # what peft calls a prefix in its file
METHODS = ("lora", "ptuning_v2", "full")


@dataclass(frozen=True)
class Manifest:
    """What an adapter is and what it belongs to.

    Attributes:
        name: its key under ``adapters:`` in params.yaml.
        method: ``lora``, ``ptuning_v2`` or ``full``, which is no adapter but all the weights.
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
    rslora: bool = False,
    dora: bool = False,
    prefix_tokens: int | None = None,
    projection: bool = False,
):
    """Wrap a frozen ChatGLM in a fresh adapter, whose weights alone require gradients.

    Args:
        method: ``lora``, ``ptuning_v2``, or ``full`` for the model itself, with gradients for all its weights.
        rank, alpha, dropout, target_modules: LoRA's (Hu et al., arXiv:2106.09685).
        rslora, dora: LoRA scaled by the square root of its rank (Kalajdzievski, arXiv:2312.03732), and with
            magnitude and direction apart (Liu et al., arXiv:2402.09353).
        prefix_tokens, projection: of P-Tuning v2 (Liu et al., arXiv:2110.07602), which peft calls
            prefix tuning; ``projection`` puts a two-layer MLP before the prefix. Unlike the
            published code, peft has no dropout on the prefix.

    Returns:
        A PeftModel, or the model, in training mode.

    Raises:
        UserError: a target module does not exist.
    """
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    if method == "full":
        return model.requires_grad_(True).train()
    if method == "lora":
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=target_modules,
            use_rslora=rslora,
            use_dora=dora,
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
    from peft.tuners.lora import Linear, LoraLayer
    from torch import nn

    from models.precision import Float32Weight

    for layer in tuned.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                if type(part) is nn.Linear:
                    part.__class__ = Float32Weight
            if type(layer) is Linear:
                layer.__class__ = _scaled_early()


@cache
def _scaled_early():
    """peft's plain LoRA layer, multiplying by its scaling where its input has been narrowed to the rank.

    peft multiplies the output, as wide as the base's, and in the backward pass the gradient of that. The product
    is added to a plain base layer's in place, see :mod:`models.low_rank`.
    """
    from peft.tuners.lora.layer import Linear

    from models import low_rank

    class ScaledEarly(Linear):
        def forward(self, x, *args, **kwargs):
            plain = [name for name in self.active_adapters if name in self.lora_A and name not in self.lora_variant]
            if self.merged or self.disable_adapters or args or kwargs or plain != list(self.active_adapters):
                return super().forward(x, *args, **kwargs)
            layer = self.base_layer
            if len(plain) == 1 and low_rank.fits(layer, x):
                narrow = self._narrow(plain[0], x)
                wide = self.lora_B[plain[0]].matrix(narrow)
                return low_rank.linear_plus_product(x, layer.weight, layer.bias, narrow, wide)
            result = layer(x)
            for name in plain:
                result = result + self.lora_B[name](self._narrow(name, x))
            return result

        def _narrow(self, name, x):
            return self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]

    return ScaledEarly


def parameters(model) -> tuple[int, int]:
    """How many parameters are trained, and how many there are; quantized ones count as what they stand for."""
    if hasattr(model, "get_base_model"):
        return model.get_nb_trainable_parameters()
    return model.num_parameters(only_trainable=True), model.num_parameters()


def base_of(model):
    """The ChatGLM below an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def without_adapter(model):
    """A context in which an adapted model answers as its base; None for a model without an adapter."""
    return model.disable_adapter() if hasattr(model, "get_base_model") else None


def save(model, folder: Path, manifest: Manifest, check: Callable[[Path], None] | None = None) -> None:
    """Write the adapter's weights, configuration and manifest; the folder is whole or absent.

    Args:
        check: called with the folder under its temporary name; if it raises, nothing is left.
    """
    with writing_folder(folder) as temporary:
        if manifest.method == "full":
            _save_all_weights(model, temporary, manifest.dtype)
        else:
            _save_adapter(model, temporary, manifest.base)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors keeps what it writes from other users
        if check is not None:
            check(temporary)
        content = asdict(manifest) | {"weights_sha256": sha256_of(temporary / WEIGHTS)}
        write_json(temporary / MANIFEST, content)


def _save_adapter(model, folder: Path, base_name: str) -> None:
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_name  # not this machine's path to it
    # No adapter here trains embeddings; left to itself, peft would ask the hub whether the base's changed.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card; the manifest says more


def _save_all_weights(model, folder: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    save_file({name: each.to(kind).contiguous() for name, each in model.state_dict().items()}, folder / WEIGHTS)


@contextmanager
def reloaded(model, folder: Path):
    """The model with the adapter that lies in ``folder`` in place of its own.

    Where all weights are trained the model keeps those from the disk, as memory for two is rarely there.
    """
    if not hasattr(model, "get_base_model"):
        _load_all_weights(model, folder)
        yield model
        return
    own = model.active_adapter
    device = base_of(model).device
    model.load_adapter(folder, "reloaded", torch_device=str(device))
    for name, parameter in model.named_parameters():
        if ".reloaded." in name:
            parameter.data = parameter.data.to(device)  # peft leaves it where it was beside layers in fp8
    model.set_adapter("reloaded")
    _compute_in_the_type_of_the_base(model)
    try:
        yield model
    finally:
        model.set_adapter(own)
        model.delete_adapter("reloaded")


def _load_all_weights(model, folder: Path) -> None:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(folder / WEIGHTS))


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


def merged(folder: Path, base: Base):
    """The base with a saved adapter in its weights, in the type and precision that it was trained beside.

    Raises:
        UserError: see :func:`load`.
    """
    from peft import PeftModel

    manifest = read_manifest(folder)
    check(manifest, base, folder)
    model = load_model(base, manifest.dtype)
    if manifest.method == "full":
        _load_all_weights(model, folder)
        return model
    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def put_prefix(tuned, rows) -> None:
    """Make (prefix tokens, 2 · layers · hidden_size) rows the prefix of a model with one."""
    import torch

    with torch.no_grad():
        tuned.prompt_encoder[tuned.active_adapter].embedding.weight.copy_(rows)


AS_TRAINED = "as trained"


def load(folder: Path, base: Base, quantization: int | str | None = AS_TRAINED):
    """A saved adapter on its base, in evaluation mode.

    The manifest is checked first: a mismatch is told before gigabytes are read.

    Args:
        quantization: 4 or 8 bits for the base, None for none; by default those of the training.

    Raises:
        UserError: see :func:`read_manifest`, :func:`check` and :func:`models.base.load_model`.
    """
    from peft import PeftModel

    manifest = read_manifest(folder)
    check(manifest, base, folder)
    model = load_model(base, manifest.dtype, manifest.quantization if quantization == AS_TRAINED else quantization)
    if manifest.method == "full":
        _load_all_weights(model, folder)
        return model
    tuned = PeftModel.from_pretrained(model, folder).eval()
    _compute_in_the_type_of_the_base(tuned)
    if not manifest.settings.get("dora"):
        for name, parameter in tuned.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:  # products take them so; turned once, not for every token
                parameter.data = parameter.data.to(model.dtype)
    return tuned
