import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import adapters, base_model, model_loading
from models.chatglm.masks import BLOCK, prefix_lm_block_mask, prefix_lm_mask
from models.errors import UserError
from models.packing import PADDING_SEGMENT, PackingCollator, pack_samples
from models.padding import PaddingCollator
from models.prompt import IGNORED_LABEL
from models.training import TrainConfig, fit


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(0, 3))
def test_every_sample_is_in_one_row(lengths, seed):
    rows = pack_samples(lengths, 50, seed)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[sample] for sample in row) <= 50 for row in rows)
    # No two rows fit into one.
    row_lengths = sorted(sum(lengths[sample] for sample in row) for row in rows)
    assert len(row_lengths) < 2 or row_lengths[0] + row_lengths[1] > 50
    assert rows == pack_samples(lengths, 50, seed)


def test_a_sample_longer_than_a_row_raises_user_error():
    with pytest.raises(UserError, match="a sample has 9 tokens"):
        pack_samples([3, 9], 8, 0)


def make_sample(config, context: list[int], answer: list[int]) -> dict:
    prompt = [*context, config.gmask_token_id, config.bos_token_id]
    return {"input_ids": prompt + answer, "labels": [IGNORED_LABEL] * len(prompt) + answer}


@pytest.fixture
def samples(model):
    generator = torch.Generator().manual_seed(5)
    lengths = [(3, 2), (9, 4), (1, 1), (6, 7), (2, 12)]  # of context and answer
    drawn = [torch.randint(20, 400, (sum(pair),), generator=generator).tolist() for pair in lengths]
    return [
        make_sample(model.config, ids[:context], ids[context:])
        for ids, (context, _) in zip(drawn, lengths, strict=True)
    ]


ADAPTER_SETTINGS = {
    "lora": {"rank": 4, "alpha": 8, "target_modules": ["query_key_value", "dense_4h_to_h"]},
    "ptuning_v2": {"prefix_tokens": 5},
}


@pytest.mark.parametrize("method", ADAPTER_SETTINGS)
def test_packing_keeps_the_loss_and_gradients_of_every_sample(model, samples, method):
    """Loss of each sample alone and in a row with others; then the gradients of all samples."""
    torch.manual_seed(0)
    adapted = adapters.attach_adapter(model, method, **ADAPTER_SETTINGS[method])
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    unlabelled = [sample | {"labels": [IGNORED_LABEL] * len(sample["labels"])} for sample in samples]
    for index, sample in enumerate(samples):
        alone = adapted(**PaddingCollator(3)([sample])).loss
        row = [*unlabelled[:index], sample, *unlabelled[index + 1 :]]
        packed = adapted(**PackingCollator(80, model.config)([row])).loss
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-6)

    def compute_gradients(batch) -> tuple[torch.Tensor, ...]:
        trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        return torch.autograd.grad(adapted(**batch).loss, trainable)

    packed_gradients = compute_gradients(PackingCollator(80, model.config)([samples[:2], samples[2:]]))
    for gradient, expected in zip(packed_gradients, compute_gradients(PaddingCollator(3)(samples)), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_segments_positions_and_padding_of_a_packed_row(model, samples):
    batch = PackingCollator(40, model.config)([samples[:2]])
    assert batch["segment_ids"].tolist() == [[0] * 7 + [1] * 15 + [PADDING_SEGMENT] * 18]
    assert batch["attention_mask"].sum() == 22
    assert batch["position_ids_2d"][0, :, 7:10].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch["position_ids_2d"].shape == (1, 2, 40)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 400), st.integers(0, 300)), min_size=1, max_size=8),
    st.integers(0, 300),
    st.sampled_from([0, 5, 128, 256]),
)
def test_block_mask_equals_dense_mask(samples, padding, past):
    """Token by token, and block by block: no needed block is missing, and none is computed without need."""
    segments = [number for number, lengths in enumerate(samples) for _ in range(sum(lengths))]
    positions = [position for context, answer in samples for position in [0] * context + list(range(1, answer + 1))]
    segment_ids = torch.tensor([segments + [PADDING_SEGMENT] * padding])
    block_position = torch.tensor([positions + [1] * padding])
    mask = prefix_lm_block_mask(block_position, past, segment_ids)
    dense = prefix_lm_mask(block_position, past, None, segment_ids)[0, 0]
    queries, keys = torch.meshgrid(*(torch.arange(size) for size in dense.shape), indexing="ij")
    assert torch.equal(mask.mask_mod(torch.tensor(0), torch.tensor(0), queries, keys), dense)
    padded = torch.nn.functional.pad(dense, (0, -dense.shape[1] % BLOCK, 0, -dense.shape[0] % BLOCK))
    blocks = padded.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).movedim(1, 2).flatten(2)
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks.any(dim=-1))
    if past == 0:  # blocks are contiguous in both directions, as the kernel option BLOCKS_ARE_CONTIGUOUS requires
        for counts, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.q_num_blocks, mask.q_indices)):
            for count, blocks_of_row in zip(counts[0, 0].tolist(), indices[0, 0].tolist(), strict=True):
                assert blocks_of_row[:count] == list(range(blocks_of_row[0], blocks_of_row[0] + count))


def test_loss_falls_in_a_training_with_packed_rows(base_folder):
    model = model_loading.load_model(base_model.read_record(base_folder), "float32")
    torch.manual_seed(0)
    adapted = adapters.attach_adapter(model, "lora", rank=4, alpha=8, target_modules=["query_key_value", "dense"])
    rows = [make_sample(model.config, [40 + number, 41], [50 + number, 51]) for number in range(12)]
    config = TrainConfig(batch_size=1, pack_tokens=24, learning_rate=0.02, epochs=9, seed=3)
    result = fit(adapted, rows[:9], rows[9:], config)
    losses = [record["loss"] for record in result.history if record["split"] == "train"]
    assert losses[-1] < losses[0] - 0.5
    assert result.steps == 27  # four samples per row and nine samples: three rows per epoch
    assert result.tokens == 9 * 9 * 6
