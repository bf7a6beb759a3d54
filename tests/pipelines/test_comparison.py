"""Which models of two revisions stand side by side."""

from models.storage import write_json
from pipelines.comparison import side_by_side


def test_another_base_stands_beside_the_first_and_the_same_one_does_not(tmp_path):
    for name, identity in {"lora@a": "x", "base@a": "x", "base@b": "x", "base@c": "y", "lora@c": "y"}.items():
        write_json(tmp_path / name / "figures.json", {"of": {"base_identity": identity}})
    first = ["lora@a", "base@a"]
    assert side_by_side(first, ["base@b"], tmp_path) == ["base@a", "lora@a"]
    assert side_by_side(first, ["base@c", "lora@c"], tmp_path) == ["base@a", "lora@a", "base@c", "lora@c"]
