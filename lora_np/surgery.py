"""Rank surgery: truncate, grow, canonicalize and combine low-rank layers."""

from .factors.combining import Combined as Combined
from .factors.combining import combine as combine
from .factors.surgery import canonicalize as canonicalize
from .factors.surgery import effective_rank as effective_rank
from .factors.surgery import grow as grow
from .factors.surgery import retained_energy as retained_energy
from .factors.surgery import spectrum as spectrum
from .factors.surgery import truncate as truncate
