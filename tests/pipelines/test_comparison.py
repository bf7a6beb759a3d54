"""Order of the models in the comparison of two revisions."""

from models.storage import write_json
from pipelines.comparison import order_models


def test_base_of_the_second_revision_is_compared_only_if_it_differs(tmp_path):
    for name, identity in {"lora@a": "x", "base@a": "x", "base@b": "x", "base@c": "y", "lora@c": "y"}.items():
        write_json(tmp_path / name / "figures.json", {"of": {"base_identity": identity}})
    first = ["lora@a", "base@a"]
    assert order_models(first, ["base@b"], tmp_path) == ["base@a", "lora@a"]
    assert order_models(first, ["base@c", "lora@c"], tmp_path) == ["base@a", "lora@a", "base@c", "lora@c"]
