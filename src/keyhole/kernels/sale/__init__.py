"""Block-sparse attention of prompts by estimates from small integers (SALE)."""
