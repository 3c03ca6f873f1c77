"""Variants that are compared, what is refused, and differences run by run."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from fieldbook.drifting import audit, kernel, protocol
from fieldbook.run import parameters, paths


@pytest.fixture(scope="module")
def par():
    return parameters.Parameters(parameters.check(paths.notebook("drifting"), {}))


def test_every_variant_has_a_name_and_a_setting_of_its_own(par):
    assert list(protocol.variants(32)) == list(protocol.NAMES)
    assert len(set(protocol.NAMES.values())) == len(protocol.NAMES)
    job = {"group": "main", "seed": 1}
    settings = [protocol.setting_of({**job, "variant": v}, par) for v in protocol.NAMES]
    plain = settings[0]
    assert plain.steps == par.steps and plain.seed == 1
    same = [v for v, one in zip(protocol.NAMES, settings, strict=True) if one == plain]
    assert same == ["kernel", "no_encoder"]  # quick has none
    brief = protocol.setting_of({"group": "ablation", "seed": 0, "variant": "set_64"}, par)
    assert (brief.steps, brief.set_size) == (par.ablation_steps, 2 * par.set_size)


def test_an_unknown_variant_is_refused_before_anything_runs(par):
    with pytest.raises(ValueError, match=r"variant of main or ablations = 'cernel'.*kernel"):
        protocol.run_all(None, par.replace(ablations=["cernel"]), torch.device("cpu"))


def test_a_difference_is_taken_run_by_run():
    draw = np.random.default_rng(0)
    base = draw.normal(10, 5, 6)
    near = base - 1 + draw.normal(0, 0.1, 6)
    rows = {"variant": ["a"] * 6 + ["b"] * 6, "seed": [*range(6), *reversed(range(6))]}
    frame = pd.DataFrame(rows | {"fd_heldout": [*near, *base[::-1]]})
    found = protocol.against(frame, "a", "b", below=0)
    expected = stats.ttest_rel(near, base)
    assert np.isclose((found["estimate"] / found["error"])["b"], expected.statistic)
    assert found["below"] == 0 and found["found"].count("±") == 2
    assert protocol.spread(protocol.of(frame, "c").fd_heldout) == "not run"
    assert protocol.spread(pd.Series([1.0])) == "1.00 (one run)"


def test_identities_hold_and_an_unbalanced_field_breaks_them(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    x, pos, neg = (torch.randn(n, 3, generator=draw, dtype=torch.float64) for n in (7, 5, 6))
    found = audit.identities(x, pos, neg)
    assert list(found) == ["factor", "kernel", "untrained"] and max(found.values()) < 1e-12
    field = kernel.field
    monkeypatch.setattr(kernel, "field", lambda *a, **k: field(*a, **k, pull=1.5))
    broken = audit.identities(x, pos, neg)
    assert broken["kernel"] > 1e-3
