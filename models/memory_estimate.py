"""How much memory a training will take, told before anything loads.

Counted from what the forward pass keeps for the backward pass, with B rows of L places, h channels, i inner
channels, in elements a place and layer:

- the inputs of both layer norms, 2h, the output of attention, h, and the MLP before its GELU, i;
- query, key and value, 3h; without compiled blocks 5h, as the value is a view that keeps all three alive;
- what LoRA multiplies: the input of each of its layers, unless it is kept anyway, and again after a dropout;
- the inputs of 8-bit layers, which bitsandbytes keeps.

With checkpointing it is h a layer, and all that for one layer at a time. Compared with measurements in
``benchmarks/results/training.json``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from models.chatglm.configuration_chatglm import ChatGLMConfig
from models.chatglm.loss import CHUNK

GIB = 2**30
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ADAM = 16  # bytes a trained parameter: float32 weight, gradient and both moments
WORKSPACE = GIB / 4  # of cuBLAS and Triton, and the allocator's rounding
INTERPRETER = 0.45 * GIB  # Python with torch, transformers and peft, where memory is the machine's own


@dataclass(frozen=True)
class Training:
    """What decides its memory.

    Attributes:
        method, attachment: as for :func:`models.adapters.attach`.
        dtype: of the base; ``quantization``: bits of its linear layers, or None; ``fp8``: frozen layers in fp8.
        rows, length: places of a step on a device; ``labelled``: how many of them have a label, at most.
        packed: rows of several samples; on a GPU their blocks are compiled, and attention needs no mask of L × L.
        shards: devices over which weights and optimizer are spread.
        gpu: whether it is not the machine's own memory.
    """

    config: ChatGLMConfig
    method: str
    attachment: dict
    dtype: str
    rows: int
    length: int
    labelled: int
    quantization: int | None = None
    fp8: bool = False
    checkpointing: bool = False
    packed: bool = False
    gpu: bool = True
    shards: int = 1

    @property
    def compiled(self) -> bool:
        return self.packed and self.gpu and self.quantization != 8


@dataclass(frozen=True)
class Plan:
    """Bytes on each device: the base's weights, what is trained with its optimizer, what the forward pass
    keeps, and the largest working space beside all that."""

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


def plan(training: Training) -> Plan:
    """Peak memory of a training by its parts."""
    config, size = training.config, BYTES[training.dtype]
    linear = sum(rows * columns for rows, columns in _linear_layers(config).values())
    vocabulary = 2 * config.vocab_size * config.hidden_size
    full = training.method == "full"
    count = config.num_layers * linear + vocabulary if full else _trained(training)
    weights = config.num_layers * linear * _bytes_of_linear(training) + vocabulary * size
    if full:
        # float32 is among the trained; autocast keeps a copy in half precision beside it, sharding none.
        weights = count * size if size < 4 and training.shards == 1 else 0
    kept, one_layer = _kept(training), _kept_of_a_layer(training)
    gathered = (2 * linear + vocabulary) * size if training.shards > 1 else 0  # two blocks, and what is in none
    return Plan(
        weights=weights / training.shards + gathered + (0 if training.gpu else INTERPRETER),
        trained=count * ADAM / training.shards,
        activations=kept + one_layer if training.checkpointing else kept,
        working=max(_loss(training), _backward(training)) + WORKSPACE,
    )


def alternatives(training: Training) -> Iterator[tuple[str, str, Training]]:
    """Other ways to train nearly the same, by kind, in the order in which one would try them."""
    if not training.checkpointing:
        yield "checkpointing", "gradient_checkpointing: true", replace(training, checkpointing=True)
    divisors = [parts for parts in range(2, training.rows + 1) if training.rows % parts == 0]
    for checkpointing in sorted({training.checkpointing, True}):
        for parts in divisors:
            rows, labelled = training.rows // parts, training.labelled // parts
            how = f"batch_size: {rows} with {parts} times the gradient_accumulation"
            if checkpointing and not training.checkpointing:
                how += " and gradient_checkpointing: true"
            yield "batch", how, replace(training, rows=rows, labelled=labelled, checkpointing=checkpointing)
    if training.method != "full" and training.quantization is None and not training.fp8:
        quantized = replace(training, quantization=4)
        yield "quantization", "quantization: 4", quantized
        yield "quantization", "quantization: 4 and gradient_checkpointing: true", replace(quantized, checkpointing=True)
        single = replace(quantized, checkpointing=True, rows=1, labelled=-(-training.labelled // training.rows))
        yield "quantization", "quantization: 4, gradient_checkpointing: true and batch_size: 1", single


def refusal(training: Training, room: float) -> str | None:
    """None if a training fits into ``room`` bytes, else a sentence with numbers and two ways that would fit."""
    wanted = plan(training)
    if wanted.total <= room:
        return None
    fits: dict[str, str] = {}
    for kind, how, other in alternatives(training):
        if (needed := plan(other).total) <= room:
            fits.setdefault(kind, f"{how} ({needed / GIB:.1f} GiB)")
    advice = f"What fits: {'; or '.join([*fits.values()][:2])}." if fits else "No setting fits; take a larger device."
    return f"It would take {wanted}, and {room / GIB:.1f} GiB are free. {advice}"


# The parts -----------------------------------------------------------------------------------------


def _linear_layers(config: ChatGLMConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a block's linear layers."""
    hidden, inner = config.hidden_size, config.inner_hidden_size
    return {
        "query_key_value": (3 * hidden, hidden),
        "dense": (hidden, hidden),
        "dense_h_to_4h": (inner, hidden),
        "dense_4h_to_h": (hidden, inner),
    }


