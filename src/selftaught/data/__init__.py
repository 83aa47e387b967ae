"""Sources of samples, the prepared cache and the audit: everything between what the user has and a batch."""

from selftaught.data.opening import open_data
from selftaught.data.source import Skipped, Source, holdout

__all__ = ["Skipped", "Source", "holdout", "open_data"]
