"""Where workloads run and objects are stored: `local` (processes and a SQLite file on this machine) and `memory` (for tests)."""
