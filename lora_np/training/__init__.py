"""Training: optimizers, a training step, nested dropout, and `fit`."""

from .fit import fit as fit
from .history import History as History
from .history import Progress as Progress
from .nested_dropout import RankSchedule as RankSchedule
from .nested_dropout import independent_ranks as independent_ranks
from .nested_dropout import rank_per_row as rank_per_row
from .nested_dropout import shared_rank as shared_rank
from .progress_bar import ProgressBar as ProgressBar
from .schedules import Constant as Constant
from .schedules import CosineDecay as CosineDecay
from .schedules import LinearDecay as LinearDecay
from .schedules import Schedule as Schedule
from .sorted_start import SortedStart as SortedStart
from .sorting import sort_components as sort_components
