"""Compare training strategies on one data set, and recommend one: the ladder."""

import sys

from finetune.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
