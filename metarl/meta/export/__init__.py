"""Stock SB3 models from an initialisation, and what plain SB3 makes of them."""
