"""Select: which kept tokens a query reads."""

from keyhole.selection.base import Selection, Selector, Step
from keyhole.selection.exact import ExactSelector
from keyhole.selection.product import ProductSelector

__all__ = ["ExactSelector", "ProductSelector", "Selection", "Selector", "Step"]
