"""All that isospike knows of Hugging Face models."""
