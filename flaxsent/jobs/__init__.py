"""Files in, files out, by one process or several; and Ray."""
