"""The flags of the export; what is exported is tested with models/adapter_conversion.py."""

from pathlib import Path

import pytest

from models import adapter_conversion, base_model
from pipelines import export


@pytest.mark.parametrize("asked", [False, True])
def test_only_the_flag_merges_an_adapter_of_a_quantized_base(monkeypatch, capsys, tmp_path, asked):
    merged = []
    monkeypatch.setattr(
        "sys.argv", ["export", "champion", "--merged", str(tmp_path / "out"), *["--onto-16-bits"] * asked]
    )
    monkeypatch.setattr(base_model, "read_record", lambda folder: "the base")
    monkeypatch.setattr(adapter_conversion, "save_merged", lambda *arguments: merged.append(arguments))
    export.main()
    assert merged == [(Path("models/champion"), "the base", tmp_path / "out", asked)]
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"


def test_the_flag_goes_with_a_merge(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export", "champion", "--official", "out", "--onto-16-bits"])
    with pytest.raises(SystemExit):
        export.main()
    assert "--onto-16-bits goes with --merged" in capsys.readouterr().err
