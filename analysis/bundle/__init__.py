"""The parts of a bundle: its config, network code, pictures and receipt, and the program that runs it alone."""
