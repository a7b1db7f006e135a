"""A run seen from afar: which charts there are, what they show, and the page that shows them."""
