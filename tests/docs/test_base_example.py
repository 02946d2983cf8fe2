"""The worked example of a base that mmdet does not have (docs/examples/base): the page's commands, as printed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/extending/base.md"


def test_the_pages_commands(tmp_path: Path) -> None:
    folder = tmp_path / "docs/examples/base"
    shutil.copytree(ROOT / "docs/examples/base", folder)
    shutil.copytree(ROOT / "trainers/bases", tmp_path / "trainers/bases")  # what the example builds on
    block = re.search(r"^```\n(cd docs/examples/base\n.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert block is not None
    headway = f'headway() {{ {shlex.join([sys.executable, "-m", "search.cli"])} "$@"; }}\n'
    text = headway + block[1].replace("PYTHONPATH=$PWD", f"PYTHONPATH=$PWD:{shlex.quote(str(ROOT))}")
    assert block[1].count("headway ") == 3
    # Not the shell's own folder of this checkout: what the example needs must be on PYTHONPATH.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PlainBackbone" in (folder / "slim.py").read_text()
