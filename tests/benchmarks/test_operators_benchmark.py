"""The benchmark of single convolutions: its forms compute the same, and what it keeps can be read."""

from __future__ import annotations

import pytest
import torch

from benchmarks.heads import operators


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "CHANNELS", 96)
    monkeypatch.setattr(operators, "P3", (9, 11))
    monkeypatch.setattr(operators, "P4", (6, 7))


@pytest.mark.parametrize("name", ["dcn-1", "dcn-2", "pod-learning"])
def test_the_forms_are_the_same_operator(name: str) -> None:
    forms = operators.CASES[name]()
    with torch.inference_mode():
        ours, mmcvs, plain = (
            function(*given) for function, given in (forms[form] for form in ("ours", "mmcv", "plain"))
        )
    torch.testing.assert_close(ours, mmcvs, rtol=0, atol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-2)


@pytest.mark.parametrize("name", ["dcn-2-layer", "pod-64+192"])
def test_a_measurement(name: str) -> None:
    lines = operators.measure(name, 2, 0.0)
    assert [(line["case"], line["way"], line["against"]) for line in lines] == [
        (name, "forward", "plain"),
        (name, "forward and backward", "plain"),
    ]
    assert all(line["speedup"] > 0 and line["ms"] > 0 and line["pairs"] >= 2 for line in lines)
