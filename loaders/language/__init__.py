"""Language models: from a folder of data files, or a GGUF file, to text, by mlx-lm's own networks."""
