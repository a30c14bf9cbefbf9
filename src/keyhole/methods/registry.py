"""The one list of methods: it drives the command line, the test matrix and the tables."""

from __future__ import annotations

from keyhole.methods.base import Method
from keyhole.methods.dense import Dense
from keyhole.methods.oracle import Oracle
from keyhole.methods.pqcache import PQCache

METHODS: dict[str, type[Method]] = {method.name: method for method in (Dense, Oracle, PQCache)}
