"""Decoding with as little as possible beside the weights that each token must read.

At batch 1 on a fast GPU, ``generate()`` spends most of its time on starting some thousand kernels a token. Here
keys and values lie in buffers of a fixed length, so that every step of one token is the same work on the same
memory, recorded once as a CUDA graph and replayed. On the CPU the same steps run one by one.
"""

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache

from models.precision import has_8bit_layers

GROWTH = 512  # tokens by which buffers grow


class FixedCache(Cache):
    """Keys and values, (B, H, capacity, D) a layer; each step writes to the place on the device that it stands at."""

    def __init__(self, filled: Cache, capacity: int):
        super().__init__(layers=[])
        self.keys, self.values = (
            [each.new_zeros(*each.shape[:2], capacity, each.shape[3]) for each in side] for side in _contents(filled)
        )
        self.place = torch.zeros(1, dtype=torch.long, device=self.keys[0].device)

    def take(self, filled: Cache) -> None:
        """Begin behind the contents of another cache."""
        for mine, theirs in zip((self.keys, self.values), _contents(filled), strict=True):
            for buffer, content in zip(mine, theirs, strict=True):
                buffer[:, :, : content.shape[2]] = content
        self.place.fill_(filled.get_seq_length())

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        return keys.index_copy_(2, self.place, key_states), values.index_copy_(2, self.place, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.keys[0].shape[2]


def _contents(cache: Cache) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]


class _Step:
    """One token for each row, again and again, on the same memory.

    Attributes:
        ids: (B, 1) the tokens to feed; positions: (B, 2, 1) theirs; visible: (B, 1, 1, capacity) what they see.
    """

    def __init__(self, model, filled: Cache, capacity: int):
        rows, device = filled.layers[0].keys.shape[0], model.device
        self.model, self.capacity = model, capacity
        self.graph: torch.cuda.CUDAGraph | None = None
        # bitsandbytes' products in 8 bits look at their input, which a graph cannot.
        self.recordable = device.type == "cuda" and not has_8bit_layers(model)
        self.cache = FixedCache(filled, capacity)
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, 2, 1, dtype=torch.long, device=device)
        self.visible = torch.zeros(rows, 1, 1, capacity, dtype=torch.bool, device=device)

    def suits(self, rows: int, length: int) -> bool:
        return rows == len(self.ids) and length <= self.capacity

    def begin(self, filled: Cache, positions: torch.Tensor, visible: torch.Tensor) -> None:
        """Stand behind a prompt: its cache, the (B, 2) positions of its last tokens, and which places are seen."""
        self.cache.take(filled)
        self.positions.copy_(positions[:, :, None])
        self.visible.zero_()
        self.visible[:, 0, 0, : visible.shape[1]] = visible

    def feed(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, vocab_size) behind one more token a row."""
        self.ids.copy_(ids[:, None])
        if self.graph is None and self.recordable:
            self._record()
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        return self.logits

    def _run(self) -> None:
        self.positions[:, 1] += 1  # an answer's position stands still; its block position counts
        self.visible.index_fill_(3, self.cache.place, True)
        outputs = self.model(
            input_ids=self.ids,
            attention_mask=self.visible,
            position_ids_2d=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = outputs.logits[:, -1]
        self.cache.place += 1

    def _record(self) -> None:
        state = (self.positions, self.visible, self.cache.place)
        before = [each.clone() for each in state]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._run()  # once unrecorded, for what is set up at first use
        torch.cuda.current_stream().wait_stream(aside)
        for each, value in zip(state, before, strict=True):
            each.copy_(value)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self._run()


class Decoder:
    """``model.generate(…, custom_generate=decoder)``: greedy or sampled, the tokens that ``generate()`` alone gives.

    What it records belongs to the model with its adapter of the moment: after a switch, take a new one.
    """

    def __init__(self):
        self.step: _Step | None = None

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
        """See transformers' ``custom_generate``; gives (B, prompt and answer) ids."""
        prepared = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **inputs)
        outputs = model(**{"logits_to_keep": 1} | prepared)
        scores, filled = outputs.logits[:, -1], outputs.past_key_values
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        started = False
        while True:
            chosen = self._choose(logits_processor(input_ids, scores.float()), generation_config.do_sample)
            chosen = torch.where(done, generation_config.pad_token_id, chosen)
            input_ids = torch.cat((input_ids, chosen[:, None]), dim=1)
            if streamer is not None:
                streamer.put(chosen.cpu())
            done = done | stopping_criteria(input_ids, None)
            if done.all():
                break
            if not started:
                self._begin(model, prepared, filled, stopping_criteria.max_length - input_ids.shape[1])
                started = True
            scores = self.step.feed(chosen)
        if streamer is not None:
            streamer.end()
        return input_ids

    @staticmethod
    def _choose(scores: torch.Tensor, do_sample: bool) -> torch.Tensor:
        if do_sample:
            return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        return scores.argmax(dim=-1)

    def _begin(self, model, prepared: dict, filled: Cache, to_come: int) -> None:
        rows, length = filled.layers[0].keys.shape[0], filled.get_seq_length()
        if self.step is None or not self.step.suits(rows, length + to_come + 1):
            self.step = None  # its memory may be what the next one needs
            self.step = _Step(model, filled, -(-(length + to_come + 1) // GROWTH) * GROWTH)
        visible = _visible(prepared.get("attention_mask"), rows, length, model.device)
        self.step.begin(filled, prepared["position_ids_2d"][:, :, -1], visible)


def _visible(mask: torch.Tensor | None, rows: int, length: int, device) -> torch.Tensor:
    """(B, length): which places of a filled cache tokens behind it see; a prefix is seen."""
    if mask is None:
        return torch.ones(rows, length, dtype=torch.bool, device=device)
    return torch.nn.functional.pad(mask.bool(), (length - mask.shape[1], 0), value=True)
