"""Learning on two levels: an initialisation is meta-finetuned to a family of tasks, and then adapted to each of them."""
