"""What is trained: plain Python that knows neither DVC nor Prefect nor params.yaml."""

import logging
import os
import warnings

# Tuneline is quiet. Set before transformers and its hub client are imported, which read them once.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# It warns at import that an optional kernel cannot be downloaded; nothing here needs it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# peft still uses names that transformers renamed; that is theirs to mend.
warnings.filterwarnings("ignore", category=FutureWarning, message=r".*gradient_checkpointing.* is deprecated")
