"""Records of what was measured, the runner of all notebooks, its report, and the command line."""

from wssl.companion.records import published, read_claims, read_runs, show_table, write_claim, write_run

__all__ = ["published", "read_claims", "read_runs", "show_table", "write_claim", "write_run"]