def _bytes_of_linear(training: Training) -> float:
    """Bytes a weight: NF4 has a float32 scale for 64 values, fp8 is kept for two directions."""
    if training.fp8:
        return 2
    return {None: BYTES[training.dtype], 8: 1, 4: 0.5 + 4 / 64}[training.quantization]


def _trained(training: Training) -> int:
    config, how = training.config, training.attachment
    if training.method == "lora":
        sides = [sum(_linear_layers(config)[name]) for name in how["target_modules"]]
        return config.num_layers * how["rank"] * sum(sides)
    keys_and_values = 2 * config.num_layers * config.hidden_size
    prefix = how["prefix_tokens"]
    if not how.get("projection"):
        return prefix * keys_and_values
    return prefix * config.hidden_size + config.hidden_size**2 + config.hidden_size * keys_and_values


def _places(training: Training) -> int:
    return training.rows * training.length


def _kept(training: Training) -> float:
    config, places = training.config, _places(training)
    mask = 0 if training.compiled else training.rows * training.length**2 * (1 + BYTES[training.dtype])
    of_layers = config.num_layers * _kept_of_a_layer(training)
    if training.checkpointing:
        of_layers = config.num_layers * places * config.hidden_size * BYTES[training.dtype]
    return of_layers + mask


def _kept_of_a_layer(training: Training) -> float:
    hidden, inner, size = training.config.hidden_size, training.config.inner_hidden_size, BYTES[training.dtype]
    elements = 3 * hidden + inner + (3 if training.compiled else 5) * hidden
    inputs = {"query_key_value": hidden, "dense": hidden, "dense_h_to_4h": hidden, "dense_4h_to_h": inner}
    mask_bytes = 0
    if training.method == "lora":
        targets = training.attachment["target_modules"]
        kept_anyway = {"dense"} if training.compiled else set()
        elements += sum(inputs[name] for name in targets if name not in kept_anyway)
        if training.attachment.get("dropout"):
            mask_bytes = sum(inputs[name] for name in targets)
    if training.method == "full" or training.quantization == 8:
        elements += sum(inputs.values())
    return _places(training) * (elements * size + mask_bytes)


def _loss(training: Training) -> float:
    """At the loss: a chunk's logits and their derivative, and hidden states of all places and of the labelled."""
    config, size = training.config, BYTES[training.dtype]
    vocabulary = config.vocab_size
    states = 2 * (_places(training) + training.labelled) * config.hidden_size * size
    if training.method == "full":
        return training.labelled * vocabulary * (size + 3 * 4) + states
    chunk = min(CHUNK, training.labelled)
    return chunk * vocabulary * (2 * size if training.gpu else size + 3 * 4) + states


def _backward(training: Training) -> float:
    """In a block's backward pass: gradients around its MLP, and the layer that is unpacked from its few bits."""
    config, size = training.config, BYTES[training.dtype]
    widest = config.hidden_size * config.inner_hidden_size * size
    gradients = _places(training) * (2 * config.inner_hidden_size + 2 * config.hidden_size) * size
    return gradients + (widest if training.quantization else 0)
