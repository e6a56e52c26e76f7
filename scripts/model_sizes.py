"""Write the sizes of the demo's models, which its dry run then need not make: ``python scripts/model_sizes.py``."""

from attndrift.files import write_json
from attndrift.study.loading import load_study
from attndrift.study.model_sizes import SHIPPED, sizes_of

if __name__ == "__main__":
    write_json(SHIPPED, sizes_of(load_study("demo")))
