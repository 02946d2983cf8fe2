"""Families are found by their folders."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import spaces
from spaces.errors import HeadwayError, UserError
from spaces.registry import GROUP, families, family, packages, patch_of

KNOBS = """
from spaces.family import Family
FAMILY = Family(name={name!r}, title="t", paper="p", heads=("GFLHead",), knobs=lambda base: ())
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A second place where families are looked for."""
    monkeypatch.setattr(spaces, "__path__", [*spaces.__path__, str(tmp_path)])
    before = set(sys.modules)
    families.cache_clear()
    yield tmp_path
    families.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("spaces."):
            del sys.modules[name]


def add(root: Path, folder: str, knobs: str | None) -> None:
    (root / folder).mkdir()
    (root / folder / "__init__.py").write_text("")
    if knobs is not None:
        (root / folder / "knobs.py").write_text(knobs)


def test_families_are_the_folders() -> None:
    folders = {file.parent.name for file in Path(spaces.__path__[0]).glob("*/knobs.py")}
    assert set(families()) == folders
    assert {"slimhead", "dcn"} <= folders
    assert list(families()) == sorted(families())
    for name, found in families().items():
        assert found.name == name
        assert set(found.conflicts) <= folders - {name}
        assert found.title
        assert found.paper


def test_a_new_folder_joins(elsewhere: Path) -> None:
    add(elsewhere, "zebra", KNOBS.format(name="zebra"))
    assert "zebra" in families()
    assert family("zebra").modules == "spaces.zebra.modules"


def test_a_second_family_of_one_name(elsewhere: Path) -> None:
    add(elsewhere, "slimmer", KNOBS.format(name="slimhead"))
    with pytest.raises(
        HeadwayError, match=r"^spaces/slimmer: the family must be named after its folder, not 'slimhead'"
    ):
        families()


@pytest.mark.parametrize("knobs", [None, "KNOBS = ()", "import nothing_of_that_name"])
def test_a_folder_without_a_family(elsewhere: Path, knobs: str | None) -> None:
    add(elsewhere, "empty", knobs)
    with pytest.raises(HeadwayError, match=r"^spaces/empty: must have a knobs\.py that defines FAMILY: "):
        families()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    """Installs packages, as far as that is files: ``installed(entry point, package, knobs.py)``."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def install(entry: str, package: str, knobs: str) -> None:
        add(tmp_path, package, knobs)
        (tmp_path / package / "patch.py").write_text("def patch(values, model):\n    return {**model, **values}\n")
        info = tmp_path / f"{package}-0.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.3\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entry} = {package}\n")
        families.cache_clear()

    yield install
    families.cache_clear()
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {folder.name for folder in tmp_path.iterdir()}:
            del sys.modules[name]


def test_a_package_of_somebody_else(installed: Callable[[str, str, str], None]) -> None:
    installed("zebra", "zebra_heads", KNOBS.format(name="zebra"))
    assert list(families()) == sorted(families())
    assert family("zebra").package == "zebra_heads"
    assert family("zebra").modules == "zebra_heads.modules"
    assert patch_of("zebra")({"stripes": 3}, {"type": "GFL"}) == {"type": "GFL", "stripes": 3}
    assert packages() == {"spaces", "zebra_heads"}


@pytest.mark.parametrize(
    ("entry", "knobs", "text"),
    [
        ("slimhead", KNOBS.format(name="slimhead"), "must have a name of its own, but spaces.slimhead has this one."),
        ("zebra", KNOBS.format(name="horse"), "the family must be named as its entry point in headway.families, not"),
        ("zebra", "KNOBS = ()", "must have a knobs.py that defines FAMILY: "),
        ("zebra", "import nothing_of_that_name", "must have a knobs.py that defines FAMILY: No module named"),
    ],
)
def test_a_package_that_is_not_right(
    installed: Callable[[str, str, str], None], entry: str, knobs: str, text: str
) -> None:
    installed(entry, "zebra_heads", knobs)
    with pytest.raises(HeadwayError, match=rf"^family {entry} of zebra.heads 0\.3: {text}"):
        families()


def test_unknown_family() -> None:
    with pytest.raises(UserError, match=r"^space: unknown 'dnc'; did you mean 'dcn'\?"):
        family("dnc")


def test_looking_families_up_imports_no_network_code() -> None:
    """``headway families`` starts in no time: torch and mmdet are not needed to know what may vary."""
    code = (
        "import sys, spaces.space, spaces.patching, spaces.registry as registry;"
        "[registry.patch_of(name) for name in registry.families()];"
        "sys.exit(bool({'torch', 'mmdet', 'mmcv', 'mmengine', 'numpy'} & set(sys.modules)))"
    )
    root = Path(spaces.__path__[0]).parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
