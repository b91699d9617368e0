"""The exceptions of the documented API. Each is also the built-in exception that a Python user would expect."""


class ArgumentError(ValueError):
    """An argument violates a documented constraint (C#: ArgumentException)."""


class ArgumentNullError(ArgumentError, TypeError):
    """A required argument is None (C#: ArgumentNullException)."""


class ArgumentOutOfRangeError(ArgumentError):
    """An argument is outside its range (C#: ArgumentOutOfRangeException)."""


class InvalidOperationError(RuntimeError):
    """The object's current state does not allow the call (C#: InvalidOperationException)."""


class NotSupportedError(NotImplementedError):
    """The object does not support the operation in any state (C#: NotSupportedException)."""


class FormatError(ArgumentError):
    """A file is damaged or violates its format."""


class NonFiniteError(ArithmeticError):
    """A loss or an update became infinite or NaN during training.

    The parameters keep the values at which the loss was last known to be finite.
    """


class GradientError(AssertionError):
    """A gradient does not match its numerical value."""
