"""Families whose physics is MuJoCo's: the model, its constants by lineage, and how it is drawn."""
