"""The command line: run folders, YAML hyperparameters, terminals, tables and figures; only it knows about those."""
