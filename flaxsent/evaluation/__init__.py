"""A classifier and a labelled file → its figures."""
