"""The exceptions of the documented API, each also the Python built-in that a reader would expect."""


class ArgumentError(ValueError):
    """An argument breaks a documented rule (C#: ArgumentException)."""


class ArgumentNullError(ArgumentError, TypeError):
    """A required argument is None (C#: ArgumentNullException)."""


class ArgumentOutOfRangeError(ArgumentError):
    """An argument is outside its range (C#: ArgumentOutOfRangeException)."""


class InvalidOperationError(RuntimeError):
    """The call does not fit the object's present state (C#: InvalidOperationException)."""


class NotSupportedError(NotImplementedError):
    """The object cannot do this, whatever its state (C#: NotSupportedException)."""


class FormatError(ArgumentError):
    """A file is not what its format promises."""


class NonFiniteError(ArithmeticError):
    """Training met a loss or an update that is infinite or not a number.

    The parameters are those with which the loss was last seen finite.
    """


class GradientError(AssertionError):
    """A gradient differs from its numerical value."""
