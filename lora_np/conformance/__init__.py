"""Conformance vectors for implementations in other languages, and the comparison of a program with them.

docs/conformance.md says what they hold, and how a program is asked.
"""

from .comparison import TOLERANCE as TOLERANCE
from .comparison import Verdict as Verdict
from .program import Answers as Answers
from .program import ask as ask
from .report import Report as Report
from .report import check_program as check_program
from .vectors import Case as Case
from .vectors import load_vectors as load_vectors
from .vectors import write_vectors as write_vectors
