"""Parameters of training: sections adapters and train of params.yaml."""

import re
from typing import Annotated, Literal

from pydantic import Field

from formats.params_section import Count, Positive, Section, Seed
from models.linear_layers import LinearLayer

CHAMPION = "champion"  # values of start_from, besides folders
CHAMPION_VERSION = re.compile(r"v\d+\.\d+\.\d+")


class Hyperparameters(Section):
    """Training hyperparameters that all methods share."""

    chosen_from: Count = 1
    """Number of parameter sets or seeds that these are the best of; promotion asks for more from the best of many.

    A sweep sets it. A change does not train the adapter again.
    """
    learning_rate: Positive
    """Peak learning rate."""
    epochs: Positive
    """Passes over the training rows; may be fractional."""
    batch_size: Count
    """Rows per device and step; packed rows if ``pack_tokens`` is set."""
    pack_tokens: Annotated[int, Field(ge=128, multiple_of=128, strict=True)] | None = None
    """Pack samples into rows of this many tokens, a multiple of 128; null pads samples instead."""
    gradient_accumulation: Count = 1
    """Steps per optimizer update."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Learning-rate schedule."""
    warmup: Annotated[float, Field(ge=0)] = 0.05
    """Learning-rate warmup: a share of all steps if below 1, otherwise a number of steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradient clipping: norm above which gradients are scaled down."""
    gradient_checkpointing: bool = False
    """Gradient checkpointing: recompute activations in the backward pass, with less memory and more time."""
    quantization: Literal[4, 8] | None = None
    """Bits per weight of the frozen base: 4 (NF4), 8 (LLM.int8()), or null for ``base.dtype``."""
    start_from: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Adapter whose weights training starts from: ``champion``, an earlier version such as ``v2.0.0``, or a folder.

    Null starts from new weights. Retraining and sweeps work in a clone of the project, so that a folder outside the
    repository needs an absolute path.
    """


class Lora(Hyperparameters):
    """LoRA: trainable low-rank matrices beside frozen linear layers (Hu et al., arXiv:2106.09685)."""

    method: Literal["lora"]
    """``lora``."""
    rank: Count
    """Rank of the low-rank matrices."""
    alpha: Positive
    """Scaling numerator: updates are multiplied by alpha / rank, or alpha / √rank with ``rslora``."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability at the input of the low-rank matrices."""
    target_modules: Annotated[tuple[LinearLayer, ...], Field(min_length=1)] = ("query_key_value",)
    """Linear layers of every block that get low-rank matrices.

    The names of ChatGLM-6B stand for the layers with the same role in other models: ``query_key_value`` for q_proj,
    k_proj and v_proj, ``dense`` for o_proj, ``dense_h_to_4h`` for gate_proj and up_proj, ``dense_4h_to_h`` for
    down_proj.
    """
    rslora: bool = False
    """Rank-stabilized scaling alpha / √rank (Kalajdzievski, arXiv:2312.03732)."""
    dora: bool = False
    """Weight-decomposed LoRA (Liu et al., arXiv:2402.09353)."""

    def attachment(self) -> dict:
        """Return the arguments of ``models.adapters.attach_adapter``."""
        names = ("rank", "alpha", "dropout", "rslora", "dora")
        return {name: getattr(self, name) for name in names} | {"target_modules": list(self.target_modules)}


class PTuningV2(Hyperparameters):
    """P-Tuning v2: a trainable key-value prefix in every layer (Liu et al., arXiv:2110.07602)."""

    method: Literal["ptuning_v2"]
    """``ptuning_v2``."""
    prefix_tokens: Count
    """Length of the prefix in tokens."""
    projection: bool = False
    """Compute the prefix with a two-layer MLP."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability on the prefix; 0.1 in the published training code."""

    def attachment(self) -> dict:
        """Return the arguments of ``models.adapters.attach_adapter``."""
        return {name: getattr(self, name) for name in ("prefix_tokens", "projection", "dropout")}


class Full(Hyperparameters):
    """Full fine-tuning: every weight of the base is trained, in float32."""

    method: Literal["full"]
    """``full``."""
    quantization: None = None
    """Not available: quantized weights are frozen."""

    def attachment(self) -> dict:
        """Return the arguments of ``models.adapters.attach_adapter``."""
        return {}


Adapter = Annotated[Lora | PTuningV2 | Full, Field(discriminator="method")]
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Train(Section):
    """Training settings that all adapters share."""

    seed: Seed = 42
    """Seed of adapter initialization, data order, dropout and replay."""
    precision: Literal["base", "fp8"] = "base"
    """Data type of the frozen linear layers: ``base`` for ``base.dtype``, or ``fp8``.

    FP8 needs compute capability 8.9 or higher and a 16-bit ``base.dtype``.
    """
    devices: Count = 1
    """GPUs of this host; one process each. The effective batch size grows with them."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """``ddp`` replicates the model on every device; ``fsdp`` shards weights, gradients and optimizer state."""
    evaluations: Annotated[int, Field(ge=2)] = 10
    """Evaluations of the evaluation loss during training, evenly spaced; one checkpoint is saved per evaluation."""
    logs: Count = 200
    """Minimum number of points of the training-loss curve."""
    keep: Literal["best", "last"] = "best"
    """Weights that become the adapter: those of the lowest evaluation loss, or the last."""
    patience: Count | None = None
    """Early stopping: evaluations without a lower evaluation loss before training ends; null disables it."""
    learn: Literal["all", "last"] = "all"
    """Answers of a conversation that are learnt: ``all`` or the ``last`` one, except those with a loss flag of 0."""
    replay: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of general conversations among the training rows, against forgetting; from 0 to 0.9."""
    report_to: tuple[Literal["tensorboard", "mlflow", "swanlab", "wandb"], ...] = ()
    """Experiment trackers that get the losses, beside DVCLive; each is a package to install, and none is the default.

    Where they send their data is set by their own environment variables.
    """
