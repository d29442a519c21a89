"""What train.py is made of: one room for each concern."""
