"""The speed and the memory beside other libraries, where the time goes, and what a large job takes."""
