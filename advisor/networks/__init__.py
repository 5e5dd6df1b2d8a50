"""Networks: models as torch has them. What their class and modules say, how they are loaded, and what is read of them then."""
