"""What every operation's folder shares: the choice of a backend, timing, tile tables, problem sizes, files."""
