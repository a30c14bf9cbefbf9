"""From scores to slots: exact scores, the best slots, pages, noise."""
