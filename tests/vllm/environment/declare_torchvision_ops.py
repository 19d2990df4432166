"""Make torchvision's CUDA wheel importable beside a CPU build of torch.

Its compiled library does not load there, which torchvision itself tolerates, but it then describes
operators that the library would have declared. Declaring them is enough: nothing here calls them.
The package is edited where it is installed; a second run changes nothing.
"""

import importlib.util
import re
from pathlib import Path

MARK = "# declared by polaris_fast: the compiled library is not loaded"
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

spec = importlib.util.find_spec("torchvision")
assert spec is not None and spec.origin is not None, "torchvision is not installed"
package = Path(spec.origin).parent
described = re.findall(
    r'register_fake\("(torchvision::\w+)"\)', (package / "_meta_registrations.py").read_text()
)
assert described, f"{package}: no operators found; another layout than of torchvision 0.28"

extension = package / "extension.py"
source = extension.read_text()
if MARK not in source:
    names = ", ".join(repr(name) for name in described)
    extension.write_text(
        f"{source}\n\n{MARK}\nif not _has_ops():\n    for _name in ({names},):\n"
        f"        torch.library.define(_name, {SCHEMA!r})\n"
    )
