"""Convert a GGUF file (llama.cpp) to a checkpoint folder, which every stage can read.

transformers reads and dequantizes the file; its architectures are those of transformers' GGUF support, such as llama,
qwen2, qwen3 and gemma3. Weights that were quantized stay as coarse as they were.
"""

import logging
import tempfile
from pathlib import Path

from models.base_model import first_line
from models.base_verification import verify_base
from models.errors import UserError
from models.families.family import MAX_SHARD_SIZE
from models.storage import atomic_write_folder, write_json

log = logging.getLogger("tuneline.gguf")
MAGIC_BYTES = b"GGUF"


def convert_gguf(file: Path, out: Path, dtype: str = "float32") -> None:
    """Write weights, configuration, tokenizer and chat template of a GGUF file into a new folder.

    Args:
        dtype: of the written weights.

    Raises:
        UserError: the file is missing, damaged, of an architecture that transformers cannot read, or has no chat
            template.
    """
    import torch
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with file.open("rb") as opened:
        if opened.read(4) != MAGIC_BYTES:
            raise UserError(f"{file} is not a GGUF file: it does not begin with GGUF.")
    # Alone in a folder, since transformers obeys other files beside it, such as an adapter_config.json.
    with tempfile.TemporaryDirectory(prefix="tuneline-gguf-") as folder:
        link = Path(folder, "model.gguf")
        link.symlink_to(file.resolve())
        options = {"gguf_file": link.name, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
        except Exception as error:  # a damaged file fails in any way
            raise UserError(f"{file} cannot be read as GGUF ({first_line(error)}).") from None
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # the weights are plain now
    tied = model.all_tied_weights_keys if model.config.tie_word_embeddings else ()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    with atomic_write_folder(out) as folder:
        save_torch_state_dict(weights, folder, max_shard_size=MAX_SHARD_SIZE)
        write_json(folder / "config.json", config | {"dtype": dtype})
        tokenizer.save_pretrained(folder)
        verify_base(folder, name=file.name)
