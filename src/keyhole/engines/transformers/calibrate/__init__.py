"""What methods are fitted with: recorded prompts, codebooks, thresholds, activations."""
