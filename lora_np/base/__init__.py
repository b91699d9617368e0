"""What every layer has: `Layer`, its arrays in parameters.py, and one file for each interface of the documented API."""

from .layer import Layer as Layer
from .parameters import prefixed as prefixed
