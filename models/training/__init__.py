"""Fitting a model to encoded rows with transformers' Trainer.

Used for the tiny base model, where every weight is trained, and for adapters, where the base is
frozen. The loop is transformers' own; what stands here feeds it, listens to it, and lets it be killed.
"""

from models.training.batches import RightPadding
from models.training.callbacks import Diverged, Stopped
from models.training.compiling import compile_blocks
from models.training.devices import peak_memory_gib
from models.training.fit import Fitted, Settings, fit
from models.training.trainer import put_trained, trained_whole

__all__ = [
    "Diverged",
    "Fitted",
    "RightPadding",
    "Settings",
    "Stopped",
    "compile_blocks",
    "fit",
    "peak_memory_gib",
    "put_trained",
    "trained_whole",
]
