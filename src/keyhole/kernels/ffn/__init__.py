"""Matrix-vector products that skip rows or columns."""
