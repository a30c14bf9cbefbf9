"""Private inference: MPCache and whole decoders under secure multi-party computation.

`plain/` exports from Keyhole to a frozen format. `secure/` are programs of JAX, and `runtime/` runs them with
SPU, in an environment of its own that has neither torch nor transformers.
"""
