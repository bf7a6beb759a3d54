"""Samples: their id, and their form in JSON Lines."""

from shared_data import conversation

from models.sample import Sample, make_sample_id


def test_the_number_in_a_json_array_survives_json():
    messages = conversation("问", "答")
    sample = Sample("0", "a.json", 1, messages, 3)
    assert sample.to_json()["source"] == {"file": "a.json", "line": 1, "number": 3}
    assert Sample.from_json(sample.to_json()) == sample
    assert Sample("0", "a.jsonl", 1, messages).to_json()["source"] == {"file": "a.jsonl", "line": 1}


def test_the_id_depends_on_the_content_only():
    first = make_sample_id(conversation("问", "答"))
    assert first == make_sample_id(conversation("问", "答"))
    assert len({first, make_sample_id(conversation("问答", "")), make_sample_id(conversation("答", "问"))}) == 3
