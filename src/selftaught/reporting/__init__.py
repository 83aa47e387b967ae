"""The report of a run: one self-contained page, the map of an embedding, and the table for the terminal."""

from selftaught.reporting.atlas import Atlas, make_atlas
from selftaught.reporting.page import write_report
from selftaught.reporting.terminal import ranking_table, results_table, show

__all__ = ["Atlas", "make_atlas", "ranking_table", "results_table", "show", "write_report"]
