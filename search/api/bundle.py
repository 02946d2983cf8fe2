"""A bundle on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.verify import Verification


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: Its folder.
        trial: Label of the trial, where it was just exported.
        why: Why that one, in one sentence.
    """

    folder: str | Path
    trial: str = ""
    why: str = ""

    def verify(
        self,
        *,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        latency: bool = True,
        against: str | Path | None = None,
    ) -> Verification:
        """Runs it again in a clean process and compares with its receipt: ``headway verify``.

        Args:
            annotations: Of the validation split; by default those that it was searched with.
            images: Their folder; goes with ``annotations``.
            latency: Whether the latency ratio is measured again.
            against: The baseline's bundle, where the latency depends on the image; by default one beside it.

        Raises:
            UserError: There is no bundle, or no validation data, or it is not the data of the receipt.
        """
        from analysis.verify import verify_bundle

        return verify_bundle(
            Path(self.folder),
            annotations=Path(annotations) if annotations else None,
            images=Path(images) if images else None,
            latency=latency,
            against=Path(against) if against else None,
        )
