"""Conformance vectors for implementations in other languages, and checks of a program against them.

docs/conformance.md describes the cases and the protocol.
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
