"""Import every module of the installed jflat, without extras: only `jflat.models` may, and must, ask for flax."""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re

import jflat

EXTRAS = ("flax", "orbax.checkpoint", "sklearn", "matplotlib", "rich", "tyro", "torch", "tensorflow", "chex")

present = [name for name in EXTRAS if importlib.util.find_spec(name.partition(".")[0])]
assert not present, f"not a bare environment: {present}"
names = [module.name for module in pkgutil.walk_packages(jflat.__path__, "jflat.")]
assert len(names) > 20, names
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
assert set(failed) == {"jflat.models"}, failed
assert "pip install 'jflat[experiments]'" in failed["jflat.models"], failed
needed = {re.split(r"[^\w-]", one)[0] for one in importlib.metadata.requires("jflat") or () if "extra ==" not in one}
assert needed == {"jax", "jaxlib", "optax", "numpy"}, needed
print(f"jflat alone: {len(names)} modules import with {', '.join(sorted(needed))}")
