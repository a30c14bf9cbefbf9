"""What is left and right of attention in a decode step of a Llama-shaped model."""
