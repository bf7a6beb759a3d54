"""Estimate of a training run's peak memory, made before anything loads.

The estimate counts what the forward pass keeps for the backward pass. A layer keeps these elements per token:

- what the family's blocks keep, see :meth:`models.families.family.Family.kept_activations`;
- LoRA: the input of each adapted layer, unless it is kept anyway, and once more after dropout;
- 8-bit layers: their inputs, which bitsandbytes keeps.

With gradient checkpointing a layer keeps h, and everything above is kept for one layer at a time.
``benchmarks/results/training.json`` compares the estimate with measurements; tests allow 15 %.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from models.families import family_of_config
from models.linear_loss import CHUNK

GIB = 2**30
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ADAM = 16  # bytes per trained parameter: float32 weight, gradient and both moments
WORKSPACE = GIB / 4  # of cuBLAS and Triton, and rounding of the allocator
INTERPRETER = 0.45 * GIB  # Python with torch, transformers and peft, if the device is the CPU


@dataclass(frozen=True)
class TrainingSpec:
    """Properties of a training run that determine its memory.

    Attributes:
        method, attachment: see :func:`models.adapters.attach_adapter`.
        dtype: of the base.
        rows, length: rows per step on a device, and tokens per row.
        labelled: maximum number of labelled tokens per step.
        quantization: bits of the base's linear layers, or None.
        fp8: frozen layers in fp8.
        packed: rows of several samples. On a GPU their blocks are compiled, and attention needs no L × L mask.
        gpu: False if the device is the CPU, whose memory the interpreter shares.
        shards: devices across which weights and optimizer state are sharded.
    """

    config: Any
    method: str
    attachment: dict
    dtype: str
    rows: int
    length: int
    labelled: int
    quantization: int | None = None
    fp8: bool = False
    gradient_checkpointing: bool = False
    packed: bool = False
    gpu: bool = True
    shards: int = 1

    @cached_property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of a block's linear layers."""
        return family_of_config(self.config).linear_shapes(self.config)

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def inner_size(self) -> int:
        return self.config.intermediate_size

    @property
    def is_compiled(self) -> bool:
        return self.packed and self.gpu and self.quantization != 8

    @property
    def num_tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of a device in bytes.

    Attributes:
        weights: of the base.
        trained: trained weights with gradients and optimizer state.
        activations: kept by the forward pass for the backward pass.
        working: largest temporary memory in addition.
    """

    weights: float
    trained: float
    activations: float
    working: float

    @property
    def total(self) -> float:
        return self.weights + self.trained + self.activations + self.working

    def __str__(self) -> str:
        parts = (("base", self.weights), ("trained", self.trained))
        parts += (("activations", self.activations), ("working space", self.working))
        return f"{self.total / GIB:.1f} GiB ({', '.join(f'{name} {size / GIB:.1f}' for name, size in parts)})"


def estimate(spec: TrainingSpec) -> MemoryEstimate:
    """Return the estimated peak memory of a training run."""
    config, size = spec.config, BYTES[spec.dtype]
    linear = sum(outputs * inputs for outputs, inputs in spec.linear_shapes.values())
    vocabulary = 2 * config.vocab_size * config.hidden_size
    full = spec.method == "full"
    num_trained = spec.num_layers * linear + vocabulary if full else _num_adapter_parameters(spec)
    weights = spec.num_layers * linear * _bytes_per_linear_weight(spec) + vocabulary * size
    if full:
        # float32 weights count as trained. Autocast keeps a half-precision copy of them; FSDP does not.
        weights = num_trained * size if size < 4 and spec.shards == 1 else 0
    gathered = (2 * linear + vocabulary) * size if spec.shards > 1 else 0  # two blocks, and embedding with head
    activations = _activations(spec) + (_layer_activations(spec) if spec.gradient_checkpointing else 0)
    return MemoryEstimate(
        weights=weights / spec.shards + gathered + (0 if spec.gpu else INTERPRETER),
        trained=num_trained * ADAM / spec.shards,
        activations=activations,
        working=max(_loss_memory(spec), _backward_memory(spec)) + WORKSPACE,
    )


def list_alternatives(spec: TrainingSpec) -> Iterator[tuple[str, str, TrainingSpec]]:
    """Yield settings that train nearly the same with less memory, the least intrusive first.

    Yields:
        Kind of the change (``checkpointing``, ``batch`` or ``quantization``), settings, and the spec with them.
    """
    if not spec.gradient_checkpointing:
        yield "checkpointing", "gradient_checkpointing: true", replace(spec, gradient_checkpointing=True)
    divisors = [parts for parts in range(2, spec.rows + 1) if spec.rows % parts == 0]
    for checkpointing in sorted({spec.gradient_checkpointing, True}):
        for parts in divisors:
            rows, labelled = spec.rows // parts, spec.labelled // parts
            settings = f"batch_size: {rows} with {parts} times the gradient_accumulation"
            if checkpointing and not spec.gradient_checkpointing:
                settings += " and gradient_checkpointing: true"
            yield "batch", settings, replace(spec, rows=rows, labelled=labelled, gradient_checkpointing=checkpointing)
    if spec.method != "full" and spec.quantization is None and not spec.fp8:
        quantized = replace(spec, quantization=4)
        yield "quantization", "quantization: 4", quantized
        yield (
            "quantization",
            "quantization: 4 and gradient_checkpointing: true",
            replace(quantized, gradient_checkpointing=True),
        )
        one_row = replace(quantized, gradient_checkpointing=True, rows=1, labelled=-(-spec.labelled // spec.rows))
        yield "quantization", "quantization: 4, gradient_checkpointing: true and batch_size: 1", one_row


def explain_misfit(spec: TrainingSpec, free_bytes: float) -> str | None:
    """Return None if a training run fits into ``free_bytes``, else a message with up to two settings that fit."""
    needed = estimate(spec)
    if needed.total <= free_bytes:
        return None
    fitting: dict[str, str] = {}  # by kind, the first that fits
    for kind, settings, alternative in list_alternatives(spec):
        if (total := estimate(alternative).total) <= free_bytes:
            fitting.setdefault(kind, f"{settings} ({total / GIB:.1f} GiB)")
    advice = "No setting fits; use a device with more memory."
    if fitting:
        advice = f"These settings fit: {'; or '.join([*fitting.values()][:2])}."
    return f"It needs {needed}, and {free_bytes / GIB:.1f} GiB are free. {advice}"


# Parts ---------------------------------------------------------------------------------------------


def _bytes_per_linear_weight(spec: TrainingSpec) -> float:
    """NF4 has a float32 scale per 64 weights; fp8 weights are stored twice, scaled by rows and by columns."""
    if spec.fp8:
        return 2
    return {None: BYTES[spec.dtype], 8: 1, 4: 0.5 + 4 / 64}[spec.quantization]


def _num_adapter_parameters(spec: TrainingSpec) -> int:
    config, attachment = spec.config, spec.attachment
    if spec.method == "lora":
        shapes = spec.linear_shapes
        return spec.num_layers * attachment["rank"] * sum(sum(shapes[name]) for name in attachment["target_modules"])
    keys_and_values = family_of_config(config).prefix_shape(config).width
    prefix_tokens = attachment["prefix_tokens"]
    if not attachment.get("projection"):
        return prefix_tokens * keys_and_values
    return prefix_tokens * config.hidden_size + config.hidden_size**2 + config.hidden_size * keys_and_values


def _activations(spec: TrainingSpec) -> float:
    config, size = spec.config, BYTES[spec.dtype]
    mask = 0 if spec.is_compiled else spec.rows * spec.length**2 * (1 + size)
    layer = spec.num_tokens * config.hidden_size * size if spec.gradient_checkpointing else _layer_activations(spec)
    return spec.num_layers * layer + mask


def _layer_activations(spec: TrainingSpec) -> float:
    family, size = family_of_config(spec.config), BYTES[spec.dtype]
    kept = family.kept_activations(spec.config, spec.is_compiled)
    elements, inputs = kept.in_dtype, {name: shape[1] for name, shape in spec.linear_shapes.items()}
    dropout_mask_bytes = 0
    if spec.method == "lora":
        targets, has_dropout = spec.attachment["target_modules"], bool(spec.attachment.get("dropout"))
        elements += family.kept_inputs(spec.config, targets, spec.is_compiled, has_dropout)
        if has_dropout:
            dropout_mask_bytes = sum(inputs[name] for name in targets) * (1 if spec.gpu else size)
    if spec.method == "full" or spec.quantization == 8:
        elements += sum(inputs.values())
    return spec.num_tokens * (elements * size + kept.in_float32 * 4 + dropout_mask_bytes)


def _loss_memory(spec: TrainingSpec) -> float:
    """Logits of a chunk with their gradient, and hidden states of all tokens and of the labelled ones."""
    config, size = spec.config, BYTES[spec.dtype]
    states = 2 * (spec.num_tokens + spec.labelled) * config.hidden_size * size
    if spec.method == "full":
        return spec.labelled * config.vocab_size * (size + 3 * 4) + states
    chunk = min(CHUNK, spec.labelled)
    return chunk * config.vocab_size * (2 * size if spec.gpu else size + 3 * 4) + states


def _backward_memory(spec: TrainingSpec) -> float:
    """Gradients around a block's MLP, and the dequantized weight of its widest layer."""
    config, size = spec.config, BYTES[spec.dtype]
    widest_weight = config.hidden_size * spec.inner_size * size
    gradients = spec.num_tokens * (2 * spec.inner_size + 2 * config.hidden_size) * size
    return gradients + (widest_weight if spec.quantization else 0)
