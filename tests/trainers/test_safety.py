"""Nothing that a study names is executed but a base that is a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from spaces.errors import UserError
from trainers import files
from trainers.config import BASES, load_base, plain
from trainers.detector import build_model
from trainers.weights import read_weights


class _Bomb:
    """What a malicious checkpoint holds: it makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._path),))


@pytest.fixture
def bomb(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint, and what is there once it has been executed."""
    checkpoint, trace = tmp_path / "bomb.pth", tmp_path / "executed"
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "meta": _Bomb(trace)}, checkpoint)
    return checkpoint, trace


def test_the_bomb_is_one(bomb: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)  # which a trial of an earlier test has set
    torch.load(bomb[0], weights_only=False)
    assert bomb[1].is_dir()


def test_weights_are_not_executed(bomb: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"weights.from: must be a checkpoint that loads with weights_only"):
        read_weights(str(bomb[0]), who="weights.from")
    assert not bomb[1].exists()


def test_pretrained_weights_are_not_executed_by_mmengine(bomb: tuple[Path, Path]) -> None:
    config = Config({"model": plain(load_base("headway::gfl_nano")["model"])})
    config["model"]["backbone"]["init_cfg"] = {"type": "Pretrained", "checkpoint": str(bomb[0])}
    with pytest.raises(UserError, match="must be checkpoints that load with weights_only"):
        build_model(config, seed=0)
    assert not bomb[1].exists()


@pytest.mark.parametrize("package", ["headway", "mmdet"])
def test_a_shipped_config_lies_in_its_package(tmp_path: Path, package: str) -> None:
    trace = tmp_path / "executed"
    evil = tmp_path / "evil.py"
    evil.write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    for name in (str(evil), os.path.relpath(evil, BASES), "../" * 12 + str(evil)[1:]):
        with pytest.raises(UserError, match=f"^base: must name a config inside {package}, but got "):
            load_base(f"{package}::{name}")
    assert not trace.exists()


def test_private_files_are_for_their_owner(tmp_path: Path) -> None:
    for private, mode in ((False, None), (True, 0o600), (True, 0o600)):
        files.write_text(tmp_path / "f", "text", private=private)
        found = stat.S_IMODE((tmp_path / "f").stat().st_mode)
        assert mode is None or found == mode
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
