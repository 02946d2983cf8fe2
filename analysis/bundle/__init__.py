"""The parts of a bundle: its config, its network code, its pictures, its receipt, and the program that runs it alone."""
