"""Models and training: plain Python that imports neither DVC nor Prefect, and does not read params.yaml."""

import logging
import os
import warnings

# transformers and huggingface_hub read these once, at import.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# bitsandbytes warns at import that an optional kernel cannot be downloaded; no code here uses that kernel.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# peft still passes arguments under names that transformers has deprecated.
warnings.filterwarnings("ignore", category=FutureWarning, message=r".*gradient_checkpointing.* is deprecated")
