"""The public names of Keyhole: the one list of them, from which they are imported when first asked for."""

from keyhole.cache.usage import Usage as Usage
from keyhole.core.budget import Budget as Budget
from keyhole.core.errors import DamagedStorageError as DamagedStorageError
from keyhole.core.errors import DamagedStoreError as DamagedStoreError
from keyhole.core.errors import NonFiniteError as NonFiniteError
from keyhole.core.errors import NotServedError as NotServedError
from keyhole.core.errors import QuotaError as QuotaError
from keyhole.core.errors import SavedStateError as SavedStateError
from keyhole.core.errors import SpecError as SpecError
from keyhole.core.errors import StoreError as StoreError
from keyhole.core.errors import UnknownDocumentError as UnknownDocumentError
from keyhole.core.errors import UnsupportedCacheError as UnsupportedCacheError
from keyhole.core.errors import UnsupportedModelError as UnsupportedModelError
from keyhole.documents.conversation import Conversation as Conversation
from keyhole.documents.library import Library as Library
from keyhole.documents.opening import Opened as Opened
from keyhole.engines.transformers import Attachment as Attachment
from keyhole.engines.transformers import KeyholeCache as KeyholeCache
from keyhole.engines.transformers import activated as activated
from keyhole.engines.transformers import attach as attach
from keyhole.engines.transformers import captured as captured
from keyhole.engines.transformers import captured_generate as captured_generate
from keyhole.engines.transformers import cuda_graph_generate as cuda_graph_generate
from keyhole.engines.transformers import detach as detach
from keyhole.engines.transformers import footprint as footprint
from keyhole.engines.transformers import load_cache as load_cache
from keyhole.engines.transformers import make_cache as make_cache
from keyhole.engines.transformers import save_cache as save_cache
from keyhole.engines.transformers import served_layers as served_layers
from keyhole.engines.transformers import usage as usage
from keyhole.feedforward import Activated as Activated
from keyhole.generation import Answer as Answer
from keyhole.generation import generate as generate
from keyhole.methods import METHODS as METHODS
from keyhole.methods import EvictionMethod as EvictionMethod
from keyhole.methods import Method as Method
from keyhole.methods import Recipe as Recipe
from keyhole.methods import RetrievalMethod as RetrievalMethod
from keyhole.methods import register as register
from keyhole.models import default_model as default_model
from keyhole.retention import Scorer as Scorer
from keyhole.selection import Selector as Selector
from keyhole.storage import Footprint as Footprint
from keyhole.storage import Storage as Storage

__version__: str
