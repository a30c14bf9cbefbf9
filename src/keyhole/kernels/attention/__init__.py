"""Attention over chosen slots, packed codes, pools of rows and pages; the merge of parts."""
