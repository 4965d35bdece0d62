from cubelet.testing import *  # noqa: F403
