"""Everything that would stop a run hours later is looked for before it: by training at its start, and by a command.

    python -m llava_pat.data.check --data_path FILE --image_folder FOLDER

Both call `check_dataset`, so that they keep the same records.
"""

from llava_pat.data.check.region_sizes import compare_sizes
from llava_pat.data.check.report import CheckReport, Lost
from llava_pat.data.check.scan import check_dataset

__all__ = ["CheckReport", "Lost", "check_dataset", "compare_sizes"]
