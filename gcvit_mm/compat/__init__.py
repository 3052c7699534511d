"""What the other packages are, and what is changed in them."""
