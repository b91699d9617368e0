"""`Layer`, the base class of all layers: its parameters, and one mixin for each interface of the documented API."""

from .fixed_attributes import FixedAttributes as FixedAttributes
from .layer import Layer as Layer
from .listening import Listener as Listener
from .listening import draw_seed as draw_seed
from .listening import listeners as listeners
from .listening import trained_parts as trained_parts
from .memory import forget as forget
from .memory import pending as pending
from .parameters import become as become
from .parameters import new_name as new_name
from .parameters import parameter_of as parameter_of
from .parameters import prefixed as prefixed
from .parameters import require_same_sizes as require_same_sizes
from .parameters import trained_by as trained_by
from .training_mode import training_mode as training_mode
