"""How requests become images and predictions, and back."""
