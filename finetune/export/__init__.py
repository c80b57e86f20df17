"""Export a trained model to the formats that other tools open."""

import sys

from finetune.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
