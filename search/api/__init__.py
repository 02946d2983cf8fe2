"""Headway in Python, for notebooks and programs: the same acts as the commands, with typed results and pandas frames.

>>> from search import Study
>>> study = Study.open("bccd")
>>> study.front()[["bbox_mAP", "latency_ratio"]]
>>> study.plot()
>>> study.export("bundles/bccd", pick="knee").verify()

Whatever is wrong with the input raises the ``UserError`` that the command would print. Progress goes to standard error.
"""

from search.api.bundle import Bundle
from search.api.comparing import Compared, compare
from search.api.recording import Recording, Replay
from search.api.study import Study, tell_of_code
from search.api.told import Confirmed, Report, Status

__all__ = [
    "Bundle",
    "Compared",
    "Confirmed",
    "Recording",
    "Replay",
    "Report",
    "Status",
    "Study",
    "compare",
    "tell_of_code",
]
