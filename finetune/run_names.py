"""Names of the files by which a run folder is recognised; :mod:`finetune.run_folder` has all of its files."""

# what was asked for, and what must still hold when the run is resumed
RECORD = "run.json"
# the whole configuration
CONFIG = "config.yaml"
# the split of every image
SPLIT = "split.csv"
