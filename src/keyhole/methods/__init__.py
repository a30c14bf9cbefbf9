"""Published systems as small recipes over the four questions."""

from keyhole.methods.base import Method, RetrievalMethod
from keyhole.methods.dense import Dense
from keyhole.methods.oracle import Oracle
from keyhole.methods.pqcache import PQCache
from keyhole.methods.recipe import Recipe
from keyhole.methods.registry import METHODS

__all__ = ["METHODS", "Dense", "Method", "Oracle", "PQCache", "Recipe", "RetrievalMethod"]
