"""The errors Keyhole raises for what a user can mend. All are ValueError or TypeError."""


class SpecError(ValueError):
    """A method specification that cannot be read: unknown method, unknown option, value out of range."""


class UnsupportedModelError(ValueError):
    """A model whose attention Keyhole cannot serve, with the reason."""


class UnsupportedCacheError(TypeError):
    """A cache object Keyhole cannot take over, with the one to use instead."""


class NonFiniteError(ValueError):
    """NaN or infinity in the keys or values of a layer."""


class DamagedStorageError(ValueError):
    """Keys and values on disk that are not what was written there, with the file."""


class NotServedError(ValueError):
    """A model was called inside an `attach` block, and nothing of it was served; with the reason."""
