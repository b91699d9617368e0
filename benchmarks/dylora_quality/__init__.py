"""A study: the quality of one DyLoRA at every rank, compared with one LoRA per rank."""
