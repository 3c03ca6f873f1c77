from pathlib import Path

import pytest

from fieldbook import paths


@pytest.mark.parametrize("folder", [paths.data, paths.figures, paths.inputs])
def test_a_profile_never_leads_out_of_the_results(monkeypatch, tmp_path: Path, folder) -> None:
    monkeypatch.setenv("FIELDBOOK_RESULTS", str(tmp_path))
    for profile in ("laptop", "paper-2", "v1.5", "grün"):
        assert tmp_path in folder("agop", profile).parents
    for profile in ("", ".", "..", "../up", "a/b", str(tmp_path / "elsewhere")):
        with pytest.raises(ValueError, match="expected the name of one folder"):
            folder("agop", profile)
