"""How a task is learnt from an initialisation: gradient steps batched over tasks, or a stock algorithm's."""
