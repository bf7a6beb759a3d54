"""Decoding with a preallocated KV cache and a CUDA graph.

At batch size 1 on a fast GPU, ``generate()`` spends most of its time launching about a thousand kernels per token. Here
keys and values are stored in buffers of fixed length, so every step does the same work on the same memory; it is
captured once as a CUDA graph and replayed. On the CPU the same steps run without a graph. Shapes: B rows, H heads, D
channels per head.
"""

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache

from models.precision import has_8bit_layers

CAPACITY_STEP = 512  # tokens; capacities are multiples of this


class PreallocatedCache(Cache):
    """Keys and values in buffers of (B, H, capacity, D) per layer.

    Attributes:
        position: (1,) index that the next step writes to, on the device, as a CUDA graph cannot read it from the host.
    """

    def __init__(self, prompt_cache: Cache, capacity: int):
        super().__init__(layers=[])
        self.keys, self.values = (
            [states.new_zeros(*states.shape[:2], capacity, states.shape[3]) for states in layers]
            for layers in _keys_and_values(prompt_cache)
        )
        self.position = torch.zeros(1, dtype=torch.long, device=self.keys[0].device)

    def copy_from(self, prompt_cache: Cache) -> None:
        """Copy the contents of a prompt's cache, and continue after them."""
        for buffers, contents in zip((self.keys, self.values), _keys_and_values(prompt_cache), strict=True):
            for buffer, content in zip(buffers, contents, strict=True):
                buffer[:, :, : content.shape[2]] = content
        self.position.fill_(prompt_cache.get_seq_length())

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        return keys.index_copy_(2, self.position, key_states), values.index_copy_(2, self.position, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the capacity instead of the number of cached tokens, because masks span the whole buffer."""
        return self.keys[0].shape[2]


def _keys_and_values(cache: Cache) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]


class _DecodingStep:
    """Decoding of one token per row, always on the same memory, so that it can be a CUDA graph.

    Attributes:
        ids: (B, 1), tokens to process.
        positions: (B, 2, 1), their positions and block positions.
        mask: (B, 1, 1, capacity), keys that they attend to.
    """

    def __init__(self, model, prompt_cache: Cache, capacity: int):
        rows, device = prompt_cache.layers[0].keys.shape[0], model.device
        self.model, self.capacity = model, capacity
        self.graph: torch.cuda.CUDAGraph | None = None
        self.can_capture = device.type == "cuda" and not has_8bit_layers(model)
        self.cache = PreallocatedCache(prompt_cache, capacity)
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, 2, 1, dtype=torch.long, device=device)
        self.mask = torch.zeros(rows, 1, 1, capacity, dtype=torch.bool, device=device)

    def fits(self, rows: int, length: int) -> bool:
        return rows == len(self.ids) and length <= self.capacity

    def load_prompt(self, prompt_cache: Cache, positions: torch.Tensor, mask: torch.Tensor) -> None:
        """Continue after a prompt.

        Args:
            prompt_cache: keys and values of the prompt, of length P.
            positions: (B, 2), of the prompt's last tokens.
            mask: (B, P), cached keys to attend to.
        """
        self.cache.copy_from(prompt_cache)
        self.positions.copy_(positions[:, :, None])
        self.mask.zero_()
        self.mask[:, 0, 0, : mask.shape[1]] = mask

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Process one more token per row, (B,), and return the logits after it, (B, vocab_size)."""
        self.ids.copy_(ids[:, None])
        if self.graph is None and self.can_capture:
            self._capture()
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        return self.logits

    def _run(self) -> None:
        self.positions[:, 1] += 1  # in an answer the position stays and the block position counts
        self.mask.index_fill_(3, self.cache.position, True)
        outputs = self.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids_2d=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = outputs.logits[:, -1]
        self.cache.position += 1

    def _capture(self) -> None:
        state = (self.positions, self.mask, self.cache.position)
        saved = [tensor.clone() for tensor in state]
        warmup_stream = torch.cuda.Stream()
        warmup_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warmup_stream):
            self._run()  # initializes libraries, which must not happen during capture
        torch.cuda.current_stream().wait_stream(warmup_stream)
        for tensor, values in zip(state, saved, strict=True):
            tensor.copy_(values)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self._run()


class Decoder:
    """Decoding loop for ``model.generate(…, custom_generate=decoder)``, greedy or sampled.

    Produces the same tokens as ``generate()``'s own loop. The CUDA graph belongs to the model with its current adapter:
    after switching adapters, create a new decoder.
    """

    def __init__(self):
        self.step: _DecodingStep | None = None

    def __call__(
        self,
        model,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config,
        streamer=None,
        synced_gpus: bool = False,
        **inputs,
    ) -> torch.Tensor:
        """Return the ids of prompt and answer, (B, length); arguments as of transformers' ``custom_generate``."""
        prepared = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **inputs)
        outputs = model(**{"logits_to_keep": 1} | prepared)
        logits, prompt_cache = outputs.logits[:, -1], outputs.past_key_values
        finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        def append_token(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            next_ids = self._choose(logits_processor(ids, logits.float()), generation_config.do_sample)
            next_ids = torch.where(finished, generation_config.pad_token_id, next_ids)
            if streamer is not None:
                streamer.put(next_ids.cpu())
            return torch.cat((ids, next_ids[:, None]), dim=1)

        input_ids = append_token(input_ids, logits)
        finished = finished | stopping_criteria(input_ids, None)
        if not finished.all():
            self._load_prompt(model, prepared, prompt_cache, stopping_criteria.max_length - input_ids.shape[1])
        while not finished.all():
            input_ids = append_token(input_ids, self.step(input_ids[:, -1]))
            finished = finished | stopping_criteria(input_ids, None)
        if streamer is not None:
            streamer.end()
        return input_ids

    @staticmethod
    def _choose(logits: torch.Tensor, do_sample: bool) -> torch.Tensor:
        if do_sample:
            return torch.multinomial(logits.softmax(dim=-1), num_samples=1).squeeze(1)
        return logits.argmax(dim=-1)

    def _load_prompt(self, model, prepared: dict, prompt_cache: Cache, remaining: int) -> None:
        rows, length = prompt_cache.layers[0].keys.shape[0], prompt_cache.get_seq_length()
        needed_capacity = length + remaining + 1
        if self.step is None or not self.step.fits(rows, needed_capacity):
            self.step = None  # frees memory that the next one may need
            self.step = _DecodingStep(model, prompt_cache, -(-needed_capacity // CAPACITY_STEP) * CAPACITY_STEP)
        mask = _cache_mask(prepared.get("attention_mask"), rows, length, model.device)
        self.step.load_prompt(prompt_cache, prepared["position_ids_2d"][:, :, -1], mask)


def _cache_mask(mask: torch.Tensor | None, rows: int, length: int, device) -> torch.Tensor:
    """Return the cached keys that later tokens attend to, (B, length): all but padding, with any prefix."""
    if mask is None:
        return torch.ones(rows, length, dtype=torch.bool, device=device)
    return torch.nn.functional.pad(mask.bool(), (length - mask.shape[1], 0), value=True)
