"""The ladder: training strategies compared on one data set, with a recommendation."""

import sys

from finetune.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
