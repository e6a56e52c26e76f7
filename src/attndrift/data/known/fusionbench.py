"""Sets of FusionBench (Tang et al. 2024) besides EuroSAT, as its authors keep them on the hub."""

from __future__ import annotations

from attndrift.data.registry import DATASETS, DatasetSpec

for _row in (
    DatasetSpec(
        name="sun397",
        title="SUN397: scenes (Xiao et al. 2010)",
        origin="sun397",
        hub="tanganke/sun397",
        revision="9c4afd6174afa3974f209a0ef099dbbe244dfd27",
        prompts="sun397",
    ),
    DatasetSpec(
        name="stanford_cars",
        title="Stanford Cars: 196 models (Krause et al. 2013)",
        origin="stanford-cars",
        hub="tanganke/stanford_cars",
        revision="9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40",
        prompts="stanford_cars",
    ),
    DatasetSpec(
        name="resisc45",
        title="RESISC45: aerial photographs, 45 kinds (Cheng et al. 2017)",
        origin="resisc45",
        hub="tanganke/resisc45",
        revision="5c484982a196dcb501b8e79c6cf4680dc6f2ccdf",
        prompts="resisc45",
    ),
    DatasetSpec(
        name="svhn",
        title="SVHN: digits of house numbers (Netzer et al. 2011)",
        origin="svhn",
        hub="ufldl-stanford/svhn",
        config="cropped_digits",
        revision="f9e1717d73324ebbc1ece84267ccd80d0aca0690",
        licence="other",
        prompts="digits",
    ),
    DatasetSpec(
        name="gtsrb",
        title="GTSRB: 43 German traffic signs (Stallkamp et al. 2012)",
        origin="gtsrb",
        hub="tanganke/gtsrb",
        revision="ea889fff70dda7b09e94a4b207dded438deca549",
        prompts="gtsrb",
    ),
    DatasetSpec(
        name="mnist",
        title="MNIST: handwritten digits (LeCun et al. 1998)",
        origin="mnist",
        hub="ylecun/mnist",
        config="mnist",
        revision="77f3279092a1c1579b2250db8eafed0ad422088c",
        licence="MIT",
        prompts="digits",
    ),
    DatasetSpec(
        name="dtd",
        title="DTD: 47 textures (Cimpoi et al. 2014)",
        origin="dtd",
        hub="tanganke/dtd",
        revision="d2afa97d9f335b1a6b3b09c637aef667f98f966e",
        prompts="dtd",
    ),
):
    DATASETS.register(_row)
