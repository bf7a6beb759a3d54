"""Options of the export; tests/models/test_adapter_conversion.py tests the exported files."""

from pathlib import Path

import pytest

from models import adapter_conversion, base_model
from pipelines import export


@pytest.mark.parametrize("has_option", [False, True])
def test_option_onto_16_bits_is_passed_on(monkeypatch, capsys, tmp_path, has_option):
    merged = []
    monkeypatch.setattr(
        "sys.argv", ["export", "champion", "--merged", str(tmp_path / "out"), *["--onto-16-bits"] * has_option]
    )
    monkeypatch.setattr(base_model, "read_record", lambda folder: "the base")
    monkeypatch.setattr(adapter_conversion, "export_merged_model", lambda *arguments: merged.append(arguments))
    export.main()
    assert merged == [(Path("models/champion"), "the base", tmp_path / "out", has_option)]
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"


def test_option_onto_16_bits_needs_a_merge(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export", "champion", "--official", "out", "--onto-16-bits"])
    with pytest.raises(SystemExit):
        export.main()
    assert "--onto-16-bits goes with --merged" in capsys.readouterr().err
