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


class SavedStateError(ValueError):
    """A saved cache or fitted file that cannot be used: damaged, or of another model, method or format."""


class StoreError(ValueError):
    """Something a store of documents cannot do, with the reason and the way out."""


class DamagedStoreError(StoreError):
    """Bytes in a store of documents that are not what was written, or of another format; with the file."""


class QuotaError(StoreError):
    """There is no room in a store of documents, and nothing that may be evicted."""


class UnknownDocumentError(StoreError):
    """A name of which a store has no document, or no finished one."""
