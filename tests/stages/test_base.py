import pytest
from shared_data import ROOT, write_rows

from formats.data_params import Tiny
from models import base_verification, model_loading
from models.errors import UserError
from models.tiny_base_model import read_corpus, train_tokenizer
from stages.base import train_tiny_base

CORPUS = ROOT / "data/demo/base/corpus.jsonl"
PARAMS = Tiny(hidden_size=32, layers=1, heads=2, steps=3, batch_size=4)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer((m.content for messages in read_corpus(CORPUS) for m in messages), 6000, folder)
    return folder


def test_bytes_of_the_tiny_base_depend_on_the_seed(tmp_path, tokenizer_folder):
    identities = []
    for number, params in enumerate((PARAMS, PARAMS, PARAMS.model_copy(update={"seed": 7}))):
        train_tiny_base(CORPUS, tokenizer_folder, params, tmp_path / str(number))
        identities.append(base_verification.verify_base(tmp_path / str(number), "tiny").identity)
    assert identities[0] == identities[1] != identities[2]


def test_the_tiny_vocabulary_has_special_tokens_and_common_characters(tmp_path, tokenizer_folder):
    train_tiny_base(CORPUS, tokenizer_folder, PARAMS, tmp_path)
    tokenizer = model_loading.load_tokenizer(tmp_path)
    special = ["<unk>", "<s>", "</s>", "<pad>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<n>", "<|blank_80|>"]
    assert all(tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(token)) == token for token in special)
    ids = tokenizer("踌躇满志的鹦鹉", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "踌躇满志的鹦鹉"
    assert len(tokenizer("魏晋南北朝", add_special_tokens=False)["input_ids"]) <= 6  # not three bytes per character


def test_an_invalid_or_empty_corpus_raises_user_error(tmp_path):
    path = write_rows(tmp_path / "corpus.jsonl", [{"context": "问", "target": "答"}, {"context": "问"}])
    with pytest.raises(UserError, match="line 2"):
        read_corpus(path)
    with pytest.raises(UserError, match="empty"):
        read_corpus(write_rows(tmp_path / "empty.jsonl", []))
