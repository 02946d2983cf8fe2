"""Picks one design of a finished study, says why, and what its neighbours on the front are."""

from analysis.choose.neighbours import Neighbour as Neighbour
from analysis.choose.pick import PICKS as PICKS
from analysis.choose.pick import Choice as Choice
from analysis.choose.pick import choose as choose
from analysis.choose.pick import knee as knee
from analysis.choose.pick import picks_of as picks_of
