"""Studies side by side: whether they can be compared, which found more, and how sure that is."""

from analysis.compare.comparison import Comparison as Comparison
from analysis.compare.comparison import Difference as Difference
from analysis.compare.comparison import Side as Side
from analysis.compare.comparison import compare as compare
from analysis.compare.entry import Entry as Entry
from analysis.compare.entry import Mark as Mark
from analysis.compare.entry import Terms as Terms
