"""From a ranking to slots: tokens, pages, groups."""
