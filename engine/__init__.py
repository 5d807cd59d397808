"""What the processes share. Imports none of them."""
