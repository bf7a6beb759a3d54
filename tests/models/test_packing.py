import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import adapters, base_model
from models.chatglm.masks import BLOCK, prefix_lm_block_mask, prefix_lm_mask
from models.errors import UserError
from models.packing import PADDING, PackingCollator, pack
from models.training import PaddingCollator, TrainConfig, fit


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(0, 3))
def test_every_sample_stands_in_one_row_that_holds_it(lengths, seed):
    rows = pack(lengths, 50, seed)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[sample] for sample in row) <= 50 for row in rows)
    # No two rows could be one.
    filled = sorted(sum(lengths[sample] for sample in row) for row in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > 50
    assert rows == pack(lengths, 50, seed)


def test_a_sample_longer_than_a_row_is_one_sentence():
    with pytest.raises(UserError, match="a sample has 9 tokens"):
        pack([3, 9], 8, 0)


def sample(config, context: list[int], answer: list[int]) -> dict:
    prompt = [*context, config.gmask_token_id, config.bos_token_id]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


@pytest.fixture
def samples(model):
    draw = torch.Generator().manual_seed(5)
    lengths = [(3, 2), (9, 4), (1, 1), (6, 7), (2, 12)]
    drawn = [torch.randint(20, 400, (sum(pair),), generator=draw).tolist() for pair in lengths]
    return [sample(model.config, ids[: pair[0]], ids[pair[0] :]) for ids, pair in zip(drawn, lengths, strict=True)]


METHODS = {
    "lora": {"rank": 4, "alpha": 8, "target_modules": ["query_key_value", "dense_4h_to_h"]},
    "ptuning_v2": {"prefix_tokens": 5},
}


@pytest.mark.parametrize("method", METHODS)
def test_packed_and_unpacked_give_the_same_loss_and_gradients_sample_by_sample(model, samples, method):
    """Each sample's loss alone, in its row with others; then the gradients of all of them."""
    torch.manual_seed(0)
    tuned = adapters.attach(model, method, **METHODS[method])
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    for number, each in enumerate(samples):
        alone = tuned(**PaddingCollator(3)([each])).loss
        others = [other | {"labels": [-100] * len(other["labels"])} for other in samples]
        row = [each if index == number else other for index, other in enumerate(others)]
        together = tuned(**PackingCollator(80, model.config)([row])).loss
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)

    def gradients(batch) -> list[torch.Tensor]:
        trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        return torch.autograd.grad(tuned(**batch).loss, trained)

    packed = gradients(PackingCollator(80, model.config)([samples[:2], samples[2:]]))
    for own, usual in zip(packed, gradients(PaddingCollator(3)(samples)), strict=True):
        torch.testing.assert_close(own, usual, rtol=1e-4, atol=1e-6)


def test_a_packed_row_numbers_its_samples_and_counts_its_tokens(model, samples):
    batch = PackingCollator(40, model.config)([samples[:2]])
    assert batch["segment_ids"].tolist() == [[0] * 7 + [1] * 15 + [PADDING] * 18]
    assert batch["attention_mask"].sum() == 22
    assert batch["position_ids_2d"][0, :, 7:10].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch["position_ids_2d"].shape == (1, 2, 40)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 400), st.integers(0, 300)), min_size=1, max_size=8),
    st.integers(0, 300),
    st.sampled_from([0, 5, 128, 256]),
)
def test_the_blocks_of_flex_attention_are_those_where_something_is_seen(samples, padding, past):
    """Against the dense mask, block by block: none is missing and none is there for nothing."""
    segments = [number for number, pair in enumerate(samples) for _ in range(sum(pair))]
    blocked = [place for context, answer in samples for place in [0] * context + list(range(1, answer + 1))]
    segment_ids = torch.tensor([segments + [PADDING] * padding])
    block_position = torch.tensor([blocked + [1] * padding])
    mask = prefix_lm_block_mask(block_position, past, segment_ids)
    dense = prefix_lm_mask(block_position, past, None, segment_ids)[0, 0]
    queries, keys = torch.meshgrid(*(torch.arange(size) for size in dense.shape), indexing="ij")
    assert torch.equal(mask.mask_mod(torch.tensor(0), torch.tensor(0), queries, keys), dense)
    filled = torch.nn.functional.pad(dense, (0, -dense.shape[1] % BLOCK, 0, -dense.shape[0] % BLOCK))
    blocks = filled.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).movedim(1, 2).flatten(2)
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks.any(dim=-1))
    if past == 0:  # which lets FlexAttention take them for neighbours, in both directions
        for counts, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.q_num_blocks, mask.q_indices)):
            for count, listed in zip(counts[0, 0].tolist(), indices[0, 0].tolist(), strict=True):
                assert listed[:count] == list(range(listed[0], listed[0] + count))


def test_training_packed_rows_learns(base_folder):
    model = base_model.load_model(base_model.read_record(base_folder), "float32")
    torch.manual_seed(0)
    tuned = adapters.attach(model, "lora", rank=4, alpha=8, target_modules=["query_key_value", "dense"])
    rows = [sample(model.config, [40 + i, 41], [50 + i, 51]) for i in range(12)]
    settings = TrainConfig(batch_size=1, pack_tokens=24, learning_rate=0.02, epochs=9, seed=3)
    fitted = fit(tuned, rows[:9], rows[9:], settings)
    losses = [point["loss"] for point in fitted.history if point["split"] == "train"]
    assert losses[-1] < losses[0] - 0.5
    assert fitted.steps == 27  # four samples a row, nine samples: three rows an epoch
    assert fitted.tokens == 9 * 9 * 6
