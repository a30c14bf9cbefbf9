"""What a decode step costs: how much it moves and computes, and how long a unit of that takes."""

from keyhole.core.costs.model import Heads, Rates, Work
from keyhole.core.costs.places import VARIABLE, user_file
from keyhole.core.costs.table import DENSE, CostTable, cost_table

__all__ = ["DENSE", "VARIABLE", "CostTable", "Heads", "Rates", "Work", "cost_table", "user_file"]
