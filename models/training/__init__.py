"""Training with transformers' Trainer on encoded rows.

Trains all weights of the tiny base model, and adapters on a frozen base. The modules,
in the order in which a training run uses them:

========================  ==================================================================================
``train_config``          hyperparameters, and transformers' ``TrainingArguments`` made from them
``batches``               rows to batches: order of an epoch, padding, packing
``compiling``             ``torch.compile`` of the blocks for packed rows on a GPU
``sharding``              FSDP: weights, gradients and optimizer state sharded across devices
``loss_scaling``          GradScaler for float16 gradients
``trainer``               ``AdapterTrainer``: token counts, evaluation loss, checkpoints of trained weights only
``callbacks``             loss history, divergence guard, best weights, early stopping
``checkpointing``         complete checkpoints, resuming, SIGTERM
``devices``               ranks, all-reduce, collective abort, utilization and energy
``fit``                   a complete training run, from rows to fitted weights
========================  ==================================================================================
"""

from models.training.callbacks import Diverged
from models.training.checkpointing import Stopped
from models.training.compiling import compile_blocks
from models.training.fit import TrainResult, fit
from models.training.train_config import TrainConfig
from models.training.trainer import load_trainable_state_dict, trainable_state_dict

__all__ = [
    "Diverged",
    "Stopped",
    "TrainConfig",
    "TrainResult",
    "compile_blocks",
    "fit",
    "load_trainable_state_dict",
    "trainable_state_dict",
]
