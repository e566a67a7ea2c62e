"""Two levels of learning: an initialisation is meta-finetuned to a family of tasks, then adapted to each of them."""
