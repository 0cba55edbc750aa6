"""The laws of the algebra, tested against torch."""
