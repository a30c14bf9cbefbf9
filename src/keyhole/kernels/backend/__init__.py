"""How an operation finds who computes it: dispatch, the native library, what Triton kernels share."""
