"""Where workloads run and objects are stored: `kubernetes` (custom resources, Jobs, Deployments), `local` (processes and a SQLite
file on this machine) and `memory` (for tests).
"""
