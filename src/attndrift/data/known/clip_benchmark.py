"""Sets of CLIP_benchmark for classification, as ``clip-benchmark/wds_*`` keeps them on the hub.

Class names and prompt templates are read from two text files beside the images.
"""

from __future__ import annotations

from attndrift.data.registry import DATASETS, DatasetSpec

_SHIFTS = {
    "imagenetv2": ("imagenet-v2", "ImageNetV2: new photographs of ImageNet's classes (Recht et al. 2019)"),
    "imagenet-a": (
        "imagenet-a",
        "ImageNet-A: photographs that are hard to classify, 200 classes (Hendrycks et al. 2021)",
    ),
    "imagenet-r": ("imagenet-r", "ImageNet-R: art, cartoons and toys, 200 classes (Hendrycks et al. 2021)"),
    "imagenet_sketch": ("imagenet-sketch", "ImageNet-Sketch: drawings of ImageNet's classes (Wang et al. 2019)"),
    "objectnet": ("objectnet", "ObjectNet: objects in odd poses, 113 classes of ImageNet (Barbu et al. 2019)"),
    "imagenet-o": ("imagenet-o", "ImageNet-O: classes that ImageNet-1k lacks (Hendrycks et al. 2021)"),
}
"""Made to evaluate on: they have no training split, and their authors ask not to train on them."""

_OTHERS = {
    "imagenet1k": ("imagenet", "ImageNet-1k (Deng et al. 2009)"),
    "fer2013": ("fer2013", "FER2013: facial expressions (Goodfellow et al. 2013)"),
    "voc2007": ("voc2007", "Pascal VOC 2007: objects (Everingham et al. 2010)"),
    "sun397": ("sun397", "SUN397: scenes (Xiao et al. 2010)"),
    "cars": ("stanford-cars", "Stanford Cars (Krause et al. 2013)"),
    "fgvc_aircraft": ("fgvc-aircraft", "FGVC-Aircraft (Maji et al. 2013)"),
    "mnist": ("mnist", "MNIST: handwritten digits (LeCun et al. 1998)"),
    "stl10": ("stl10", "STL-10 (Coates et al. 2011)"),
    "gtsrb": ("gtsrb", "GTSRB: German traffic signs (Stallkamp et al. 2012)"),
    "country211": ("country211", "Country211: where a photograph was taken (Radford et al. 2021)"),
    "renderedsst2": ("rendered-sst2", "Rendered SST2: sentiment of rendered text (Radford et al. 2021)"),
    "vtab-caltech101": ("caltech101", "Caltech-101 (Fei-Fei et al. 2004)"),
    "vtab-cifar10": ("cifar-10", "CIFAR-10 (Krizhevsky 2009)"),
    "vtab-cifar100": ("cifar-100", "CIFAR-100 (Krizhevsky 2009)"),
    "vtab-clevr_count_all": ("clevr", "CLEVR: number of objects (Johnson et al. 2017)"),
    "vtab-clevr_closest_object_distance": ("clevr", "CLEVR: distance of the closest object (Johnson et al. 2017)"),
    "vtab-diabetic_retinopathy": ("diabetic-retinopathy", "Diabetic retinopathy (Kaggle and EyePacs 2015)"),
    "vtab-dmlab": ("dmlab", "DMLab: distance of objects (Zhai et al. 2019)"),
    "vtab-dsprites_label_orientation": ("dsprites", "dSprites: orientation (Matthey et al. 2017)"),
    "vtab-dsprites_label_x_position": ("dsprites", "dSprites: x position (Matthey et al. 2017)"),
    "vtab-dsprites_label_y_position": ("dsprites", "dSprites: y position (Matthey et al. 2017)"),
    "vtab-dtd": ("dtd", "DTD: textures (Cimpoi et al. 2014)"),
    "vtab-eurosat": ("eurosat", "EuroSAT: land use (Helber et al. 2019)"),
    "vtab-kitti_closest_vehicle_distance": ("kitti", "KITTI: distance of the closest vehicle (Geiger et al. 2013)"),
    "vtab-flowers": ("oxford-flowers", "Oxford Flowers-102 (Nilsback and Zisserman 2008)"),
    "vtab-pets": ("oxford-iiit-pet", "Oxford-IIIT Pet (Parkhi et al. 2012)"),
    "vtab-pcam": ("pcam", "PatchCamelyon: tumours (Veeling et al. 2018)"),
    "vtab-resisc45": ("resisc45", "RESISC45: aerial photographs (Cheng et al. 2017)"),
    "vtab-smallnorb_label_azimuth": ("smallnorb", "smallNORB: azimuth (LeCun et al. 2004)"),
    "vtab-smallnorb_label_elevation": ("smallnorb", "smallNORB: elevation (LeCun et al. 2004)"),
    "vtab-svhn": ("svhn", "SVHN: digits of house numbers (Netzer et al. 2011)"),
}

for _set, (_origin, _title) in {**_SHIFTS, **_OTHERS}.items():
    DATASETS.register(
        DatasetSpec(
            name=f"wds_{_set}",
            title=_title,
            origin=_origin,
            hub=f"clip-benchmark/wds_{_set}",
            folders=(f"wds_{_set}",),
            evaluation_only=_set in _SHIFTS,
        )
    )
