import pytest
import torch
from shared_data import ADAPTER_SETTINGS, minimal_manifest, randomize_adapter

from models import adapter_files, adapters, base_model, model_loading
from models.errors import UserError
from models.padding import PaddingCollator
from models.prompt import label_sample


def test_fast_lora_equals_pefts_layer(base_folder):
    """Output and gradients equal those of peft's layer."""
    from peft.tuners.lora.layer import Linear

    adapted = adapters.attach_adapter(
        model_loading.load_model(base_model.read_record(base_folder), "float32"), "lora", **ADAPTER_SETTINGS["lora"]
    )
    torch.manual_seed(1)
    randomize_adapter(adapted)
    layer = adapted.base_model.model.transformer.layers[0].attention.query_key_value
    states = torch.randn(3, 7, 32, requires_grad=True)
    weights = [states, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    results = []
    for kind in (type(layer), Linear):
        layer.__class__ = kind
        result = layer(states)
        results.append((result, *torch.autograd.grad(result.square().sum(), weights)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_an_adapter_trains_on_a_quantized_base(bits, method, base_folder):
    base = base_model.read_record(base_folder)
    model = model_loading.load_model(base, "float32", quantization=bits)
    adapted = adapters.attach_adapter(model, method, **ADAPTER_SETTINGS[method])
    ids = torch.tensor([[40, 41, model.config.gmask_token_id, model.config.bos_token_id, 50, 51]])
    labels = torch.where(torch.arange(6) > 3, ids, -100)
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = adapted(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_an_unknown_target_module_is_rejected(base_folder):
    model = model_loading.load_model(base_model.read_record(base_folder), "float32")
    with pytest.raises(UserError, match="has no linear layer 'q_proj'; it has dense"):
        adapters.attach_adapter(model, "lora", rank=2, alpha=2, target_modules=["q_proj"])


@pytest.mark.parametrize("projection", [False, True])
def test_prefix_dropout_acts_in_training_only_and_is_not_saved(base_folder, tokenizer, tmp_path, projection):
    base = base_model.read_record(base_folder)
    model, manifest = model_loading.load_model(base, "float32"), minimal_manifest(base, "ptuning_v2")
    torch.manual_seed(0)
    adapted = adapters.attach_adapter(model, "ptuning_v2", prefix_tokens=8, projection=projection, dropout=0.5)
    batch = PaddingCollator(model.config.pad_token_id)([label_sample([5, 6, 7], [8, 9])])

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        with torch.no_grad():
            return float(adapted(**batch).loss)

    assert loss(1) == loss(1) != loss(2)
    adapter_files.save_adapter(adapted, tmp_path / "a", manifest)
    assert adapted.training
    adapted.eval()
    assert loss(1) == loss(2)
    adapter_files.save_adapter(adapted, tmp_path / "b", manifest)
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
