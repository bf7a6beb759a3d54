"""Fitting a model to encoded rows with transformers' Trainer.

Used for the tiny base model, where every weight is trained, and for adapters, where the base is
frozen. The loop is transformers' own; what stands here feeds it, listens to it, and lets it be killed.
"""

from models.training.batches import PaddingCollator
from models.training.callbacks import Diverged, Stopped
from models.training.compiling import compile_blocks
from models.training.devices import peak_memory_gib
from models.training.fit import TrainResult, TrainConfig, fit
from models.training.trainer import load_trainable_state_dict, trainable_state_dict

__all__ = [
    "Diverged",
    "TrainResult",
    "PaddingCollator",
    "TrainConfig",
    "Stopped",
    "compile_blocks",
    "fit",
    "peak_memory_gib",
    "load_trainable_state_dict",
    "trainable_state_dict",
]
