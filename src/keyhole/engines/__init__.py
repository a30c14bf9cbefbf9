"""Adapters to inference engines. They stay thin: what a method does lives in the four packages."""
